"""Links of the pages, which are right in the repository, as the site has them.

A page links to what lies beside it in the repository. What the site shows elsewhere, as the README, is linked there; of
code, which the site does not show, the name is left. A link to what is nowhere is an error, as any that leads nowhere.
"""

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples": "gallery/index.rst",
}
INCLUDE = re.compile(r"^```\{include\} (\S+)\n```$", re.MULTILINE)
LINK = re.compile(r"(?<!\!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#|mailto:)([^)\s#]*)(#[^)\s]*)?\)")


def setup(app: Any) -> dict[str, bool]:
    """Connect to the reading of sources."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}


def _read(app: Any, page: str, text: list[str]) -> None:
    source = Path(app.env.doc2path(page))
    if source.suffix == ".md":
        included = INCLUDE.fullmatch(text[0].strip())
        if included:
            source = source.parent / included[1]
            text[0] = source.read_text(encoding="utf-8")
        text[0] = _mended(text[0], Path(app.srcdir), page, source)


def _mended(text: str, docs: Path, page: str, source: Path) -> str:
    here = (docs / page).parent

    def mended(link: re.Match[str]) -> str:
        words, target, anchor = link[1], link[2], link[3] or ""
        place = Path(os.path.normpath(source.parent / target)) if target else source
        if not place.exists():
            return link[0]
        inside = place.relative_to(ROOT).as_posix().rstrip("/")
        if inside in PAGES:
            place = docs / PAGES[inside]
        elif not place.is_relative_to(docs) or place.suffix not in (".md", ".png"):
            return words
        if place.suffix != ".md":
            anchor = ""
        return f"[{words}]({os.path.relpath(place, here)}{anchor})"

    return re.sub(LINK, mended, text)
