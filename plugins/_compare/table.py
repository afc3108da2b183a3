"""The table of a comparison, for a terminal and for a notebook."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence

from steptape._compare.rows import Row, in_bytes, in_seconds

WIDTH = 116
_HEADERS = ("way", "error", "to discrete", "forward", "backward", "time", "held", "peak")
_NONE = "–"


def cells(rows: Sequence[Row]) -> tuple[list[list[str]], list[str]]:
    """The cells of each row, and the words of what failed or was skipped, each once."""
    notes = list(dict.fromkeys(row.why_not for row in rows if row.why_not is not None))
    return [_cells(row, notes) for row in rows], notes


def _cells(row: Row, notes: list[str]) -> list[str]:
    if row.why_not is not None:
        return [row.way, f"{row.why_not.partition(':')[0]} ({notes.index(row.why_not) + 1})", *[""] * 6]
    return [
        row.way,
        _NONE if row.error is None else f"{row.error:.1e}",
        _NONE if row.difference is None else f"{row.difference:.1e}",
        _NONE if row.evaluations_forward is None else str(row.evaluations_forward),
        _NONE if row.evaluations_backward is None else str(row.evaluations_backward),
        _NONE if row.seconds is None else in_seconds(row.seconds),
        _NONE if row.held is None else in_bytes(row.held),
        _NONE if row.peak is None else in_bytes(row.peak),
    ]


def as_text(title: str, rows: Sequence[Row], remarks: Sequence[str]) -> str:
    """Lines of at most ``WIDTH`` characters, where the names of the ways let them be."""
    body, notes = cells(rows)
    told = [*remarks[:-1], *(f"({n}) {note}" for n, note in enumerate(notes, 1)), *remarks[-1:]]
    wrapped = [
        line
        for remark in told
        for line in textwrap.wrap(remark, WIDTH, subsequent_indent="    ", break_on_hyphens=False)
    ]
    return "\n".join([*textwrap.wrap(title, WIDTH), *_aligned(body), *wrapped])


def _aligned(body: Sequence[Sequence[str]]) -> list[str]:
    try:
        from tabulate import tabulate
    except ImportError:
        widths = [max(map(len, column)) for column in zip(_HEADERS, *body, strict=True)]
        lines = [_HEADERS, ["-" * width for width in widths], *body]
        return ["  ".join(_padded(line, widths)).rstrip() for line in lines]
    align = ("left", *["right"] * (len(_HEADERS) - 1))
    text = tabulate(body, _HEADERS, "simple", disable_numparse=True, colalign=align)
    return [line.rstrip() for line in text.splitlines()]


def _padded(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]


def as_html(title: str, rows: Sequence[Row], remarks: Sequence[str], best: Row | None) -> str:
    """A table that a notebook shows, the row of the ``best`` way in bold."""
    body, notes = cells(rows)
    right = ' style="text-align: right"'
    lines = [f"<p>{html.escape(title)}</p>", "<table><thead><tr>"]
    lines += [f"<th>{html.escape(header)}</th>" for header in _HEADERS]
    lines.append("</tr></thead><tbody>")
    for row, line in zip(rows, body, strict=True):
        tag = "th" if row is best else "td"
        first, *others = map(html.escape, line)
        inner = "".join(f"<{tag}{right}>{cell}</{tag}>" for cell in others)
        lines.append(f'<tr><{tag} style="text-align: left">{first}</{tag}>{inner}</tr>')
    lines.append("</tbody></table>")
    told = [*remarks, *(f"({n}) {note}" for n, note in enumerate(notes, 1))]
    lines += [f"<p>{html.escape(remark)}</p>" for remark in told]
    return "\n".join(lines)
