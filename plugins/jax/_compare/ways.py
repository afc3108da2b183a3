"""The ways to a gradient as compiled programs, run and metered."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from steptape._compare.race import Way
from steptape.jax._compare.watched import Watched


class Problem:
    """``loss(adjoint, *inputs)``, to be differentiated in all floating-point arrays of ``inputs``."""

    def __init__(self, loss: Callable[..., Any], inputs: tuple[Any, ...]):
        plain = [jnp.asarray(x) if isinstance(x, (float, complex)) else x for x in inputs]
        self._loss = loss
        self.moving, self._fixed = eqx.partition(tuple(plain), eqx.is_inexact_array)

    def of(self, adjoint: diffrax.AbstractAdjoint) -> Callable[[Any], Any]:
        """The loss as a function of what it is differentiated in."""
        return lambda moving: self._loss(adjoint, *eqx.combine(moving, self._fixed))

    def gradient(self, adjoint: diffrax.AbstractAdjoint, moving: Any = None) -> Any:
        """Compile it and take it once, at other values than the inputs' where these are given."""
        moving = self.moving if moving is None else moving
        return jax.block_until_ready(jax.jit(jax.grad(self.of(adjoint)))(moving))

    @property
    def eps(self) -> float:
        """The rounding of the roughest of the inputs."""
        return max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(self.moving))


class JaxWay(Way):
    """An adjoint. ``forward``: the evaluations of a solve without a gradient."""

    def __init__(self, name: str, adjoint: diffrax.AbstractAdjoint, is_discrete: bool, problem: Problem, forward: int):
        package = "diffrax" if type(adjoint).__module__.startswith("diffrax.") else "steptape.jax"
        super().__init__(name, f"diffeqsolve(..., adjoint={package}.{name})", is_discrete)
        self._adjoint, self._problem, self._forward = adjoint, problem, forward
        self._program: Any = None
        self._gradient: Any = None

    def measure(self) -> Any:
        """Compile it, and run it once; what it was before, where that was done."""
        try:
            return self._measured()
        except Exception as error:
            # The words of an error of equinox's are deep in what JAX says.
            if found := re.search(r"EquinoxRuntimeError: (.+)", str(error)):
                raise RuntimeError(found[1]) from error
            raise

    def _measured(self) -> Any:
        if self._program is None:
            start, moving = time.perf_counter(), self._problem.moving
            self._program = jax.jit(jax.value_and_grad(self._problem.of(self._adjoint))).lower(moving).compile()
            self.row.peak = temporary(self._program)
            self.run()
            self.row.seconds = self.run()
            self.cost = time.perf_counter() - start
        return self._gradient

    def run(self) -> float:
        """Both passes, as one program."""
        start = now()
        _, self._gradient = jax.block_until_ready(self._program(self._problem.moving))
        return now() - start

    def weigh(self) -> None:
        """What is held between the passes, by a trace, and the evaluations, by another program."""
        self.row.held = residuals(self._problem.of(self._adjoint), self._problem.moving)
        count = Counter[str]()
        self._problem.gradient(counted(self._adjoint, count))
        jax.effects_barrier()
        self.row.evaluations_forward = self._forward
        self.row.evaluations_backward = count["evaluations"] - self._forward


def now() -> float:
    """Where one thread computes, the processor's time, which other programs do not share in; else the clock's."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    is_one = len(cores) == 1 or "xla_cpu_multi_thread_eigen=false" in os.environ.get("XLA_FLAGS", "")
    return time.process_time() if is_one and jax.default_backend() == "cpu" else time.perf_counter()


def counted(adjoint: diffrax.AbstractAdjoint, count: Counter[str]) -> Watched:
    """An adjoint that counts ``"evaluations"``, and the most steps of a solve: ``"tried"`` and ``"accepted"``."""

    def on_evaluation() -> None:
        count["evaluations"] += 1

    def on_end(tried: Any, accepted: Any) -> None:
        count["tried"] = max(count["tried"], int(tried))
        count["accepted"] = max(count["accepted"], int(accepted))

    return Watched(adjoint, on_evaluation, on_end)


def residuals(loss: Callable[[Any], Any], moving: Any) -> int:
    """The bytes that the forward pass leaves for the backward one, besides its inputs."""
    program = jax.make_jaxpr(lambda x: jax.vjp(loss, x))(moving).jaxpr
    left = {id(x): x for x in program.outvars[1:] if not hasattr(x, "val")}
    known = {id(x) for x in (*program.invars, *program.constvars)}
    return sum(x.aval.size * x.aval.dtype.itemsize for key, x in left.items() if key not in known)


def temporary(program: Any) -> int | None:
    """The bytes that a compiled program takes besides its inputs and outputs, where XLA says."""
    try:
        return program.memory_analysis().temp_size_in_bytes
    except (AttributeError, NotImplementedError, RuntimeError):
        return None
