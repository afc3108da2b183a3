"""Renders a parity outcome: progress and a table for the terminal; JSON, Markdown and plots for a folder."""

import hashlib
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from tabulate import tabulate

from steptape.shared_tests.parity.compare import Comparison
from steptape.shared_tests.parity.parity import HEADLINE, OnProgress, Outcome
from steptape.shared_tests.parity.promises import Check, check_all
from steptape.shared_tests.parity.sde_compare import SdeSeries, all_series, check_sdes
from steptape.shared_tests.report import plots, sde_plot
from steptape.shared_tests.report.fault_table import (
    FAULT_COLUMNS,
    FAULT_LEGEND,
    FaultRow,
    check_faults,
    make_fault_rows,
)
from steptape.shared_tests.report.sde_table import SDE_COLUMNS, SDE_LEGEND, SdeRow, make_sde_rows
from steptape.shared_tests.report.table import Row, make_rows

_GRADES = {"adaptive": "adaptive steps", "grid": "same grid", "sde": "SDEs", "host": "hosts' faults"}
_COLUMNS = ("method", "host", "error", "same grid", "own steps", "evals", "status")
_PAGE_COLUMNS = ("problem", *_COLUMNS, "pulls", "note")
_SETTING = f"{HEADLINE[0]} at {HEADLINE[1]:g}"
_LEGEND = (
    f"{_SETTING}. host: difference of the gradient to the host's own back-propagation; for aca the largest over all "
    "solvers and tolerances. error: of the gradient in y0 and params, against the reference. same grid, own steps: "
    "difference to the other framework, on one grid the largest over all solvers. evals: evaluations of the field, "
    "forward + backward; torch's back-propagation holds every graph and evaluates nothing again."
)
_PAGE_LEGEND = f"{_LEGEND} pulls: vector-Jacobian products in the parameters."


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


@dataclass(frozen=True)
class Report:
    """A parity outcome with what was concluded from it; `seconds` is the wall time of all runs."""

    comparison: Comparison
    checks: list[Check]
    rows: list[Row]
    series: list[SdeSeries]
    sde_rows: list[SdeRow]
    fault_rows: list[FaultRow]
    seconds: float

    @classmethod
    def of(cls, outcome: Outcome, seconds: float) -> "Report":
        """Compare the runs of an outcome and judge every promise."""
        comparison, series = Comparison(outcome), all_series(outcome.sde_runs)
        checks = check_all(comparison) + check_sdes(series) + check_faults(outcome.host_runs)
        rows, sde_rows = make_rows(comparison, checks), make_sde_rows(series, checks)
        return cls(comparison, checks, rows, series, sde_rows, make_fault_rows(outcome.host_runs), seconds)

    @property
    def broken(self) -> list[Check]:
        """The promises that do not hold."""
        return [check for check in self.checks if not check.holds]

    @property
    def summary(self) -> str:
        """One sentence that counts promises and failing rows."""
        outcome = self.comparison.outcome
        rows: tuple[Row | SdeRow | FaultRow, ...] = (*self.rows, *self.sde_rows, *self.fault_rows)
        failing = [row.failing for row in rows]
        held = len(self.checks) - len(self.broken)
        runs = len(outcome.runs) + len(outcome.sde_runs) + len(outcome.host_runs)
        return (
            f"{held} of {len(self.checks)} promises hold over {runs} runs; "
            f"{sum(failing)} of {len(failing)} methods shown fail."
        )


def print_report(console: Console, report: Report) -> None:
    """Print the tables; below them, why a row fails, and every promise that does not hold."""
    tables: tuple[tuple[tuple[str, ...], Sequence[Any], Callable[..., tuple[str, ...]], str], ...] = (
        (_COLUMNS, report.rows, _cells, _LEGEND),
        (SDE_COLUMNS, report.sde_rows, SdeRow.cells, SDE_LEGEND),
        (FAULT_COLUMNS, report.fault_rows, FaultRow.cells, FAULT_LEGEND),
    )
    for columns, rows, cells, legend in tables:
        if rows:
            _print_table(console, columns, [(row.problem, cells(row, "  "), row.failing) for row in rows], legend)
    shown: tuple[Row | FaultRow, ...] = (*report.rows, *report.fault_rows)
    failing = [f"{row.problem}, {row.backend} {row.method}: {row.note}" for row in shown if row.failing]
    for line in (*failing, *(f"broken: {check.promise}: {_sentence(check)}" for check in report.broken)):
        console.print(line, style="red", highlight=False, markup=False, soft_wrap=True)
    console.print(report.summary, highlight=False)


