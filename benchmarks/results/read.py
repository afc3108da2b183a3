"""What the measurements left in a folder: their files, the commands that make these, the machine they ran on."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any


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
    "parity": Source("parity.json", "steptape parity --out benchmark-report", "shared_tests/promises.py"),
}


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
        return [json.loads(line) for line in self._text(SOURCES[name].file).splitlines()]

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
        if name == "curves":
            machines = (entry["rows"][0]["machine"] for entry in self.lines(name) if entry["part"] == "machine")
            return "", "; ".join(dict.fromkeys(machines))
        if name in ("papers", "tasks"):
            head = self._text(f"{name}.md").partition("\n## ")[0]
            noted: Any = dict(re.findall(r"^- (\w+): (.+)$", head, re.MULTILINE))
        elif name == "parity":
            data = self.data(name)
            noted = {"system": data["machine"]["platform"], "steptape": data["steptape"]}
            noted |= {key: version for versions in data["versions"].values() for key, version in versions.items()}
        else:
            noted = self.data(name)["machine"]
        if isinstance(noted, str):
            system, *versions = noted.split(", ")
            return _system(system), ", ".join(versions)
        places = [noted.pop("processor", ""), _system(noted.pop("system", ""))]
        found = (f"{key} {version}" for key, version in noted.items() if version != "not installed")
        return ", ".join(filter(None, places)), ", ".join(found).replace("python ", "Python ", 1)

    def command(self, name: str) -> str:
        """The command as it was given, without the folder of its results. Files that grow have several: the whole."""
        given = "" if SOURCES[name].file.endswith(".jsonl") else self.data(name).get("command", "")
        return re.sub(r" --out[= ]\S+", "", given) or SOURCES[name].command

    def environments(self) -> Iterator[tuple[str, str, str]]:
        """Command, machine and versions of every file that is there."""
        for name in SOURCES:
            if self.has(name):
                yield (self.command(name), *self.environment(name))


def _system(platform: str) -> str:
    """A platform's name without what only tells one build of it from the next."""
    found = re.match(r"Linux-(\d+\.\d+).*-(x86_64|aarch64)", platform)
    return f"Linux {found[1]}, {found[2]}" if found else platform
