"""The forward solve of a continuous adjoint: diffrax's loop, with a record of its steps where it is differentiated."""

import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from steptape.compat._diffrax import loop as host_loop
from steptape.compat._diffrax import with_fields
from steptape.compat._equinox import common_rewrite, while_loop
from steptape.jax._continuous.dense import DenseBlocks, Record, Step
from steptape.jax._continuous.quadrature import HostSteps, Pullback, StageSteps
from steptape.jax._replay.runge_kutta import is_explicit
from steptape.jax._tape.plan import Slots
from steptape.jax._tape.rows import allocate
from steptape.jax._types import (
    Args,
    Controller,
    DenseInfo,
    HostArguments,
    IntScalarLike,
    LoopState,
    Scalar,
    Solved,
    Solver,
    SolverState,
    Terms,
    Vector,
    Y,
)


class ForwardSolve(eqx.Module):
    """The arguments of a solve that are not differentiated, and how to run it."""

    solve: HostArguments  # as diffrax hands them to an adjoint
    overrides: HostArguments  # see QuadratureAdjoint
    nodes: int | None = eqx.field(static=True)
    checkpoints: int | None = eqx.field(static=True)
    refusal: str | None = eqx.field(static=True)

    def run(
        self,
        y0: Y,
        args: Args,
        terms: Terms,
        times: tuple[Scalar, Scalar, Vector | None],
        conditions: PyTree,
        *,
        rows: int | None = None,
        outer_while_loop: Callable | None = None,
    ) -> Solved:
        """Run diffrax's loop, or another one, with so many ``rows`` of dense output."""
        solve = {name: value for name, value in self.solve.items() if name != "throw"}
        state, saveat = with_fields(solve.pop("init_state"), y=y0), solve.pop("saveat")
        t0, t1, ts = times
        if ts is not None:
            saveat = eqx.tree_at(lambda s: s.subs.ts, saveat, ts)
        if rows is not None:
            saveat = eqx.tree_at(lambda s: s.dense, saveat, True)
            state = _with_dense_output(state, solve["solver"], terms, args, rows)
        if conditions is not None:
            solve["event"] = eqx.tree_at(lambda e: e.cond_fn, solve["event"], conditions, is_leaf=lambda x: x is None)
        inner_while_loop = functools.partial(while_loop, kind="lax")
        solve["outer_while_loop"] = outer_while_loop or inner_while_loop
        solve["inner_while_loop"] = inner_while_loop
        return host_loop(terms=terms, args=args, t0=t0, t1=t1, init_state=state, saveat=saveat, **solve)

    def run_recorded(self, *moving: PyTree) -> tuple[LoopState, dict[str, PyTree], Record]:
        """Run it, with a record of its steps."""
        records = []

        def outer_while_loop(*functions, **loop):
            final, record = recorded_while_loop(*functions, checkpoints=self.checkpoints, **loop)
            records.append(record)
            return final

        rows = Slots.for_steps(self.solve["max_steps"], self.checkpoints).count
        final, stats = self.run(*moving, rows=rows, outer_while_loop=outer_while_loop)
        return with_fields(final, dense_ts=None, dense_infos=None, dense_save_index=None), stats, records[0]

    def blocks(self, record: Record, terms: Terms, args: Args) -> DenseBlocks:
        """The dense output in ``record``."""
        solver = self.solve["solver"]

        def advance(step: Step, y: Y, solver_state: SolverState) -> tuple[Y, SolverState, DenseInfo]:
            y, _, dense_info, solver_state, _ = solver.step(
                terms, step.begin, step.end, y, args, solver_state, step.made_jump
            )
            return y, solver_state, dense_info

        return DenseBlocks(record, advance, solver.interpolation_cls)

    def steps(self, pull: Pullback) -> StageSteps | HostSteps:
        """Choose how the backward solve takes its steps."""
        solver: Solver = self.overrides.get("solver", self.solve["solver"])
        if self.nodes is None and is_explicit(solver):
            return StageSteps(pull, solver)
        order = solver.order(pull.term)
        return HostSteps(pull, solver, self.nodes or max(1, (order + 1) // 2))

    def controller(self, direction: IntScalarLike) -> Controller:
        """The controller of the backward solve, in its own direction of time."""
        if "stepsize_controller" in self.overrides:
            return self.overrides["stepsize_controller"].wrap(direction).wrap(-1)
        return self.solve["stepsize_controller"].wrap(-1)


def _with_dense_output(state: LoopState, solver: Solver, terms: Terms, args: Args, steps: int) -> LoopState:
    """The loop's first state, with room for the dense output of so many ``steps``."""
    _, _, dense_info, _, _ = eqx.filter_eval_shape(
        solver.step, terms, state.tprev, state.tnext, state.y, args, state.solver_state, state.made_jump
    )
    dense_infos, ts = allocate(steps, dense_info), jnp.zeros(steps + 1, state.tprev.dtype)
    return with_fields(state, dense_ts=ts, dense_infos=dense_infos, dense_save_index=0)


def recorded_while_loop(
    cond_fun: Callable,
    body_fun: Callable,
    init_val: LoopState,
    *,
    max_steps: int,
    buffers: Callable,
    checkpoints: int | None,
) -> tuple[LoopState, Record]:
    """Run diffrax's outer loop over ``State``, whose dense output begins anew with each block, with a record of it."""
    init_val = jax.tree.map(jnp.array, init_val)
    record = Record.blank(init_val, max_steps, checkpoints)

    def body_of_block(state):
        after = body_fun(state)
        return with_fields(after, dense_save_index=after.dense_save_index % record.size)

    cond, body, carry, _ = common_rewrite(cond_fun, body_of_block, init_val, max_steps, buffers, False)

    def body_on_record(recorded):
        carry, record = recorded
        return body(carry), record.write(carry[-1])

    carry, record = lax.while_loop(lambda recorded: cond(recorded[0]), body_on_record, (carry, record))
    return carry[-1], record.close(carry[-1])
