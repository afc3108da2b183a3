"""The results as Markdown, and one plot of the backward evaluations."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.markdown import table
from benchmarks.measure import machine
from benchmarks.tasks.data import TASKS
from benchmarks.tasks.measure import MATCHED, METHODS, Row

_NOTES = """Evaluations: of the vector field, totals over the training run; the backward ones with, in brackets, how
many of them were pulled back to the parameters too, where fewer are. Milliseconds: of processor time, for one gradient
on the first batch, on one thread, the median of interleaved rounds. Error: of that gradient, relative, against one at
1e-11. Parameters: the field's, and their share of the channels (y, a, parameters) that the default norm looks at; for
the CDE in JAX the coefficients of the path are among them besides. "quadrature, atol x n": the quadrature adjoint
solves for a cotangent whose largest entry is 1, the hosts for that of the mean of n examples; with n times the absolute
tolerance, n the batch, it is held to the same."""

_COMPARED = (("seminorm", "default"), ("quadrature", "seminorm"), (MATCHED, "seminorm"), ("aca", "seminorm"))

Group = tuple[str, str, float, float]
Groups = dict[Group, dict[str, Row]]


def write(rows: Sequence[Row], command: str, folder: Path) -> Path:
    """Write both into a folder, and return the Markdown."""
    groups = _groups(rows)
    lines = ["# The seminorm paper's tasks at small scale", "", f"`{command}`", "", *_NOTES.splitlines(), ""]
    lines += [*(f"- {name}: {value}" for name, value in machine().items()), ""]
    lines += [*_comparison(groups), ""]
    for backend, task in dict.fromkeys(key[:2] for key in groups):
        lines += ["", *_task(backend, task, [group for key, group in groups.items() if key[:2] == (backend, task)])]
    file = folder / "tasks.md"
    file.write_text("\n".join([*lines, "", "![Backward evaluations](tasks.png)"]) + "\n", encoding="utf-8")
    _plot(groups, folder / "tasks.png")
    return file


def _groups(rows: Iterable[Row]) -> Groups:
    groups: Groups = {}
    for row in rows:
        groups.setdefault((row.backend, row.task, row.rtol, row.atol), {})[row.method] = row
    tasks, order = list(TASKS), METHODS.index
    places = sorted(groups, key=lambda key: (key[0] != "torch", tasks.index(key[1]), -key[2]))
    return {key: dict(sorted(groups[key].items(), key=lambda item: order(item[0]))) for key in places}


def _task(backend: str, task: str, groups: Sequence[dict[str, Row]]) -> Iterator[str]:
    first = next(iter(groups[0].values()))
    share = first.parameters / (first.parameters + 2 * first.channels)
    yield f"## {task}, {backend}"
    yield ""
    yield (
        f"{first.parameters} parameters ({share:.0%} of the channels), a state of {first.channels}, "
        f"{first.steps} training steps."
    )
    yield ""
    head = ("rtol, atol", "method", "forward", "backward", "ms", "error", "last loss", f"test {first.measure}")
    yield from table(head, (_cells(row) for group in groups for row in group.values()))


def _cells(row: Row) -> tuple[str, ...]:
    tolerance = f"{row.rtol:g}, {row.atol:g}"
    if row.failed:
        return tolerance, row.method, row.failed, "", "", "", "", ""
    pulled = f" ({row.pullbacks})" if row.pullbacks is not None and row.pullbacks < row.backward else ""
    numbers = f"{row.seconds * 1e3:.0f}", f"{row.error:.1e}", f"{row.loss:.4f}", f"{row.score:.4f}"
    return tolerance, row.method, f"{row.forward}", f"{row.backward}{pulled}", *numbers


def _comparison(groups: Groups) -> Iterator[str]:
    """How the methods compare, cell by cell, and the median, best and worst of each framework."""
    yield "Changes in backward evaluations / in time / in the error of the gradient:"
    yield ""
    lines: list[tuple[str, ...]] = []
    for backend in dict.fromkeys(key[0] for key in groups):
        found = {key: _ratios(group) for key, group in groups.items() if key[0] == backend}
        for key, ratios in found.items():
            lines.append((backend, key[1], f"{key[2]:g}", *map(_changes, ratios)))
        for name, reduce in (("median", statistics.median), ("best", min), ("worst", max)):
            columns = ([ratio for ratio in column if ratio] for column in zip(*found.values(), strict=True))
            reduced = ([reduce(what) for what in zip(*column, strict=True)] for column in columns)
            lines.append((backend, f"**{name}**", "", *map(_changes, reduced)))
    yield from table(("", "task", "rtol", *(f"{one} over {other}" for one, other in _COMPARED)), lines)


def _ratios(group: dict[str, Row]) -> list[Sequence[float]]:
    """For each comparison those of backward evaluations, seconds and errors, or nothing."""
    able = {method: row for method, row in group.items() if not row.failed}
    pairs = [(able.get(one), able.get(other)) for one, other in _COMPARED]
    return [
        (a.backward / b.backward, a.seconds / b.seconds, a.error / b.error) if a and b and b.seconds else ()
        for a, b in pairs
    ]


def _changes(ratios: Iterable[float]) -> str:
    return " / ".join(f"{ratio - 1:+.0%}" if ratio < 2 else f"x{ratio:.1f}" for ratio in ratios)


def _plot(groups: Groups, file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    panels = list(dict.fromkeys(key[:2] for key in groups))
    columns = max(1, max(sum(p[0] == backend for p in panels) for backend, _ in panels))
    backends = list(dict.fromkeys(backend for backend, _ in panels))
    figure, axes = pyplot.subplots(len(backends), columns, figsize=(3 * columns, 3 * len(backends)), squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for backend, task in panels:
        place = [t for b, t in panels if b == backend].index(task)
        axis = axes[backends.index(backend)][place]
        axis.set_visible(True)
        mine = {key[2]: group for key, group in groups.items() if key[:2] == (backend, task)}
        for n, method in enumerate(METHODS):
            heights = [g[method].backward / g[method].steps if method in g else 0 for g in mine.values()]
            axis.bar([i + 0.16 * (n - 2) for i in range(len(mine))], heights, 0.16, label=method)
        axis.set_xticks(range(len(mine)), [f"{rtol:g}" for rtol in mine])
        axis.set_title(f"{task}, {backend}", fontsize=9)
        axis.set_xlabel("rtol")
    axes[0][0].set_ylabel("backward evaluations a gradient")
    figure.tight_layout(rect=(0, 0.1 / len(backends), 1, 1))
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=len(METHODS), fontsize=9)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
