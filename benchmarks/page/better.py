"""Where a peer is better: by measurement and peer, on how many problems it takes less than the replay, and how much."""

from __future__ import annotations

from benchmarks.envelope import Results, Rows
from benchmarks.page import text
from benchmarks.page.ratios import ratios

_NAMES = {("tasks", "default"): "adjoint", ("tasks", "seminorm"): "adjoint, seminorm"}
KINDS, MARGIN = ("time", "memory", "error"), 0.01


def better(results: Results, measurement: str) -> Rows:
    """A row a peer and kind; ``least``: what they are ordered by."""
    found = [ratio for ratio in ratios(results) if ratio.source == measurement]
    ours = {ratio.place: ratio.value for ratio in found if ratio.side == "ours"}
    groups: dict[tuple[str, str, str], list[float]] = {}
    for ratio in found:
        if ratio.side == "peer" and ratio.place in ours:
            name = _NAMES.get((ratio.source, ratio.way), ratio.way)
            groups.setdefault((ratio.kind, name, ratio.script), []).append(ratio.value / ours[ratio.place])
    rows = []
    for (kind, name, script), quotients in groups.items():
        below = [x for x in quotients if x < 1 - MARGIN]
        if below:
            row = {"less of": kind, "peer": name, "in": f"{len(below)} of {len(quotients)}"}
            row["takes of ours, median (least to most) of these"] = text.spread(below)
            rows.append({**row, "script": script, "least": min(below)} if script else {**row, "least": min(below)})
    return rows
