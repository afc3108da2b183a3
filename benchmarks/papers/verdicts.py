"""What is said of a way to a gradient that was tried on a case with a closed form: yes, wrong, refused or no."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

P, Y0, TOLERANCE = 0.3, 1.5, 1e-7
# One of the four, and why.
Verdict = tuple[str, str]
Row = dict[str, Any]


class Absent(Exception):
    """There is no argument to ask for it."""


def verdict(error_of: Callable[[], float], bound: float = 1e-3, words: Callable[[Exception], str] = str) -> Verdict:
    """On what comes back with a relative error, which must be below ``bound``; ``words``: an exception's own."""
    try:
        error = error_of()
    except Absent:
        return "no", ""
    except Exception as raised:
        return "refused", f"{type(raised).__name__}: {words(raised)}".splitlines()[0]
    if error < bound:
        return "yes", ""
    lost = "no gradient" if error == math.inf else f"off by {error:.2g}"
    return f"wrong: {lost}", lost


def row(name: str, tried: Mapping[str, Verdict]) -> Row:
    """The verdicts on a peer by case, and the reasons."""
    return {"peer": name, **{case: verdict for case, (verdict, _) in tried.items()}, "why": dict(tried)}


def shown(rows: Sequence[Row]) -> list[Row]:
    """Without the errors' words."""
    return [{name: value for name, value in row.items() if name != "why"} for row in rows]


def draw(rows: Sequence[Row], figure: Any) -> None:
    """The table in colours."""
    colours = {"yes": "#009E73", "wrong": "#D55E00", "refused": "#E69F00", "no": "#BBBBBB"}
    axis = figure.subplots()
    cases = [name for name in shown(rows)[0] if name != "peer"]
    for y, row in enumerate(rows):
        for x, case in enumerate(cases):
            word = row.get(case, "no").split(":")[0]
            axis.scatter(x, y, s=500, marker="s", color=colours.get(word, "#BBBBBB"))
            axis.text(x, y, word if word in colours else "", ha="center", va="center", fontsize=7)
    axis.set_xticks(range(len(cases)), cases, rotation=25, ha="right")
    axis.set_yticks(range(len(rows)), [row["peer"] for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
