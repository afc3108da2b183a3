"""The measurements as Markdown, to read, and as JSON, to keep."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Speed
from benchmarks.memory import Memory
from benchmarks.peers import METHODS
from benchmarks.targets import Target


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything that one run of the command found."""

    command: str
    machine: dict[str, str]
    speeds: Sequence[Speed]
    memories: Sequence[Memory]
    targets: Sequence[Target]

    def write(self, folder: Path) -> list[Path]:
        """Write both files into a folder, made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / "torch_speed.json", folder / "torch_speed.md"]
        files[0].write_text(json.dumps(self._entries(), indent=1) + "\n", encoding="utf-8")
        files[1].write_text(self.markdown(), encoding="utf-8")
        return files

    def markdown(self) -> str:
        """All tables."""
        parts = ["# Time and memory of gradients through torchdiffeq", "", f"`{self.command}`", ""]
        parts += [f"- {name}: {value}" for name, value in self.machine.items()]
        if self.speeds:
            parts += ["", "## Forward and backward, one thread", "", *_speeds(self.speeds)]
        if self.memories:
            parts += ["", "## Memory", "", *_memories(self.memories)]
        notes = [f"- {method.name}: {method.note}" for method in METHODS if method.note]
        parts += ["", "## Targets", "", *_targets(self.targets), "", "## Notes", "", *notes]
        return "\n".join(parts) + "\n"

    def _entries(self) -> dict[str, Any]:
        tables = {name: getattr(self, name) for name in ("speeds", "memories", "targets")}
        rows = {name: [dataclasses.asdict(row) for row in table] for name, table in tables.items()}
        for row, target in zip(rows["targets"], self.targets, strict=True):
            row["met"] = target.met
        return {"command": self.command, "machine": self.machine, **rows}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    rows = [head, *rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _by_setup(rows: Sequence[Any]) -> Iterator[tuple[str, list[Any]]]:
    for setup in dict.fromkeys(row.setup for row in rows):
        yield setup, [row for row in rows if row.setup == setup]


def _speeds(rows: Sequence[Speed]) -> Iterator[str]:
    yield (
        "Ratio: processor time over that of odeint's back-propagation, median (least to most) of interleaved rounds. "
        "Error: of the gradient, relative, against float64 at 1e-12; continuous adjoints and back-propagation differ "
        "in it."
    )
    head = ("method", "ratio", "forward ms", "backward ms", "evaluations", "error")
    for setup, group in _by_setup(rows):
        accepted = next((row.accepted for row in group if row.accepted), 0)
        yield from ("", f"### {setup}", "", f"{group[0].problem}; {accepted} accepted steps of the host.", "")
        yield from _table(head, (_speed_cells(row) for row in group))


def _speed_cells(row: Speed) -> tuple[str, ...]:
    if row.without:
        return (row.method, row.without, "", "", "", "")
    return (
        row.method,
        f"{row.ratio:.2f} ({row.spread[0]:.2f} to {row.spread[1]:.2f})",
        f"{row.seconds[0] * 1e3:.1f}",
        f"{row.seconds[1] * 1e3:.1f}",
        f"{row.evaluations[0]} + {row.evaluations[1]}",
        f"{row.error:.1e}",
    )


def _memories(rows: Sequence[Memory]) -> Iterator[str]:
    yield (
        "Held: allocated when the forward pass returns, the solution included, in multiples of the state. Backward: "
        "the most allocated above that in the backward pass, likewise. Peak: of the process's resident memory above "
        "its base, one fresh process a method, where glibc returns freed tensors at once "
        "(MALLOC_MMAP_THRESHOLD_=65536); seconds are the wall's there."
    )
    head = ("method", "held, states", "backward, states", "peak MiB", "seconds", "evaluations")
    for setup, group in _by_setup(rows):
        accepted = next((row.accepted for row in group if row.accepted), 0)
        yield from ("", f"### {setup}", "", f"{group[0].problem}; {accepted} accepted steps of the host.", "")
        yield from _table(head, (_memory_cells(row) for row in group))


def _memory_cells(row: Memory) -> tuple[str, ...]:
    if row.without:
        return (row.method, row.without, "", "", "", "")
    return (
        row.method,
        f"{row.held / row.state:.1f}",
        f"{row.backward / row.state:.1f}" if row.backward else "",
        f"{row.rss / 2**20:.0f}",
        f"{row.seconds:.2f}",
        f"{row.evaluations[0]} + {row.evaluations[1]}",
    )


def _targets(targets: Sequence[Target]) -> list[str]:
    head = ("target", "measured", "aim", "")
    return _table(
        head,
        (
            (
                target.what,
                f"{target.measured:.2f}",
                f"{'>=' if target.at_least else '<='} {target.bound:g}",
                "met" if target.met else "not met",
            )
            for target in targets
        ),
    )
