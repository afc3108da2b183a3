"""The site of the documentation: `nox -s docs`."""

import os
import sys
from importlib.metadata import version as _version
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))
# Two programs of the gallery at once, a thread each: threads of one that wait for each other take both cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

project = "steptape"
author = copyright = "The steptape developers"
version = release = _version("steptape")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_gallery.gen_gallery",
    "repository_links",
]
exclude_patterns = ["_build", "**/sg_execution_times.rst", "sg_execution_times.rst"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!steptape).*"), ("py:class", r"steptape\.(torch|jax|_doors)\._.*")]
suppress_warnings = ["config.cache"]

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"steptape {version}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
templates_path = []

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_custom_sections = [(name, "params_style") for name in ()] + [
    "Exact",
    "Approximate",
    "Memory",
    "Supports",
    "Source",
]

sphinx_gallery_conf = {
    "examples_dirs": str(DOCS.parent / "examples"),
    "gallery_dirs": "gallery",
    "filename_pattern": r"/\w+\.py$",
    "ignore_pattern": r"__init__\.py|/_",
    "parallel": 2,
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "abort_on_example_error": True,
    "reset_modules": ("matplotlib", "gallery_reset.reset"),
    "image_scrapers": ("matplotlib",),
    "copyfile_regex": "",
    "plot_gallery": os.environ.get("STEPTAPE_DOCS_GALLERY", "1") == "1",
}
