"""The package list of pyproject.toml is explicit: a folder it misses would be left out of the wheel in silence."""

import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import steptape.cli

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = ROOT / "pyproject.toml"
FOLDERS = {"steptape": "plugins", "steptape.compat": "compat", "steptape.shared_tests": "shared_tests"}

needs_checkout = pytest.mark.skipif(not PYPROJECT.exists(), reason="runs from a checkout")


def listed_packages():
    """The strings of `packages = [...]`, read without tomllib, which Python 3.10 lacks."""
    section = PYPROJECT.read_text(encoding="utf-8").split("[tool.setuptools]")[1]
    return set(re.findall(r'"([\w.]+)"', section.split("packages = [")[1].split("]")[0]))


@needs_checkout
def test_every_folder_with_an_init_is_listed():
    found = set()
    for package, folder in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            below = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join((package, *below)))
    assert found == listed_packages()


@needs_checkout
def test_every_folder_with_modules_has_an_init():
    for folder in FOLDERS.values():
        for module in (ROOT / folder).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), module


def test_the_console_script_is_the_cli():
    [script] = [script for script in entry_points(group="console_scripts") if script.name == "steptape"]
    assert script.value == "steptape.cli:main"
    assert script.load() is steptape.cli.main
