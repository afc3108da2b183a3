"""What the README says, read out of it, so that the page never compares with a figure that is no longer there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results.text import CLOSE, per_cent

_README = Path(__file__).resolve().parents[2] / "README.md"


def sentence(start: str) -> str:
    """The sentence that begins so."""
    for paragraph in _README.read_text(encoding="utf-8").split("\n\n"):
        text = " ".join(paragraph.split())
        if start in text:
            return re.split(r"(?<=\.) (?=[A-Z`])", text[text.index(start) :])[0]
    raise LookupError(f"README.md no longer says: {start} ...")


def cells(start: str) -> list[str]:
    """The cells of the row of a table whose first cell begins so."""
    for line in _README.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"| {start}"):
            return [cell.strip() for cell in line.strip().strip("|").split("|")]
    raise LookupError(f"README.md has no row of a table any more that begins: {start} ...")


def verdict(claimed: str, measured: str) -> str:
    """Whether the figures outside brackets, which give ranges, are the same."""
    pairs = list(zip(_figures(claimed), _figures(measured), strict=False))
    if not pairs or len(_figures(claimed)) != len(_figures(measured)):
        return ""
    apart = max(max(one, other) / min(one, other) for one, other in pairs)
    if apart <= CLOSE:
        return f"the same, within {per_cent(CLOSE - 1)}"
    return f"differs by {per_cent(apart - 1)}: another run, see [Repeatability](#repeatability)"


def _figures(text: str) -> Sequence[float]:
    """The numbers, of changes in per cent the ratios."""
    found = re.findall(r"([-+]?\d+(?:\.\d+)?)( ?%)?", re.sub(r"\(.*?\)", "", text))
    return [1 + float(number) / 100 if per_cent else float(number) for number, per_cent in found]
