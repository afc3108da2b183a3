"""What each of diffrax's adjoints can do and cannot, likewise, each in a process of its own.

Tsit5 at 1e-7 in float64, compiled; forward mode and Hessians are those of JAX's transforms. An adjoint that solves the
continuous problem is right to its tolerance.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.papers import verdicts
from benchmarks.papers.ways import Cells, Claim, Row

OURS = "steptape AdaptiveCheckpointAdjoint"
PEERS = (
    "RecursiveCheckpointAdjoint",
    "DirectAdjoint",
    "BacksolveAdjoint",
    "ForwardMode",
    OURS,
    "steptape QuadratureAdjoint",
    "steptape SeminormAdjoint",
)
SIZE = (13, 4)
shown, draw = verdicts.shown, verdicts.draw


def run(quick: bool) -> Cells:
    """A cell for each adjoint; quick: ours and diffrax's default."""
    return {name: functools.partial(_cell, name) for name in ((PEERS[0], OURS) if quick else PEERS)}


def _cell(name: str) -> list[Row]:
    if importlib.util.find_spec("diffrax") is None:
        return [{"peer": name, "pytree state": "not installed"}]
    command = [sys.executable, "-m", "benchmarks.papers.jax_cases", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [verdicts.row(name, json.loads(done.stdout.splitlines()[-1]))]


def claims(rows: Sequence[Row]) -> list[Claim]:
    """None: no paper has any."""
    return []
