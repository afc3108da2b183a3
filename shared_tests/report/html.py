"""A report as one HTML page that needs nothing else: images inside, tables sorted by a click, no request made."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

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
    parts = [f"<h1>{html.escape(title)}</h1>"]
    parts += [f"<p>{html.escape(text)}</p>" for text in paragraphs]
    parts += [_table(table) for table in tables]
    for description, data in images.items():
        source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        parts.append(f'<img src="{source}" alt="{html.escape(description)}">')
    return _PAGE.format(title=html.escape(title), style=_STYLE, body="\n".join(parts), script=_SCRIPT)


def _table(table: Table) -> str:
    head = "".join(f'<th tabindex="0" aria-sort="none">{html.escape(name)}</th>' for name in table.columns)
    rows = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    return (
        f"<h2>{html.escape(table.title)}</h2>\n<p>{html.escape(table.legend)}</p>\n"
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>"
    )


def _cell(cell: Cell) -> str:
    kind = ' class="n"' if isinstance(cell, (int, float)) else ""
    value = f' data-value="{cell!r}"' if isinstance(cell, (int, float)) else ""
    return f"<td{kind}{value}>{html.escape(text_of(cell))}</td>"


# The policy makes the browser itself refuse every request.
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>{style}</style></head>
<body>
{body}
<script>{script}</script>
</body></html>
"""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .2rem .7rem; text-align: left; border-bottom: 1px solid #ddd; }
th { cursor: pointer; user-select: none; border-bottom: 2px solid #888; white-space: nowrap; }
th[aria-sort=ascending]::after { content: " \\25B2"; } th[aria-sort=descending]::after { content: " \\25BC"; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
img { max-width: 100%; }
"""

_SCRIPT = """
"use strict";
// Numbers by value, then text, then empty cells, whichever way the column is sorted.
function compare(a, b, sign) {
  const rank = cell => cell.dataset.value !== undefined ? 0 : cell.textContent ? 1 : 2;
  if (rank(a) !== rank(b)) return rank(a) - rank(b);
  if (rank(a) === 0) return sign * (Number(a.dataset.value) - Number(b.dataset.value));
  return sign * a.textContent.localeCompare(b.textContent, undefined, {numeric: true});
}
function sortBy(th) {
  const table = th.closest("table"), body = table.tBodies[0], sign = th.ariaSort === "ascending" ? -1 : 1;
  for (const other of th.parentNode.cells) other.ariaSort = "none";
  th.ariaSort = sign > 0 ? "ascending" : "descending";
  body.append(...[...body.rows].sort((a, b) => compare(a.cells[th.cellIndex], b.cells[th.cellIndex], sign)));
}
for (const th of document.querySelectorAll("th")) {
  th.addEventListener("click", () => sortBy(th));
  th.addEventListener("keydown", event => { if (event.key === "Enter") sortBy(th); });
}
"""
