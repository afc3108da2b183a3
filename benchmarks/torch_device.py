"""The ways to a gradient in PyTorch on a GPU: ``python -m benchmarks torch_speed --device cuda``, under four minutes.

In float32, by the clock, the device waited for. A set-up's rows go to ``DIR/DEVICE.jsonl`` and, as a table, to stdout.
"""

import dataclasses
import platform
from pathlib import Path

import torch

from benchmarks import timing
from benchmarks.envelope import write
from benchmarks.fields import SPEED, Setup
from benchmarks.machine import versions
from benchmarks.page import text
from benchmarks.peers import METHODS, Method, ours
from benchmarks.runner import note
from benchmarks.torch_speed import raced, reference_gradient
from benchmarks.ways import COMPILED, GRAPHS, HOST, HOST_ADJOINT, OURS
from steptape.torch import record_solves

_NAMES = ("small", "large", "100 outputs")
_BUDGET = f"{OURS}, memory=a quarter of the graphs'"
_ROUNDS = timing.Rounds(7, 3.0)


def run(device: str, folder: Path, only: str = "", rounds: timing.Rounds = _ROUNDS) -> int:
    """Measure, and print the tables; those of compiled steps last, since to compile them may take a minute each."""
    print(f"{_name(device)}; {', '.join(f'{name} {version}' for name, version in versions('torch').items())}")
    setups = [setup for setup in SPEED if setup.name in _NAMES and only in setup.name]
    for ways_of in (_plain, _compiled):
        for setup in setups:
            note(setup.name)
            setup = dataclasses.replace(setup, dtype=torch.float32, tolerance=1e-5, device=device)
            rows = raced(ways_of(setup), setup, reference_gradient(setup), rounds)
            line = {"device": _name(device), "cell": setup.name, "rows": rows}
            write(folder / f"{device.replace(':', '_')}.jsonl", [line], "a")
            print(f"\n{setup.name}: {setup.text}\n\n{text.table(list(map(_shown, rows)))}", flush=True)
    return 0


def _plain(setup: Setup) -> dict[str, Method]:
    with record_solves() as solves:
        held = setup.problem().solved(METHODS[GRAPHS].solve)
    del held
    budget = Method(ours(memory=solves[0].bytes_held // 4), "steptape")
    return {**{way: METHODS[way] for way in (HOST, HOST_ADJOINT, OURS, GRAPHS)}, _BUDGET: budget}


def _compiled(setup: Setup) -> dict[str, Method]:
    compiled = Method(ours(compile={"mode": "reduce-overhead"}), "steptape")
    return {HOST: METHODS[HOST], f"{COMPILED}, reduce-overhead": compiled}


def _shown(row: dict) -> dict[str, str]:
    names = ("", f"over {HOST}", "ms", "error")
    figures = (f"{row['ratio']:.2f}", f"{1e3 * row['seconds']:.1f}", f"{row['error']:.1e}") if "ratio" in row else ()
    return dict(zip(names, (row["way"], *(figures or (row["without"], "", ""))), strict=True))


def _name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device}, {platform.processor() or platform.machine()}"
