"""The kinds of step of torchdiffeq's solvers: how each is recorded, where in time it lies, how it is taken again."""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from steptape.compat import _torchdiffeq as host
from steptape.compat._torch import plainly
from steptape.compat._unsupported import unsupported
from steptape.torch._autograd.side import SideState
from steptape.torch._hosts.recorder import AdaptiveRecorder, HostStepRecorder, Recorder
from steptape.torch._hosts.tableau import Tableau, adaptive_tableau, fixed_grid_tableau
from steptape.torch._tape.checkpoints import Keep
from steptape.torch._tape.graphs import Graphs
from steptape.torch._tape.tape import State


class Scheme(abc.ABC):
    """A kind of step. ``tableau``: by which it is taken again; None: as a whole, by the host."""

    # Whether a step hands its last stage on to the next one, as its first.
    hands_on: ClassVar[bool]
    # The options whose entries end steps early.
    point_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, tableau: Tableau | None):
        self.tableau = tableau

    @abc.abstractmethod
    def recorder(self, func: Any, keep: Keep, side: SideState, solver: Any, graphs: Graphs | None = None) -> Recorder:
        """What ``solver`` is to integrate in place of ``func``; ``graphs``: what keeps those of evaluations."""

    def points_dtype(self, t: Tensor, y0: Tensor, options: dict[str, Any]) -> torch.dtype:
        """The dtype in which steps end at points."""
        return t.dtype

    def vector_field(self, func: Any) -> Any:
        """func as a replay calls it: at times already on their side of a jump."""
        return host.without_sides(func)

    def times(self, method: str, recorded: Sequence[Sequence[Tensor]]) -> Tensor:
        """When func was evaluated for each step, (N, s)."""
        assert self.tableau is not None
        count = self.tableau.stages
        # A fixed grid takes the slope at the end of a step for outputs inside it alone, and then for each one.
        whole = [[*times, times[-1]][:count] for times in recorded]
        if any(len(times) != count for times in whole):
            raise unsupported("torchdiffeq", f"{count} evaluations in a step of {method!r}", "torch")
        return torch.stack([t for times in whole for t in times]).view(-1, count)

    def stages(self, times: Tensor, nodes: Tensor, dtype: torch.dtype) -> Tensor:
        """When func is evaluated: as it was in the solve, to the bit, and moving with the ends of the steps."""
        assert self.tableau is not None
        c = torch.tensor(self.tableau.c, dtype=nodes.dtype, device=nodes.device)
        moved = (nodes[:-1, None] + c * nodes.diff()[:, None]).to(dtype)
        return times + (moved - moved.detach()) if moved.requires_grad else times

    def sizes_and_positions(self, sizes: Tensor, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Those of the steps and of the outputs inside them, as the host rounds them."""
        return sizes, positions

    def taped(self, state: State, evaluates_first_stage: bool) -> State:
        """A recorded state as it is taken up again."""
        return tuple(x.reshape(-1) for x in state)


class Adaptive(Scheme):
    """A step of an adaptive Runge–Kutta solver."""

    hands_on = True
    point_names = ("step_t", "jump_t")
    tableau: Tableau

    def recorder(self, func: Any, keep: Keep, side: SideState, solver: Any, graphs: Graphs | None = None) -> Recorder:
        return AdaptiveRecorder(func, keep, side, graphs, carries_slopes=not self.tableau.last_at_end)

    def points_dtype(self, t: Tensor, y0: Tensor, options: dict[str, Any]) -> torch.dtype:
        return torch.promote_types(options.get("dtype", torch.float64), y0.real.dtype)

    def sizes_and_positions(self, sizes: Tensor, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return sizes.to(dtype), positions.to(dtype)

    def taped(self, state: State, evaluates_first_stage: bool) -> State:
        return super().taped(state[:1] if evaluates_first_stage else state, evaluates_first_stage)


class FixedGrid(Scheme):
    """A step of a Runge–Kutta solver on a fixed grid."""

    hands_on = False
    tableau: Tableau

    def recorder(self, func: Any, keep: Keep, side: SideState, solver: Any, graphs: Graphs | None = None) -> Recorder:
        return Recorder(func, keep, side, graphs)

    def sizes_and_positions(self, sizes: Tensor, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if len(self.tableau.dense) > 1:
            return sizes, positions
        return sizes, _still_at_ends(positions)


class HostStep(Scheme):
    """A step that only the host can take: of its multistep solvers, and of its implicit ones."""

    hands_on = False
    tableau: None

    def __init__(self, interp: str):
        super().__init__(None)
        self._interp = interp

    def recorder(self, func: Any, keep: Keep, side: SideState, solver: Any, graphs: Graphs | None = None) -> Recorder:
        return HostStepRecorder(func, keep, side, graphs, solver)

    def vector_field(self, func: Any) -> Any:
        """func as the host's own step calls it."""
        return func

    def times(self, method: str, recorded: Sequence[Sequence[Tensor]]) -> Tensor:
        """None: the host's own step finds them again."""
        return torch.empty(0)

    def stages(self, times: Tensor, nodes: Tensor, dtype: torch.dtype) -> Tensor:
        """The ends of each step."""
        return torch.stack([nodes[:-1], nodes[1:]], dim=1)

    def sizes_and_positions(self, sizes: Tensor, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return sizes, _still_at_ends(positions) if self._interp == "linear" else positions

    def taped(self, state: State, evaluates_first_stage: bool) -> State:
        return state


def _still_at_ends(positions: Tensor) -> Tensor:
    # A linear interpolation returns the state at the end of a step as it is.
    return torch.where(positions == 1, positions.detach(), positions)


@functools.lru_cache
@plainly
def scheme_of(solver_class: Any, interp: str = "linear") -> Scheme | None:
    """How a solver class of torchdiffeq is replayed, or None if it cannot be."""
    name = host.FIXED_GRID_NAMES.get(solver_class)
    if name is not None:
        return FixedGrid(fixed_grid_tableau(name, interp))
    if host.steps_whole(solver_class):
        return HostStep(interp)
    if host.steps_by_tableau(solver_class):
        return Adaptive(adaptive_tableau(solver_class.tableau, solver_class.mid))
    return None
