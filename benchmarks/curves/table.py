"""The report: the time at equal error, the exponents of growth, and what they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.curves import cases, fits, plot
from benchmarks.curves.store import Entry, Row
from benchmarks.markdown import table

ERRORS = (1e-5, 1e-7)
OURS = "steptape"
_NOTES = """Times are processor time on one thread, of a forward and a backward pass together, medians of interleaved
rounds. Bytes held: in PyTorch those that malloc has given out and not got back between the two passes, with the nodes
of the graph, which outweigh its tensors where the state is small; in JAX the temporary memory of the compiled value and
gradient by XLA's account, forward and backward pass together. The bytes of the two frameworks are not comparable.
Error: of the gradient in y0 and the parameters, relative, in the Euclidean norm."""
_PRECISION = """Dormand and Prince's method of order 5 at tolerances from 1e-3 to 1e-9. "Time at error": where the line
through a way's points reaches that error for good, over the time at which the host's back-propagation does: below 1 is
faster. "Not reached": not at the tightest tolerance. In JAX `max_steps` is, for all ways, the smallest power of two
that the tries of the forward solve fit in."""
_SCALING = """Each cell is time and bytes held. "Growth" is the exponent p of size^p, by least squares on the logarithms
of the last points, as many as the brackets say: of the time and of the bytes. In PyTorch the steps are fixed ones of
rk4 along the axis of steps, but for quadrature, which needs an adaptive solver: Dormand and Prince's with its steps
limited to that size, as along the other axes. In JAX they are Dormand and Prince's, fixed."""

_TIMES = ((1.0, "s"), (1e-3, "ms"))
_BYTES = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"))

Curves = dict[str, list[tuple[float, Row]]]


def write(entries: Sequence[Entry], command: str, file: Path) -> Path:
    """Write the Markdown, and the plots beside it."""
    lines = ["# Work and precision, and growth with size", "", f"`{command}`", "", *_NOTES.splitlines(), ""]
    for backend in dict.fromkeys(entry["backend"] for entry in entries):
        lines += _backend(backend, [entry for entry in entries if entry["backend"] == backend], file)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def _backend(backend: str, entries: Sequence[Entry], file: Path) -> Iterator[str]:
    machine = next((entry["rows"][0]["machine"] for entry in entries if entry["part"] == "machine"), "")
    seconds = sum(entry["seconds"] for entry in entries)
    yield from (f"## {backend}", "", f"{machine}. Processor time of these measurements: {seconds:.0f} s.", "")
    parts: tuple[tuple[str, Callable[..., Iterator[str]]], ...] = (("precision", _precision), ("scaling", _scaling))
    for part, write_part in parts:
        panels = curves([entry for entry in entries if entry["part"] == part])
        if panels:
            image = file.with_name(f"{file.stem}-{part}-{backend}.png")
            plot.draw(part, panels, image)
            yield from (*write_part(panels), f"![{part}, {backend}]({image.name})", "")


def curves(entries: Sequence[Entry]) -> dict[str, Curves]:
    """By problem or axis, and way: (size, row), from loose to tight or from small to large."""
    panels: dict[str, Curves] = {}
    for entry in sorted(entries, key=lambda entry: -entry["size"] if entry["part"] == "precision" else entry["size"]):
        for row in entry["rows"]:
            panels.setdefault(entry["name"], {}).setdefault(row["way"], []).append((entry["size"], row))
    order = [*cases.PROBLEMS, *(axis.name for axis in cases.AXES)]
    return dict(sorted(panels.items(), key=lambda item: order.index(item[0])))


def _precision(panels: dict[str, Curves]) -> Iterator[str]:
    yield from ("### Work and precision", "", *_PRECISION.splitlines(), "")
    yield "Faster at equal error than every way of steptape's:"
    yield from ("", *(_faster(panels) or ["- none"]), "")
    ways = list(dict.fromkeys(way for panel in panels.values() for way in panel))
    for error in ERRORS:
        yield from (f"Time at error {error:g}, relative to {ways[0]}:", "")
        rows = [(way, *(_relative(panel, way, ways[0], error) for panel in panels.values())) for way in ways]
        yield from (*table(("", *panels), rows), "")
    for name, panel in panels.items():
        yield from (f"#### {name}", "", *_points(panel), "")


