"""The plots that the page shows, in few bytes."""

from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.curves import plot
from benchmarks.envelope import Results, Rows, grouped
from benchmarks.page import curves, papers, tradeoff, training
from benchmarks.page.panels import legend, panels
from benchmarks.papers import experiments
from benchmarks.ways import BASE, TASK_WAYS

LIMIT = 200_000
_COLOURS = (128, 64, 32)


def draw(results: Results, folder: Path) -> None:
    for framework in BASE:
        if results.rows("tradeoff", framework):
            _save(tradeoff.drawn(results, framework), folder / f"tradeoff-{framework}.png")
        for part in ("precision", "scaling"):
            if found := curves.cells(results, framework, part):
                _save(plot.drawn(part, found), folder / f"curves-{part}-{framework}.png")
    if batch := results.rows("jax_scaling", "jax"):
        _save(_batch(batch), folder / "jax_scaling.png", 150)
    if limits := results.rows("jax_max_steps", "jax"):
        _save(_limits(limits), folder / "jax_max_steps.png")
    if any(results.rows("tasks", framework) for framework in BASE):
        _save(_tasks(results), folder / "tasks.png")
    if any(results.rows("training", framework) for framework in BASE):
        training.drawn(results).savefig(folder / "training.svg", metadata={"Date": None})
    for name in experiments.EXPERIMENTS:
        # Imported only where there are results: with them comes the framework.
        if (rows := papers.rows(results, name)) and hasattr(experiments.module(name), "draw"):
            _save(experiments.module(name).draw(rows), folder / f"papers-{name}.png", 120)


def _save(figure: Any, file: Path, dpi: int = 110) -> None:
    figure.savefig(file, dpi=dpi)
    shrink(file)


def shrink(file: Path) -> None:
    """In a palette of ever fewer colours, then in ever fewer points, until it is below the limit."""
    image = Image.open(file).convert("RGB")
    while True:
        for colours in _COLOURS:
            image.quantize(colours, dither=Image.Dither.NONE).save(file, optimize=True)
            if file.stat().st_size < LIMIT:
                return
        image = image.resize((image.width * 4 // 5, image.height * 4 // 5), Image.Resampling.LANCZOS)


def _batch(rows: Rows) -> Any:
    """Time against the longest element's steps, both logarithmic."""
    figure, [[axis]] = panels(1, 1, 6, 4)
    for way, mine in grouped(rows, "{way}").items():
        axis.loglog([row["longest"] for row in mine], [row["seconds"] for row in mine], "o-", label=way)
    axis.set(xlabel="accepted steps of the longest of 256 solves", ylabel="seconds, forward and backward")
    axis.legend()
    return figure


def _limits(rows: Rows) -> Any:
    """Time and memory against ``max_steps``, all logarithmic: a column a batch."""
    batches = grouped(rows, "{batch}")
    figure, axes = panels(2, len(batches), 4 * len(batches), 6, sharex=True)
    for column, (batch, mine) in zip(axes.T, batches.items(), strict=True):
        for way, found in grouped(mine, "{way}").items():
            for axis, (kind, scale) in zip(column, (("seconds", 1e3), ("temporary", 2**-20)), strict=True):
                axis.loglog([row["max_steps"] for row in found], [row[kind] * scale for row in found], "o-", label=way)
        column[0].set_title(batch)
        column[1].set_xlabel("max_steps")
    axes[0][0].set_ylabel("milliseconds, both passes")
    axes[1][0].set_ylabel("MiB")
    axes[0][0].legend()
    return figure


def _tasks(results: Results) -> Any:
    """Backward evaluations a gradient: a row of panels a framework, a group of bars a tolerance."""
    by_task = {framework: grouped(results.rows("tasks", framework), "{task}") for framework in BASE}
    shown = {framework: tasks for framework, tasks in by_task.items() if tasks}
    columns = max(map(len, shown.values()))
    figure, axes = panels(len(shown), columns, 3 * columns, 3 * len(shown))
    for line, (framework, tasks) in zip(axes, shown.items(), strict=True):
        for axis, (task, rows) in zip(line, tasks.items(), strict=False):
            _bars(axis, rows)
            axis.set_title(f"{task}, {framework}", fontsize=9)
        for axis in line[len(tasks) :]:
            axis.set_visible(False)
        line[0].set_ylabel("backward evaluations a gradient")
    legend(figure, len(TASK_WAYS))
    return figure


def _bars(axis: Any, rows: Rows) -> None:
    tolerances = sorted({row["rtol"] for row in rows}, reverse=True)
    found = {(row["rtol"], row["way"]): row["backward"] / row["steps"] for row in rows}
    for n, way in enumerate(TASK_WAYS):
        places = [i + 0.16 * (n - 2) for i in range(len(tolerances))]
        axis.bar(places, [found.get((rtol, way), 0) for rtol in tolerances], 0.16, label=way)
    axis.set_xticks(range(len(tolerances)), [f"{rtol:g}" for rtol in tolerances])
    axis.set_xlabel("rtol")
