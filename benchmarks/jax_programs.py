"""Compiled programs of JAX, timed in interleaved rounds."""

import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import diffrax
import jax
import jax.numpy as jnp

from benchmarks import meters, timing
from benchmarks.ways import DEFAULT, REPLAY
from steptape.jax import AdaptiveCheckpointAdjoint


def both(checkpoints: int | None = None) -> dict[str, diffrax.AbstractAdjoint]:
    """The host's default and the replay, with as many checkpoints."""
    return {
        DEFAULT: diffrax.RecursiveCheckpointAdjoint(checkpoints=checkpoints),
        REPLAY: AdaptiveCheckpointAdjoint(checkpoints=checkpoints),
    }


def solved(field: Callable[..., Any], t1: Any, y0: Any, args: Any, **settings: Any) -> Any:
    """The solution of a solve from t = 0 with a first step of 0.01 by Tsit5, unless it is told otherwise."""
    how = {"t0": 0.0, "dt0": 0.01, "solver": diffrax.Tsit5(), **settings}
    return diffrax.diffeqsolve(diffrax.ODETerm(field), t1=t1, y0=y0, args=args, **how)


def adaptive(rtol: float, atol: float | None = None) -> dict[str, Any]:
    """Steps of the sizes that the tolerances ask for; one of them is both."""
    return {"stepsize_controller": diffrax.PIDController(rtol=rtol, atol=rtol if atol is None else atol)}


@dataclasses.dataclass
class Program:
    """A function compiled for its inputs. ``compiling``: processor seconds. ``temporary``: bytes besides both ends.

    ``times``: those of its rounds. ``result``: what it returned last.
    """

    name: str
    inputs: tuple
    program: Callable
    compiling: float
    temporary: int
    times: timing.Times = dataclasses.field(default_factory=dict)
    result: Any = None

    @classmethod
    def compiled(cls, name: str, function: Callable, inputs: tuple) -> "Program":
        start = time.process_time()
        compiled = jax.jit(function).lower(*inputs).compile()
        return cls(name, inputs, compiled, time.process_time() - start, meters.temporary(compiled))

    @property
    def seconds(self) -> float:
        return timing.median(self.times)

    def run(self) -> float:
        start = time.process_time()
        self.result = jax.block_until_ready(self.program(*self.inputs))
        return time.process_time() - start


def race(programs: Sequence[Program], rounds: int) -> None:
    """Time the programs in rounds of all of them, after one that warms up."""
    times = timing.race({program.name: program.run for program in programs}, timing.Rounds(rounds))
    for program in programs:
        program.times = times[program.name]


def words(error: Exception) -> str:
    """The words of an error, for a table; equinox's are deep in a traceback that JAX quotes."""
    found = re.search(r"EquinoxRuntimeError: (.+)", str(error))
    return found[1] if found else str(error)


def difference(got: Any, want: Any) -> float:
    """The largest difference of two gradients, relative to the largest entry."""
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))
    return float(max(jnp.max(jnp.abs(a - b)) for a, b in pairs) / max(jnp.max(jnp.abs(b)) for _, b in pairs))