def _faster(panels: dict[str, Curves]) -> list[str]:
    """Where a way that is not ours is the fastest, a line for each problem and error."""
    lines = []
    for name, panel in panels.items():
        for error in ERRORS:
            found = {way: fits.at_error(_errors(points), error) for way, points in panel.items()}
            seconds = sorted((value, way) for way, value in found.items() if not isinstance(value, str))
            ours = next((value for value, way in seconds if way.startswith(OURS)), None)
            others = [f"{way} ({value / ours:.2f})" for value, way in seconds if ours and value < ours]
            if others:
                lines.append(f"- {name}, {error:g}: {', '.join(others)}, of the time of the fastest of ours")
    return lines


def _relative(panel: Curves, way: str, host: str, error: float) -> str:
    mine, its = (fits.at_error(_errors(panel.get(who, [])), error) for who in (way, host))
    if isinstance(mine, str):
        return mine
    if isinstance(its, str):
        return f"{mine * 1e3:.2g} ms, the host's {its}"
    return f"{mine / its:.2f}"


def _errors(points: Sequence[tuple[float, Row]]) -> list[tuple[float, float]]:
    return [(row.get("error", float("nan")), row.get("seconds", float("nan"))) for _, row in points]


def _points(panel: Curves) -> Iterator[str]:
    sizes = list(dict.fromkeys(size for points in panel.values() for size, _ in points))
    yield "Error, ms, evaluations forward + backward, KiB held:"
    yield ""
    cells = [(way, *(_point(dict(points).get(size)) for size in sizes)) for way, points in panel.items()]
    yield from table(("tolerance", *(f"{size:g}" for size in sizes)), cells)


def _point(row: Row | None) -> str:
    if row is None:
        return ""
    if "without" in row:
        return row["without"]
    forward, backward = row["evaluations"]
    evaluations = f"{forward}" if backward is None else f"{forward} + {backward}"
    return f"{row['error']:.1e}, {row['seconds'] * 1e3:.3g}, {evaluations}, {_kib(row['held'])}"


def _kib(held: Any) -> str:
    return "?" if held is None else f"{held / 1024:.3g}"


def _scaled(value: float | None, units: Sequence[tuple[float, str]]) -> str:
    """To three digits, in the largest unit that is not larger."""
    if value is None:
        return "?"
    unit, name = next((unit for unit in units if value >= unit[0]), units[-1])
    return f"{value / unit:.3g} {name}"


def _scaling(panels: dict[str, Curves]) -> Iterator[str]:
    yield from ("### Growth with size", "", *_SCALING.splitlines(), "")
    for axis in cases.AXES:
        if axis.name in panels:
            yield from (f"#### {axis.name}", "", f"Columns: {axis.text}.", "", *_sizes(panels[axis.name]), "")


def _sizes(panel: Curves) -> Iterator[str]:
    sizes = list(dict.fromkeys(size for points in panel.values() for size, _ in points))
    cells = []
    for way, points in panel.items():
        growth = [_growth(points, what) for what in ("seconds", "held")]
        cells.append((way, *(_size(dict(points).get(size)) for size in sizes), *growth))
    yield from table(("", *(f"{size:,g}" for size in sizes), "growth, time", "growth, bytes"), cells)


def _growth(points: Sequence[tuple[float, Row]], what: str) -> str:
    fit = fits.exponent([size for size, _ in points], [row.get(what) for _, row in points])
    return "" if fit is None else f"{fit[0]:.2f} ({fit[1]})"


def _size(row: Row | None) -> str:
    if row is None:
        return ""
    return row["without"] if "without" in row else f"{_scaled(row['seconds'], _TIMES)}, {_scaled(row['held'], _BYTES)}"
