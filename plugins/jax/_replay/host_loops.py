"""diffrax's loop in two forms of one arithmetic: for forward mode, and for reverse mode."""

import dataclasses
import functools
from collections.abc import Callable

import jax
from jaxtyping import PyTree

from steptape.compat._diffrax import with_fields
from steptape.compat._equinox import while_loop
from steptape.jax._types import LoopState, Solved, Solver


class Loops:
    """diffrax's loop: the loops in its body are of the kind that the mode knows.

    A loop that is never transposed compiles faster without the means for it, and knows forward mode.
    """

    def __init__(self, host_loop: Callable) -> None:
        self._host_loop = host_loop

    def run(self, *, reverse: bool = False, **solve: PyTree) -> Solved:
        """Run it, by default for forward mode."""
        inner_while_loop = functools.partial(while_loop, kind="checkpointed" if reverse else "lax")
        solver = _with_scans(solve["solver"], reverse)
        return self._host_loop(inner_while_loop=inner_while_loop, **{**solve, "solver": solver})

    def body(self, *, reverse: bool = False, **solve: PyTree) -> Callable[[LoopState], LoopState]:
        """The loop's body; all else in the call is dead code."""
        bodies = []

        def outer_while_loop(cond_fun, body_fun, init_val, *, max_steps, buffers):
            bodies.append(body_fun)
            return init_val

        self.run(reverse=reverse, outer_while_loop=outer_while_loop, **solve)
        return bodies[0]


def _with_scans(solver: Solver, reverse: bool) -> Solver:
    """``solver`` and those in it, with loops over the stages that the mode knows, whatever they were made with."""

    def changed(node):
        if not _scans(node):
            return node
        if reverse:
            return with_fields(node, scan_kind=None) if node.scan_kind == "lax" else node
        return with_fields(node, scan_kind="lax") if node.scan_kind in (None, "checkpointed") else node

    return jax.tree.map(changed, solver, is_leaf=_scans)


def _scans(node: object) -> bool:
    return dataclasses.is_dataclass(node) and "scan_kind" in {field.name for field in dataclasses.fields(node)}
