"""The reverse sweep over the tape of a solve (ACA, arXiv 2006.02493): one step's vector-Jacobian product at a time.

The loop's outputs are buffers that are written once at each place. Their cotangents are therefore the same at every
step, and need not be carried.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from steptape.compat._equinox import nonbatchable, select_if_vmap, unvmap_max
from steptape.jax._autodiff.activity import is_nonzero, zero_unless
from steptape.jax._tape.tape import Tape, Times
from steptape.jax._types import Gradient, IntScalar, LoopState, Mask

Pulled: TypeAlias = tuple[LoopState, Gradient]  # cotangents of a state and of what a step closes over


class Replay(eqx.Module):
    """The kind of replay, and which leaves of a state carry a cotangent."""

    by_try: bool
    active: Mask = None

    def count(self, state: LoopState) -> IntScalar:
        """The row of the tape that ``state`` belongs in."""
        return state.num_steps if self.by_try else state.num_accepted_steps

    def step(self, fun: Callable, times: Times | None, state: LoopState) -> LoopState:
        """One step of the loop, by the body, which needs no times, or by the accepted step."""
        if not self.by_try:
            return fun(times, state)
        running = jnp.array(True)
        return fun((jnp.array(0), running, running, state))[-1]


class Sweep(eqx.Module):
    """The reverse sweep over a tape: each step's vector-Jacobian product, from the last to the first."""

    replay: Replay
    fun: Callable  # the step
    p_fun: Mask
    advance: Callable  # see AcceptedStep
    state: LoopState  # any state of the loop, for the leaves that are not on the tape
    written: Mask  # true for the buffers

    def run(self, pull_back: Callable, g_state: LoopState, g_fun: Gradient) -> tuple[LoopState, Gradient]:
        """Cotangents of the initial state and of the step's closed-over arrays, given that of the final state.

        ``pull_back(wanted, pull, cotangents)`` pulls ``cotangents`` back through all steps, with ``pull`` through those
        on a tape, of which it returns the place.
        """
        g_outputs, g_moving = eqx.partition(g_state, self.written)
        wanted = is_nonzero(g_state)

        def pull(tape, count, cotangents):
            return self._through(tape, jnp.where(wanted, count.astype(jnp.int32), 0), g_outputs, cotangents)

        g_moving, g_fun = zero_unless(wanted, pull_back(wanted, pull, (g_moving, g_fun)))
        return eqx.combine(g_moving, g_outputs), g_fun

    def _through(
        self, tape: Tape, count: IntScalar, g_outputs: LoopState, cotangents: Pulled
    ) -> tuple[Tape, IntScalar, Pulled]:
        """Pull back through the first ``count`` steps on a tape: what is left of it, the step it is at, cotangents."""
        trips = nonbatchable(unvmap_max(count))

        def pull_last(loop):
            i, left, g_moving, g_fun = loop
            i = i - 1
            states, left = tape.states.recall(i, left, lambda n, states: self._advance(tape, count, n, states))
            before, times = self._before(tape, count, i, states)
            g_before, g_more = self._pull(before, times, eqx.combine(g_moving, g_outputs))
            g_before = eqx.filter(g_before, self.written, inverse=True)
            ran = i < count
            g_moving = jax.tree.map(functools.partial(select_if_vmap, ran), g_before, g_moving)
            g_more = jax.tree.map(lambda g: select_if_vmap(ran, g, jnp.zeros_like(g)), g_more)
            return i, left, g_moving, jax.tree.map(operator.add, g_fun, g_more)

        loop = (trips, tape.states.before(trips), *cotangents)
        i, left, g_moving, g_fun = lax.while_loop(lambda loop: loop[0] > 0, pull_last, loop)
        return dataclasses.replace(tape, states=tape.states.after(left)), i, (g_moving, g_fun)

    def _pull(self, before: LoopState, times: Times, g: LoopState) -> tuple[LoopState, Gradient]:
        """The vector-Jacobian product of a step: for the state before it, and for the step's closed-over arrays."""
        moving, fixed = eqx.partition(before, self.replay.active)
        moving_fun, fixed_fun = eqx.partition(self.fun, self.p_fun)

        def forward(moving, moving_fun):
            after = self.replay.step(eqx.combine(moving_fun, fixed_fun), times, eqx.combine(moving, fixed))
            return eqx.filter(after, self.replay.active)

        _, pull = jax.vjp(forward, moving, moving_fun)
        return pull(g)

    def _advance(self, tape: Tape, count: IntScalar, i: IntScalar, states: LoopState) -> LoopState:
        """The states on the tape after step ``i``, recomputed."""
        state, times = self._before(tape, count, i, states)
        return _like(states, self.advance(times, state))

    def _before(self, tape: Tape, count: IntScalar, i: IntScalar, states: LoopState) -> tuple[LoopState, Times]:
        """The state before step ``i``, and its times.

        An element of a batch that has no such step takes its first try again, for nothing: what is evaluated, a field
        or a Brownian path, may raise where the solve never was.
        """
        row, times = tape.row(jnp.minimum(i, jnp.maximum(count - 1, 0)), states)
        taken, begin = functools.partial(select_if_vmap, i < count), self.state.tnext
        first = Times(begin, begin, begin)
        row, times = jax.tree.map(taken, (row, times), (_like(row, self.state), first))
        return eqx.combine(row, self.state), times


def _like(states: LoopState, state: LoopState) -> LoopState:
    """The leaves of ``state`` that are among ``states``."""
    return jax.tree.map(lambda x, y: None if x is None else y, states, state, is_leaf=lambda x: x is None)