def _print_table(
    console: Console, columns: tuple[str, ...], lines: list[tuple[str, tuple[str, ...], bool]], legend: str
) -> None:
    """Print lines of (problem, cells, failing) by problem."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True)
    for problem, group in groupby(lines, key=lambda line: line[0]):
        table.add_row(problem, style="bold")
        for _, cells, failing in group:
            table.add_row(*cells, style="red" if failing else "")
        table.add_section()
    console.print(table)
    console.print(f"\n{legend}\n", highlight=False)


def write_report(folder: Path, report: Report) -> list[Path]:
    """Write `parity.json`, `parity.md` and the plots into `folder`; return the files."""
    data, markdown = folder / "parity.json", folder / "parity.md"
    data.write_text(json.dumps(as_data(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    figures = plots.draw_all(folder, report.comparison) + sde_plot.draw(folder, report.series)
    markdown.write_text(as_markdown(report, figures), encoding="utf-8")
    return [data, markdown, *figures]


def as_data(report: Report) -> dict[str, Any]:
    """Return the whole report as plain data; numbers that are not finite become None."""
    outcome = report.comparison.outcome
    runs = []
    for run in outcome.runs:
        entry = {**run.to_json(), "reference_error": report.comparison.reference_error(run)}
        entry["steps"] = max(len(entry.pop("grid")) - 1, 0)
        # Of a given grid, what tells it from others.
        entry["case"]["grid"] = hashlib.sha256(repr(run.case.grid).encode()).hexdigest()[:12] if run.case.grid else ""
        runs.append(entry)
    return finite_only(
        {
            "format": 2,
            "command": shlex.join(["steptape", *sys.argv[1:]]),
            "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "steptape": version("steptape"),
            "machine": {"platform": platform.platform(), "processors": os.cpu_count()},
            "scope": asdict(outcome.scope),
            "versions": outcome.versions,
            "seconds": report.seconds,
            "rows": [asdict(row) for row in report.rows],
            "sdes": [one.as_data() for one in report.series],
            "faults": [asdict(row) for row in report.fault_rows],
            "promises": [{**asdict(check), "holds": check.holds} for check in report.checks],
            "runs": runs,
            "sde_runs": [run.to_json() for run in outcome.sde_runs],
            "host_runs": [run.to_json() for run in outcome.host_runs],
        }
    )


def finite_only(value: Any) -> Any:
    """Return plain data with None for every number that is not finite."""
    if isinstance(value, dict):
        return {key: finite_only(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_only(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_markdown(report: Report, figures: list[Path]) -> str:
    """Return the report as Markdown, the figures shown by relative links."""
    outcome = report.comparison.outcome
    versions = [f"{name} {number}" for found in outcome.versions.values() for name, number in found.items()]
    lines = [
        "# steptape parity",
        "",
        f"steptape {version('steptape')}; {', '.join(dict.fromkeys(versions))}; {platform.platform()}; "
        f"{report.seconds:.0f} s{'; quick' if outcome.scope.quick else ''}.",
        "",
        report.summary,
        "",
        *_markdown_table(
            _PAGE_COLUMNS,
            [(r.problem, *_cells(r), _count(r.parameter_pulls), r.note) for r in report.rows],
            _PAGE_LEGEND,
        ),
        *(["## SDEs on the same Brownian path", ""] if report.sde_rows else []),
        *_markdown_table(("problem", *SDE_COLUMNS), [(r.problem, *r.cells()) for r in report.sde_rows], SDE_LEGEND),
        *(["## Where a host's own gradient is wrong", ""] if report.fault_rows else []),
        *_markdown_table(
            ("problem", *FAULT_COLUMNS, "note"),
            [(r.problem, *r.cells(), r.note) for r in report.fault_rows],
            FAULT_LEGEND,
        ),
        "## Promises",
        "",
        *_promise_lines(report.checks),
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
        lines.append(f"- {promise}: {held} of {len(judged)}{f'; worst {_sentence(worst)}' if worst.error else ''}")
        lines += [f"  - broken: {_sentence(check)}" for check in judged if not check.holds]
    return lines


def _sentence(check: Check) -> str:
    reason = f" ({check.reason})" if check.reason else ""
    figures = f"{check.error:.1e}, allowed {check.limit:.2g}"
    return f"{check.backend}, {check.problem}, {check.setting}: {figures}{reason}"


def _cells(row: Row, indent: str = "") -> tuple[str, ...]:
    counts = (row.forward_evaluations, row.backward_evaluations)
    errors = (row.host_error, row.reference_error, row.grid_error, row.adaptive_error)
    return (
        f"{indent}{row.backend} {row.method}",
        *("" if error is None else f"{error:.1e}" for error in errors),
        "" if None in counts else "{}+{}".format(*counts),
        row.status,
    )


def _count(number: int | None) -> str:
    return "" if number is None else str(number)


def _markdown_table(columns: tuple[str, ...], rows: list[tuple[str, ...]], legend: str) -> list[str]:
    """Return the lines of a table with its legend, none where it has no rows."""
    if not rows:
        return []
    return [markdown_table(columns, rows), "", legend, ""]


def markdown_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table, its cells as they are and not filled up to one width."""
    cells = [[cell.replace("|", "/") for cell in row] for row in rows]
    return tabulate(cells, columns, tablefmt="github", stralign=None, disable_numparse=True)
