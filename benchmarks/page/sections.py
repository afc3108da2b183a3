"""The page, from its template: what is asked for there, of the figures that there are."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks import envelope
from benchmarks.envelope import Entry
from benchmarks.measurements import MEASUREMENTS
from benchmarks.page import compare, readme, text, training, why
from benchmarks.page.figures import FIGURES, rows
from benchmarks.page.ratios import KINDS, MARGIN
from benchmarks.ways import BASE

_KEPT = 10


def write(figures: Sequence[Entry], folder: Path) -> Path:
    """Write the page into a folder, with the plots that are there, and return it."""
    file = folder / "results.md"
    file.write_text(Page(figures, folder).text, encoding="utf-8")
    return file


class Page:
    """The ``text``, and the figures it ``asked`` for, by measurement and name. What it shows, the template says."""

    def __init__(self, figures: Sequence[Entry], folder: Path):
        self.asked: set[tuple[str, str]] = set()
        self._figures, self._folder, self._section = figures, folder, list[tuple[str, bool]]()
        loader = FileSystemLoader(Path(__file__).parent)
        environment = Environment(loader=loader, undefined=StrictUndefined)
        better = _linked(figures, "better", FIGURES)
        better.sort(key=lambda row: (KINDS.index(row["less of"]), row.pop("least")))
        measured = {name: [f for f in figures if f["measurement"] == name] for name in FIGURES}
        runs, groups, beyond = (rows(figures, compare.NAME, cell) for cell in ("runs", "groups", "beyond"))
        rendered = environment.get_template("results.md.j2").render(
            {name: getattr(self, name) for name in ("part", "plot", "line", "code")},
            table=text.table,
            bases=BASE,
            again=", ".join(f"`{name}`" for name, of in measured.items() if any(f["pass"] == 2 for f in of)),
            origins=[_origin(name, of) for name, of in measured.items() if of],
            better=better,
            trained=training.MODELS,
            margin=text.per_cent(MARGIN),
            promises=_linked(figures, "promises", FIGURES),
            readme=[readme.table(figures, name) for name in readme.TABLES if name != "which"],
            papers=_linked(figures, "papers", ("papers", "tasks", "jax_memory")),
            repeatability=compare.report(runs, groups, beyond, _KEPT) if runs else _missing(compare.NAME),
        )
        self.text = re.sub(r"\n{3,}", "\n\n", rendered).strip() + "\n"

    def part(
        self,
        measurement: str,
        cell: str,
        words: str = "",
        plots: Mapping[str, str] | None = None,
        caller: Callable[[], str] = str,
    ) -> str:
        """One figure with the words above it, and the plots below it: by file, a description."""
        found = rows(self._figures, measurement, cell)
        self.asked.add((measurement, cell))
        self._section.append((measurement, bool(found)))
        pictures = (self.plot(*each) for each in (plots or {}).items())
        parts = (words or self.line(caller), text.table(found), *pictures)
        return "\n\n".join(filter(None, parts)) if found else ""

    def plot(self, file: str, what: str) -> str:
        return f"![{what}]({file})" if (self._folder / file).exists() else ""

    def line(self, caller: Callable[[], str]) -> str:
        return " ".join(caller().split())

    def code(self) -> str:
        """What of the section was not measured, and the code of all of it."""
        section, self._section = self._section, []
        names = dict.fromkeys(measurement for measurement, _ in section)
        missing = [_missing(name) for name in names if (name, True) not in section]
        scripts = dict.fromkeys(MEASUREMENTS[name].script for name in names)
        return "\n\n".join([*missing, f"The code: {', '.join(map(text.link, scripts))}."])


def _missing(measurement: str) -> str:
    return f"Not measured yet: {text.command(measurement)} makes it."


def _origin(measurement: str, figures: Sequence[Entry]) -> dict[str, str]:
    origin = envelope.origin(figures)
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    place = {"machine": origin["machine"] or "not noted", "versions": versions or "not noted"}
    return {"command": text.command(measurement), "day": origin["day"], **place}


def _linked(figures: Sequence[Entry], cell: str, measurements: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of a figure that several measurements have, each with a link to its code, and why a peer is better."""
    found = []
    for name in measurements:
        for row in (dict(row) for row in rows(figures, name, cell)):
            script = row.pop("script", MEASUREMENTS[name].script)
            told = {why.COLUMN: why.why(row)} if cell == "better" else {}
            found.append({**row, **told, "measured by": text.link(script)})
    return found
