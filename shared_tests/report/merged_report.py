"""Writes merged parity reports into a folder: Markdown, JSON and one HTML page with the plots inside."""

import io
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from steptape.shared_tests.parity.versions import Merged
from steptape.shared_tests.report import html
from steptape.shared_tests.report.report import finite_only, markdown_table
from steptape.shared_tests.report.version_tables import reference_rows, tables

_TITLE = "steptape: every version"
_MARKERS = "os^vD<>pP*XhH"
_ROUNDING = 1e-17


def write(folder: Path, merged: Merged, command: str) -> list[Path]:
    """Write `versions.json`, `versions.md`, `versions.html` and the plots; return the files."""
    figures = {description: _png(figure) for description, figure in _draw(merged).items()}
    images = [folder / f"{description.replace(' ', '-')}.png" for description in figures]
    for image, data in zip(images, figures.values(), strict=True):
        image.write_bytes(data)
    paragraphs = [merged.summary, *(f"Broken: {sentence}." for sentence in merged.broken), f"Made by: {command}"]
    contents = {
        "versions.json": json.dumps(_as_data(merged, command), indent=1, allow_nan=False) + "\n",
        "versions.md": _as_markdown(merged, paragraphs, images),
        "versions.html": html.page(_TITLE, paragraphs, tables(merged), figures),
    }
    for name, text in contents.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [*(folder / name for name in contents), *images]


def _as_data(merged: Merged, command: str) -> dict[str, Any]:
    return {
        "format": 1,
        "command": command,
        "platform": platform.platform(),
        "summary": merged.summary,
        "broken": merged.broken,
        "tables": finite_only([asdict(table) for table in tables(merged)]),
    }


def _as_markdown(merged: Merged, paragraphs: list[str], images: list[Path]) -> str:
    lines = [f"# {_TITLE}", ""]
    for paragraph in paragraphs:
        lines += [paragraph, ""]
    for table in tables(merged):
        rows = [tuple(map(html.text_of, row)) for row in table.rows]
        lines += [f"## {table.title}", "", table.legend, "", markdown_table(table.columns, rows), ""]
    for image in images:
        lines += [f"![{image.stem}]({image.name})", ""]
    return "\n".join(lines)


def _draw(merged: Merged) -> dict[str, Any]:
    """Return the figures by their description."""
    figures = {}
    if merged.pairs:
        figures["differences on the same steps"] = _draw_pairs(merged)
    if any(_errors(merged).values()):
        figures["errors against the reference"] = _draw_errors(_errors(merged))
    return figures


def _draw_pairs(merged: Merged) -> Any:
    figure, axis = plt.subplots(figsize=(9, 0.45 * len(merged.pairs) + 1.6), layout="constrained")
    for place, pair in enumerate(merged.pairs):
        axis.plot(max(pair.difference, _ROUNDING), place, "o", color="#0072B2" if pair.agrees else "#D55E00")
        axis.plot(pair.limit, place, "|", color="#000000", markersize=12)
    names = [f"{pair.one.name}\n{pair.other.name}" for pair in merged.pairs]
    axis.set_yticks(range(len(names)), names, fontsize=6)
    axis.set(xscale="log", xlabel="largest relative difference of the gradients; the bar is what is allowed")
    axis.set_title("Each version against each other, on the same steps")
    axis.grid(alpha=0.3, axis="x")
    return figure


def _errors(merged: Merged) -> dict[str, dict[str, float]]:
    """Return ACA's errors against the reference by version and problem."""
    errors: dict[str, dict[str, float]] = {}
    for row in reference_rows(merged):
        problem, method, version, error, _ = row
        if method == "aca" and isinstance(error, float):
            errors.setdefault(str(version), {})[str(problem)] = error
    return errors


def _draw_errors(errors: dict[str, dict[str, float]]) -> Any:
    problems = sorted({problem for found in errors.values() for problem in found})
    figure, axis = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for index, (version, found) in enumerate(errors.items()):
        shift = 0.6 * (index / max(len(errors) - 1, 1) - 0.5)
        places = [problems.index(problem) + shift for problem in found]
        axis.plot(places, list(found.values()), _MARKERS[index % len(_MARKERS)], label=version, markersize=5)
    axis.set_xticks(range(len(problems)), [problem.replace("_", " ") for problem in problems])
    axis.set(yscale="log", ylabel="relative gradient error (y0, params)")
    axis.set_title("aca against the reference, each version on its own steps")
    axis.grid(alpha=0.3, axis="y")
    axis.legend(fontsize=7)
    return figure


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, dpi=130)
    plt.close(figure)
    return file.getvalue()
