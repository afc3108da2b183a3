"""diffrax's loop in several forms of one arithmetic: for forward mode, for reverse mode, and for any."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
from jaxtyping import PyTree

from steptape.compat._diffrax import with_fields
from steptape.compat._equinox import while_loop
from steptape.jax._types import LoopState, Solved, Solver

# "lax" is for forward mode, "checkpointed" for reverse mode; "bounded", which is slow, for any order of both.
Kind: TypeAlias = Literal["lax", "checkpointed", "bounded"]
# The loops over the stages, of a solver that was made with others, or with None: that is as the adjoint needs them.
_SCANS: dict[Kind, dict[str | None, str | None]] = {
    "lax": {None: "lax", "checkpointed": "lax"},
    "checkpointed": {"lax": None},
    "bounded": {None: "bounded", "lax": "bounded", "checkpointed": "bounded"},
}


class Loops:
    """diffrax's loop: the loops in its body are of the kind that the mode knows.

    A loop that is never transposed compiles faster without the means for it, and knows forward mode.
    """

    def __init__(self, host_loop: Callable) -> None:
        self._host_loop = host_loop

    def run(self, *, kind: Kind = "lax", **solve: PyTree) -> Solved:
        """Run it, by default for forward mode."""
        inner_while_loop = functools.partial(while_loop, kind=kind)
        solver = _with_scans(solve["solver"], kind)
        return self._host_loop(inner_while_loop=inner_while_loop, **{**solve, "solver": solver})

    def body(self, *, kind: Kind = "lax", **solve: PyTree) -> Callable[[LoopState], LoopState]:
        """The loop's body; all else in the call is dead code."""
        bodies = []

        def outer_while_loop(cond_fun, body_fun, init_val, *, max_steps, buffers):
            bodies.append(body_fun)
            return init_val

        self.run(kind=kind, outer_while_loop=outer_while_loop, **solve)
        return bodies[0]


def _with_scans(solver: Solver, kind: Kind) -> Solver:
    """``solver`` and those in it, with loops over the stages of a kind."""

    def changed(node):
        if not _scans(node):
            return node
        return with_fields(node, scan_kind=_SCANS[kind].get(node.scan_kind, node.scan_kind))

    return jax.tree.map(changed, solver, is_leaf=_scans)


def _scans(node: object) -> bool:
    return dataclasses.is_dataclass(node) and "scan_kind" in {field.name for field in dataclasses.fields(node)}
