"""A report as one HTML page that needs nothing else: images inside, tables sorted by a click, no request made."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A titled table; a float is shown with two digits, None as nothing."""

    title: str
    legend: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]


def text_of(cell: Cell) -> str:
    """Return what a cell shows."""
    if cell is None:
        return ""
    return f"{cell:.1e}" if isinstance(cell, float) else str(cell)


def page(title: str, paragraphs: Sequence[str], tables: Sequence[Table], images: dict[str, bytes]) -> str:
    """Return the page; `images` are PNG files by their description."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters["shown"] = text_of
    sources = {name: f"data:image/png;base64,{base64.b64encode(data).decode()}" for name, data in images.items()}
    template = environment.get_template("page.html.j2")
    return template.render(title=title, paragraphs=paragraphs, tables=tables, images=sources)
