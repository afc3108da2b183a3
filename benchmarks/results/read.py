"""What the measurements left in a folder: their files, the commands that make these, the machine they ran on."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks import jsonl

SECOND = "second-pass"  # the folder of a second pass, in that of the first


@dataclasses.dataclass(frozen=True)
class Source:
    """A file of results. ``command`` makes it, and is the code at ``script`` in the repository."""

    file: str
    command: str
    script: str


SOURCES = {
    "torch_speed": Source("torch_speed.json", "python -m benchmarks.torch_speed", "benchmarks/torch_speed.py"),
    "sde_speed": Source("sde_speed.json", "python -m benchmarks.sde_speed", "benchmarks/sde_speed.py"),
    "jax_speed": Source("jax_speed.json", "python -m benchmarks.jax_speed", "benchmarks/jax_speed.py"),
    "jax_memory": Source("jax_memory.json", "python -m benchmarks.jax_memory", "benchmarks/jax_memory.py"),
    "jax_scaling": Source("jax_scaling.json", "python -m benchmarks.jax_scaling", "benchmarks/jax_scaling.py"),
    "curves": Source("curves.jsonl", "python -m benchmarks.curves", "benchmarks/curves"),
    "papers": Source("papers.jsonl", "python -m benchmarks.papers", "benchmarks/papers"),
    "tasks": Source("tasks.jsonl", "python -m benchmarks.tasks", "benchmarks/tasks"),
    "parity": Source("parity.json", "steptape parity --out benchmark-report", "shared_tests/parity/promises.py"),
}
_PLACES = ("processor ", "system ", "Linux-", "macOS-", "Windows-")


@dataclasses.dataclass(frozen=True)
class Results:
    """A folder of results, of which any may be missing."""

    folder: Path

    def has(self, name: str) -> bool:
        """Whether the file of a source is there."""
        return (self.folder / SOURCES[name].file).exists()

    def data(self, name: str) -> dict[str, Any]:
        """A JSON file, empty if it is missing."""
        return json.loads(self._text(SOURCES[name].file) or "{}")

    def lines(self, name: str) -> list[dict[str, Any]]:
        """A file of JSON lines, empty if it is missing."""
        return jsonl.read(self.folder / SOURCES[name].file)

    def _text(self, file: str) -> str:
        path = self.folder / file
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def experiment(self, name: str) -> list[dict[str, Any]] | None:
        """The rows of one of the papers' experiments, or None where cells of it are missing."""
        cells = {entry["cell"]: entry["rows"] for entry in self.lines("papers") if entry["experiment"] == name}
        wanted = importlib.import_module(f"benchmarks.papers.{name}").run(False)
        return [row for cell in wanted for row in cells[cell]] if set(wanted) <= set(cells) else None

    def environment(self, name: str) -> tuple[str, str]:
        """Processor and system, and versions, of the machine that a file was made on, as far as it is noted."""
        noted = [part.strip() for part in ", ".join(self._noted(name)).split(", ")]
        places = [part for part in noted if part.startswith(_PLACES)]
        versions = [part for part in noted if part not in places and not part.endswith("not installed")]
        return ", ".join(dict.fromkeys(map(_place, places))), ", ".join(dict.fromkeys(map(_version, versions)))

    def _noted(self, name: str) -> list[str]:
        if name == "curves":
            return [entry["rows"][0]["machine"] for entry in self.lines(name) if entry["part"] == "machine"]
        if name in ("papers", "tasks"):
            head = self._text(f"{name}.md").partition("\n## ")[0]
            return [f"{key} {value}" for key, value in re.findall(r"^- (\w+): (.+)$", head, re.MULTILINE)]
        data = self.data(name)
        if name == "parity":
            versions = (f"{key} {value}" for found in data["versions"].values() for key, value in found.items())
            return [data["machine"]["platform"], f"steptape {data['steptape']}", *versions]
        machine = data["machine"]
        return [machine] if isinstance(machine, str) else [f"{key} {value}" for key, value in machine.items()]

    def command(self, name: str) -> str:
        """The command as it was given, without the folder of its results. Files that grow have several: the whole."""
        given = "" if SOURCES[name].file.endswith(".jsonl") else self.data(name).get("command", "")
        return re.sub(r" --out[= ]\S+", "", given) or SOURCES[name].command

    def again(self) -> list[str]:
        """The sources of which there was a second pass."""
        return [name for name in SOURCES if Results(self.folder / SECOND).has(name)]

    def days(self, name: str) -> list[str]:
        """The days, in UTC, on which the files of its passes were last written to."""
        files = [folder / SOURCES[name].file for folder in (self.folder, self.folder / SECOND)]
        written = [file.stat().st_mtime for file in files if file.exists()]
        return sorted({datetime.fromtimestamp(at, timezone.utc).date().isoformat() for at in written})

    def environments(self) -> Iterator[tuple[str, list[str], str, str]]:
        """Command, days, machine and versions of every file that is there."""
        for name in SOURCES:
            if self.has(name):
                yield (self.command(name), self.days(name), *self.environment(name))


def _place(noted: str) -> str:
    """A processor or system, of the latter's name not what only tells one build of it from the next."""
    name = re.sub(r"^(processor|system) ", "", noted)
    found = re.match(r"Linux-(\d+\.\d+).*-(x86_64|aarch64)", name)
    return f"Linux {found[1]} {found[2]}" if found else name


def _version(noted: str) -> str:
    return re.sub("^python ", "Python ", noted)
