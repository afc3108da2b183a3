"""Renders a parity outcome: progress and a table for the terminal; JSON, Markdown and plots for a folder."""

import json
import math
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from steptape.shared_tests import plots
from steptape.shared_tests.compare import Check, Comparison, Row
from steptape.shared_tests.parity import HEADLINE, OnProgress

_GRADES = {"adaptive": "adaptive steps", "grid": "same grid"}
_COLUMNS = ("method", "vs host", "reference", "vs other", "evaluations", "status")
_SETTING = f"{HEADLINE[0]} at {HEADLINE[1]:g}"
_LEGEND = (
    f"{_SETTING}. vs host: difference of the gradient to the host's own back-propagation; for aca the largest over "
    "all solvers and tolerances. reference: error of the gradient in y0 and params. vs other: largest difference "
    "to the other framework on the same grid. evaluations: of the field, forward + backward; torch's "
    "back-propagation holds every graph and evaluates nothing again."
)


@contextmanager
def showing_progress(console: Console) -> Iterator[OnProgress]:
    """Yield a progress callback: moving bars on a terminal, one line at the start and end of a stage elsewhere."""
    if not console.is_terminal:
        yield lambda *stage: _print_stage(console, *stage)
        return
    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        tasks: dict[tuple[str, str], TaskID] = {}

        def move(backend: str, grade: str, finished: int, planned: int) -> None:
            if (backend, grade) not in tasks:
                tasks[backend, grade] = bars.add_task(f"{backend}, {_GRADES[grade]}", total=planned)
            bars.update(tasks[backend, grade], completed=finished)

        yield move


def _print_stage(console: Console, backend: str, grade: str, finished: int, planned: int) -> None:
    if finished in (0, planned):
        console.print(f"{backend}, {_GRADES[grade]}: {finished} of {planned} runs", highlight=False)


def print_table(console: Console, comparison: Comparison) -> None:
    """Print the table of all rows; below it, why a row fails, and every promise that does not hold."""
    table = Table(box=SIMPLE_HEAD, caption=_LEGEND, caption_justify="left", padding=(0, 1, 0, 0))
    for column in _COLUMNS:
        table.add_column(column, no_wrap=True)
    rows = comparison.rows()
    for problem, group in groupby(rows, key=lambda row: row.problem):
        table.add_row(problem, style="bold")
        for row in group:
            table.add_row(*_cells(row, indent="  "), style="red" if row.failing else "")
        table.add_section()
    console.print(table)
    for row in rows:
        if row.failing:
            _print_red(console, f"{row.problem}, {row.backend} {row.method}: {row.note}")
    for check in broken(comparison.checks()):
        _print_red(console, f"broken: {_sentence(check)}")
    console.print(summary(comparison), highlight=False)


def _print_red(console: Console, text: str) -> None:
    console.print(text, style="red", highlight=False, markup=False, soft_wrap=True)


def broken(checks: list[Check]) -> list[Check]:
    """Return the promises that do not hold."""
    return [check for check in checks if not check.holds]


def summary(comparison: Comparison) -> str:
    """Return one sentence that counts promises and failing rows."""
    checks, rows = comparison.checks(), comparison.rows()
    failing = sum(row.failing for row in rows)
    return (
        f"{len(checks) - len(broken(checks))} of {len(checks)} promises hold over {len(comparison.outcome.runs)} "
        f"runs; {failing} of {len(rows)} methods shown fail."
    )


def write_report(folder: Path, comparison: Comparison, seconds: float) -> list[Path]:
    """Write `parity.json`, `parity.md` and the plots into `folder`; return the files."""
    data, markdown = folder / "parity.json", folder / "parity.md"
    content = json.dumps(as_data(comparison, seconds), indent=1, allow_nan=False)
    data.write_text(content + "\n", encoding="utf-8")
    figures = plots.draw_all(folder, comparison)
    markdown.write_text(as_markdown(comparison, seconds, figures), encoding="utf-8")
    return [data, markdown, *figures]


def as_data(comparison: Comparison, seconds: float) -> dict[str, Any]:
    """Return the whole report as plain data; numbers that are not finite become None."""
    outcome = comparison.outcome
    runs = [{**run.to_json(), "reference_error": comparison.reference_error(run)} for run in outcome.runs]
    for run in runs:
        run["steps"] = max(len(run.pop("grid")) - 1, 0)
        del run["case"]["grid"]
    return _finite_only(
        {
            "format": 1,
            "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "steptape": version("steptape"),
            "machine": {"platform": platform.platform(), "processors": os.cpu_count()},
            "scope": asdict(outcome.scope),
            "versions": outcome.versions,
            "seconds": seconds,
            "rows": [asdict(row) for row in comparison.rows()],
            "promises": [{**asdict(check), "holds": check.holds} for check in comparison.checks()],
            "runs": runs,
        }
    )


def _finite_only(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite_only(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite_only(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_markdown(comparison: Comparison, seconds: float, figures: list[Path]) -> str:
    """Return the report as Markdown, the figures shown by relative links."""
    outcome = comparison.outcome
    versions = [f"{name} {number}" for found in outcome.versions.values() for name, number in found.items()]
    lines = [
        "# steptape parity",
        "",
        f"steptape {version('steptape')}; {', '.join(dict.fromkeys(versions))}; {platform.platform()}; "
        f"{seconds:.0f} s{'; quick' if outcome.scope.quick else ''}.",
        "",
        summary(comparison),
        "",
        _markdown_row(("problem", *_COLUMNS, "note")),
        _markdown_row(("---",) * (len(_COLUMNS) + 2)),
        *(_markdown_row((row.problem, *_cells(row), row.note)) for row in comparison.rows()),
        "",
        _LEGEND,
        "",
        "## Promises",
        "",
        *_promise_lines(comparison.checks()),
        "",
    ]
    for figure in figures:
        lines += [f"![{figure.stem}]({figure.name})", ""]
    return "\n".join(lines)


def _promise_lines(checks: list[Check]) -> list[str]:
    """Return one line a promise with its worst case, then one line for each case that breaks it."""
    lines = []
    for promise in dict.fromkeys(check.promise for check in checks):
        judged = [check for check in checks if check.promise == promise]
        worst = max(judged, key=lambda check: check.error / check.limit if check.limit else check.error)
        held = sum(check.holds for check in judged)
        lines.append(f"- {promise}: {held} of {len(judged)}; worst {_sentence(worst, named=False)}")
        lines += [f"  - broken: {_sentence(check, named=False)}" for check in broken(judged)]
    return lines


def _sentence(check: Check, named: bool = True) -> str:
    name = f"{check.promise}: " if named else ""
    reason = f" ({check.reason})" if check.reason else ""
    return f"{name}{check.backend}, {check.case}: {check.error:.1e}, allowed {check.limit:.0e}{reason}"


def _cells(row: Row, indent: str = "") -> tuple[str, ...]:
    counts = (row.forward_evaluations, row.backward_evaluations)
    errors = (row.host_error, row.reference_error, row.cross_error)
    return (
        f"{indent}{row.backend} {row.method}",
        *("" if error is None else f"{error:.1e}" for error in errors),
        "" if None in counts else "{} + {}".format(*counts),
        row.status,
    )


def _markdown_row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
