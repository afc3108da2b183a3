"""``compare``: every way to a gradient, tried on the caller's own ODE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from steptape._compare.advice import size_of
from steptape._compare.clock import Clock
from steptape._compare.comparison import Comparison
from steptape._compare.race import REFERENCE, Oracle, Way, compared
from steptape._compare.rows import in_bytes
from steptape._errors import OptionError
from steptape.compat import _torchdiffeq as host
from steptape.torch._autograd.graph import tensors_of
from steptape.torch._compare.meters import SavedTensors, available
from steptape.torch._compare.problem import Problem, State, distance, last_square, params_of, unchanged
from steptape.torch._compare.ways import (
    CompiledWay,
    HostWay,
    OurWay,
    Stepping,
    Watched,
    recorded,
    skip_if_too_large,
    spelled,
)
from steptape.torch._odeint import odeint_adjoint
from steptape.torch._types import Tensors


def compare(
    func: Callable[[Tensor, Any], Any],
    y0: Tensor | Tensors,
    t: Tensor,
    *,
    loss: Callable[[Any], Tensor] | None = None,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
    memory: int | str | None = None,
    time_limit: float = 60.0,
    progress: bool | None = None,
    ways: Sequence[str] | None = None,
) -> Comparison:
    """Run every way to the gradient of an ODE solve on your own model, and say which to take.

    Back-propagation through ``torchdiffeq.odeint``, the host's ``odeint_adjoint`` with its norm and with the seminorm,
    steptape's ``"aca"`` with all it can keep (states, graphs, checkpoints, a size), and ``"quadrature"``: of each the
    gradient's error, the evaluations of func, the time of both passes and the memory. What a way refuses, or fails at,
    is shown in its words. ``print`` shows a table, a notebook one of its own; see also ``advice``, ``best`` and
    ``plot`` of what is returned.

    Args:
        func, y0, t, rtol, atol, method, options: the solve, as in ``torchdiffeq.odeint``.
        loss: maps the solution to a scalar; by default the mean square of its last output.
        adjoint_params: the tensors besides ``y0`` to differentiate with respect to; by default all that func uses.
        memory: what there is, as a size such as ``"2 GiB"`` or a number of bytes: the advice is for it, and ``"aca"``
            is tried with it. By default any, and ``"aca"`` is tried with half of what its graphs take.
        time_limit: seconds for all of it. Ways for which there is no time are skipped, and shown as such; so is the
            compiled replay where less than a minute is left, which it takes to compile.
        progress: whether to say on stderr what is done; by default where that is a terminal.
        ways: the names of those to run, as in the table; by default all.

    Returns:
        A ``Comparison``. Its times are the clock's, or where torch has one thread the processor's. ``error`` of a row
        is against a solve by ``dopri8`` in float64, at tolerances far below yours, ``difference`` against
        back-propagation through the very steps of the solution, the first one's size given.

    Memory:
        That of back-propagation, which is given up where autograd would save more than is free.

    Supports:
        What ``torchdiffeq.odeint`` does, without events; gradients in ``y0``, where it requires one, and in parameters.
        Nothing of the model is changed: parameters, their gradients, buffers, modes and random numbers are as before.

    Raises:
        OptionError: an argument is wrong, or nothing requires a gradient. What func or loss raises in the first solve.

    Example:
        >>> import torch
        >>> from steptape.torch import compare
        >>> net, y0, t = torch.nn.Linear(2, 2), torch.ones(4, 2), torch.tensor([0.0, 1.0])
        >>> found = compare(lambda t, y: net(y).tanh(), y0, t, rtol=1e-4, atol=1e-4, ways=["back-propagation", "aca"])
        >>> [(row.way, row.difference < 1e-3) for row in found.rows]
        [('back-propagation', True), ('aca', True)]
    """
    clock, there_is = Clock(time_limit, progress), size_of(memory)
    loss = last_square if loss is None else loss
    states = [x.detach() for x in tensors_of(y0)]
    if not states or not isinstance(t, Tensor):
        raise OptionError(f"compare(func, y0={y0!r}, t={t!r}): y0 must be a tensor or a tuple of them, and t a tensor.")

    def evaluate(t: Tensor, *y: Tensor) -> Any:
        return func(t, y[0] if isinstance(y0, Tensor) else y)

    named = None if adjoint_params is None else [x for x in adjoint_params if x.requires_grad]
    with unchanged(states[0].device, func, loss):
        params = params_of(func, evaluate, (t[0].detach(), *states)) if named is None else named
    problem = Problem("compare", func, y0, params, loss)
    settings = {"rtol": rtol, "atol": atol, "method": method or "dopri5", "options": options}
    ode = _Ode(problem, clock, t.detach(), settings, named)
    title = ode.solved()
    oracles = (
        Oracle(ode.reference, lambda: f"dopri8 in float64, rtol {ode.tight:.1e}", REFERENCE),
        Oracle(ode.discrete, lambda: "back-propagation through the same steps"),
    )
    found = compared(title, ode.ways(memory), oracles, distance, clock, problem.eps**0.5, there_is, ways)
    found.note = problem.waiting(clock)
    return found


# What a reference keeps of the caller's options: where the field jumps.
_POINTS = ("step_t", "jump_t")


class _Ode:
    """A solve, its references, and the ways to its gradient. ``named``: the parameters, where the caller names them."""

    def __init__(
        self, problem: Problem, clock: Clock, t: Tensor, settings: dict[str, Any], named: Sequence[Tensor] | None
    ):
        self._problem, self._clock, self._t, self._settings = problem, clock, t, settings
        self._named = {} if named is None else {"adjoint_params": tuple(named)}
        self._options = dict(settings["options"] or {})
        self._is_adaptive = issubclass(host.SOLVERS.get(settings["method"], object), host.AdaptiveRungeKutta)
        self._first: float | None = None

    def solved(self) -> str:
        """The solve as it is, in words."""
        problem, count = self._problem, 0

        def tick() -> None:
            nonlocal count
            count += 1
            self._clock.check()

        watched = (Stepping if self._is_adaptive else Watched)(problem.func, tick)
        self._clock.say("the solve")
        with problem.in_time(self._clock), problem.unchanged(), torch.no_grad():
            problem.loss_of(host.odeint(watched, problem.state(), self._t, **self._settings))
        accepted = 0
        if isinstance(watched, Stepping):
            self._first, accepted = watched.first, watched.accepted
        settings = self._settings
        tolerances = f", rtol {settings['rtol']}, atol {settings['atol']}" if self._is_adaptive else ""
        steps = f"{accepted} steps, " if accepted else ""
        return f"{settings['method']}{tolerances}, {len(self._t)} times of output: {steps}{count} evaluations"

    def discrete(self) -> Tensor:
        """Back-propagation through the solution's own steps; with func's graphs made again, where they do not fit."""
        settings = self._settings
        if self._is_adaptive and self._first is not None and "first_step" not in self._options:
            settings = {**settings, "options": {**self._options, "first_step": self._first}}
        problem, watched = self._problem, Watched(self._problem.func, self._clock.check)

        def again(t: Tensor, y: State) -> State:
            return checkpoint(watched, t, y, use_reentrant=False)

        def solve(func: Any, y0: State) -> State:
            return host.odeint(func, y0, self._t, **settings)

        try:
            with SavedTensors(available(problem.device), self._clock.check):
                return problem.gradient(solve, watched)
        except MemoryError:
            return problem.gradient(solve, again)

    @property
    def tight(self) -> float:
        """The tolerance of the reference: far below the solve's, as far as the rounding of func lets it be."""
        asked = float(torch.as_tensor(self._settings["rtol"]).min()) if self._is_adaptive else 0.0
        return max(1e-4 * asked, 1e-11, 2 * self._problem.eps)

    def reference(self) -> Tensor:
        """The gradient of a solve whose state is in float64, func in its own precision, by our replay."""
        tight, narrow = self.tight, [x.dtype for x in tensors_of(self._problem.state())]
        kept = {name: self._options[name] for name in _POINTS if name in self._options}
        # Its interpolation is of a lower order than its steps.
        points = [self._t[1:], *(torch.as_tensor(x).to(self._t) for x in kept.values())]
        kept["step_t"] = torch.cat(points).unique()

        def solve(func: Any, y0: State) -> State:
            def wide(t: Tensor, y: State) -> State:
                return _cast(func(t.to(self._t.dtype), _cast(y, narrow)), map(_wide, narrow))

            settings: dict[str, Any] = {"rtol": tight, "atol": 0.1 * tight, "method": "dopri8", "options": kept}
            named: dict[str, Any] = {"adjoint_params": tuple(self._problem.params)}
            ys = odeint_adjoint(wide, _cast(y0, map(_wide, narrow)), self._t, **settings, adjoint_method="aca", **named)
            return _cast(ys, narrow)

        return recorded(lambda: self._problem.gradient(solve), self._clock)[0]

    def ways(self, memory: int | str | None) -> Iterator[Way]:
        """All of them, the host's first; some of ours look at those before them."""
        named = {"adjoint_params": tuple(self._problem.params)}
        graph = self._host("back-propagation", "odeint", host.odeint, True)
        yield graph
        states = self._ours("aca")
        yield states
        graphs = self._ours("aca", memory="graphs")
        yield skip_if_too_large(graphs, graph)
        size = memory or (in_bytes(graphs.row.held / 2) if graphs.row.held else None)
        few = max(2, isqrt(states.steps)) if states.steps else 8
        more: list[dict[str, Any]] = [{"memory": size}] if size else []
        more += [{"checkpoints": few}, {"graph": "stage"}, {"checkpoints": few, "graph": "stage"}]
        for kept in more:
            yield self._ours("aca", **kept)
        if self._is_adaptive:
            yield self._ours("quadrature")
        yield self._host("odeint_adjoint", "odeint_adjoint", host.odeint_adjoint, False, **named)
        if self._is_adaptive:
            own = {name: value for name, value in self._options.items() if name != "norm"}
            seminorm = {"adjoint_options": {**own, "norm": "seminorm"}}
            yield self._host(
                "odeint_adjoint, seminorm", "odeint_adjoint", host.odeint_adjoint, False, **seminorm, **named
            )
        yield self._ours("aca", CompiledWay, compile=True)

    def _host(self, name: str, function: str, solve: Any, is_discrete: bool, **adjoint: Any) -> HostWay:
        norm = ', adjoint_options={"norm": "seminorm"}' if "seminorm" in name else ""
        call = f"torchdiffeq.{function}(func, y0, t, ...{norm})"
        run = self._bound(solve, adjoint)
        return HostWay(name, call, is_discrete, self._problem, self._clock, run, watched=Watched)

    def _ours(self, adjoint_method: str, kind: type[OurWay] = OurWay, **kept: Any) -> OurWay:
        adjoint = {"adjoint_method": adjoint_method, "adjoint_options": kept or None, **self._named}
        name, asked = spelled(kept)
        call = f'odeint_adjoint(func, y0, t, ..., adjoint_method="{adjoint_method}"{asked})'
        run = self._bound(odeint_adjoint, adjoint)
        return kind(adjoint_method + name, call, adjoint_method == "aca", self._problem, self._clock, run)

    def _bound(self, solve: Any, adjoint: dict[str, Any]) -> Callable[[Any, State], State]:
        return lambda func, y0: solve(func, y0, self._t, **self._settings, **adjoint)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64


def _cast(y: State, dtypes: Iterable[torch.dtype]) -> State:
    """A state, or a tuple of them, each in its dtype."""
    if isinstance(y, Tensor):
        return y.to(next(iter(dtypes)))
    return tuple(x.to(dtype) for x, dtype in zip(y, dtypes, strict=True))
