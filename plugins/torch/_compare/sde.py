"""``compare_sde``: every way to a gradient, tried on the caller's own SDE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from steptape._compare.advice import size_of
from steptape._compare.clock import Clock
from steptape._compare.comparison import Comparison
from steptape._compare.race import REFERENCE, Oracle, Way, compared
from steptape._errors import OptionError
from steptape.compat import _torchsde as host
from steptape.torch._compare.problem import Problem, distance, last_square, params_of, unchanged
from steptape.torch._compare.ways import HostWay, OurWay, recorded, skip_if_too_large, spelled
from steptape.torch._sdeint import sdeint_adjoint
from steptape.torch._types import Times

# A reference's steps are so much shorter.
_FINER = 8


def compare_sde(
    sde: Any,
    y0: Tensor,
    ts: Times,
    *,
    loss: Callable[[Tensor], Tensor] | None = None,
    bm: Any = None,
    method: str | None = None,
    dt: float = 1e-3,
    adaptive: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-4,
    dt_min: float = 1e-5,
    options: dict[str, Any] | None = None,
    names: dict[str, str] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
    memory: int | str | None = None,
    time_limit: float = 60.0,
    progress: bool | None = None,
    ways: Sequence[str] | None = None,
) -> Comparison:
    """Run every way to the gradient of an SDE solve on your own model, along one Brownian path, and say which to take.

    Back-propagation through ``torchsde.sdeint``, the host's ``sdeint_adjoint``, with the seminorm where its backward
    solve is adaptive, and steptape's ``"aca"`` with all it can keep; all else is as in ``compare``.

    Args:
        sde, y0, ts, bm, method, dt, adaptive, rtol, atol, dt_min, options, names: the solve, as in
            ``torchsde.sdeint``; without ``bm`` one Brownian path is drawn for all ways.
        loss: maps the solution to a scalar; by default the mean square of its last output.
        adjoint_params: the tensors besides ``y0`` to differentiate with respect to; by default all that sde uses.
        memory: what there is, as a size such as ``"2 GiB"`` or a number of bytes, which the advice is for; by default
            any.
        time_limit: seconds for all of it. Ways for which there is no time are skipped, and shown as such.
        progress: whether to say on stderr what is done; by default where that is a terminal.
        ways: the names of those to run, as in the table; by default all.

    Returns:
        A ``Comparison``. ``error`` of a row is against a solve along the same path with steps of ``dt / 8``, which is
        as near to the equation's own as that, and ``difference`` against back-propagation.

    Memory:
        That of back-propagation, which is given up where autograd would save more than is free.

    Supports:
        What ``torchsde.sdeint`` does, without ``logqp`` and ``extra``. Nothing of the model is changed.

    Raises:
        OptionError: an argument is wrong, or nothing requires a gradient. What sde or loss raises in the first solve.

    Example:
        >>> import torch
        >>> from steptape.torch import compare_sde
        >>> class Growth(torch.nn.Module):
        ...     noise_type, sde_type = "diagonal", "stratonovich"
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.rate = torch.nn.Parameter(torch.tensor(1.0))
        ...     def f(self, t, y):
        ...         return self.rate * y
        ...     def g(self, t, y):
        ...         return 0.1 * y
        >>> y0, ways = torch.ones(4, 1), ["back-propagation", "aca"]
        >>> found = compare_sde(Growth(), y0, [0.0, 1.0], dt=0.1, method="midpoint", ways=ways)
        >>> [(row.way, row.difference < 1e-5) for row in found.rows]
        [('back-propagation', True), ('aca', True)]
    """
    clock, there_is = Clock(time_limit, progress), size_of(memory)
    if not isinstance(y0, Tensor) or y0.dim() != 2 or not isinstance(ts, (Tensor, Sequence)):
        raise OptionError(
            f"compare_sde(sde, y0={y0!r}, ts={ts!r}): y0 must be a tensor of shape (batch, channels), and ts a tensor "
            "or a sequence of numbers."
        )
    loss = last_square if loss is None else loss
    own = {"adaptive": adaptive, "options": options, "names": names}
    with unchanged(y0.device, sde, loss):
        forward, _, _, bm, method, _ = host.check_contract(sde, y0, ts, bm, method, adaptive, options, names, False)
        params = _params(sde, forward, ts, y0) if adjoint_params is None else list(adjoint_params)
    problem = Problem("compare_sde", sde, y0, params, loss)
    settings = {**own, "bm": bm, "method": method, "dt": dt, "rtol": rtol, "atol": atol, "dt_min": dt_min}
    solve = _Sde(problem, clock, ts, settings, adjoint_params is not None)
    title = solve.solved()
    oracles = (
        Oracle(solve.reference, lambda: f"the same path at dt / {_FINER}", REFERENCE),
        Oracle(solve.discrete, lambda: "back-propagation through torchsde.sdeint"),
    )
    found = compared(title, solve.ways(), oracles, distance, clock, problem.eps**0.5, there_is, ways)
    found.note = problem.waiting(clock)
    return found


def _params(sde: Any, forward: Any, ts: Any, y0: Tensor) -> list[Tensor]:
    t = torch.as_tensor(ts[0], dtype=y0.dtype, device=y0.device)
    return params_of(sde, lambda t, y: forward.f_and_g(t, y), (t, y0.detach()))


class _Sde:
    """A solve, its references, and the ways to its gradient. ``named``: whether the caller names the parameters."""

    def __init__(self, problem: Problem, clock: Clock, ts: Any, settings: dict[str, Any], named: bool):
        self._problem, self._clock, self._ts, self._settings = problem, clock, ts, settings
        self._params = {"adjoint_params": tuple(problem.params)}
        self._named = self._params if named else {}

    def solved(self) -> str:
        """The solve as it is, in words."""
        settings = self._settings
        self._clock.say("the solve")
        watched = WatchedSde(self._problem.func, self._clock.check)
        with self._problem.in_time(self._clock), self._problem.unchanged(), torch.no_grad():
            self._problem.loss_of(host.sdeint(watched, self._problem.state(), self._ts, **settings))
        steps = f"dt {settings['dt']:.3g}"
        if settings["adaptive"]:
            steps = f"rtol {settings['rtol']:.3g}, atol {settings['atol']:.3g}"
        return f"{settings['method']}, {steps}, {len(self._ts)} times of output"

    def discrete(self) -> Tensor:
        """Back-propagation."""
        return self._problem.gradient(self._bound(host.sdeint, {}), WatchedSde(self._problem.func, self._clock.check))

    def reference(self) -> Tensor:
        """The gradient of the same path's solution with finer steps, by our replay."""
        finer = {"dt": self._settings["dt"] / _FINER, "adaptive": False}
        solve = self._bound(sdeint_adjoint, {**finer, "adjoint_method": "aca", **self._named})
        return recorded(lambda: self._problem.gradient(solve), self._clock)[0]

    def ways(self) -> Iterator[Way]:
        """All of them, the host's first."""
        graph = self._host("back-propagation", "sdeint", host.sdeint, "", True)
        yield graph
        states = self._ours()
        yield states
        yield skip_if_too_large(self._ours(memory="graphs"), graph)
        yield self._ours(checkpoints=max(2, isqrt(states.steps)) if states.steps else 8)
        yield self._host("sdeint_adjoint", "sdeint_adjoint", host.sdeint_adjoint, "", False, **self._params)
        adaptive = {"adjoint_adaptive": True, "adjoint_options": {"norm": "seminorm"}, **self._params}
        call = ', adjoint_adaptive=True, adjoint_options={"norm": "seminorm"}'
        yield self._host("sdeint_adjoint, seminorm", "sdeint_adjoint", sdeint_adjoint, call, False, **adaptive)

    def _host(self, name: str, function: str, solve: Any, told: str, is_discrete: bool, **adjoint: Any) -> HostWay:
        package = "steptape.torch" if told else "torchsde"
        call = f"{package}.{function}(sde, y0, ts, ...{told})"
        run = self._bound(solve, adjoint)
        return HostWay(name, call, is_discrete, self._problem, self._clock, run, watched=WatchedSde)

    def _ours(self, **kept: Any) -> OurWay:
        name, asked = spelled(kept)
        call = f'sdeint_adjoint(sde, y0, ts, ..., adjoint_method="aca"{asked})'
        adjoint = {"adjoint_method": "aca", "adjoint_options": kept or None, **self._named}
        return OurWay("aca" + name, call, True, self._problem, self._clock, self._bound(sdeint_adjoint, adjoint))

    def _bound(self, solve: Any, adjoint: dict[str, Any]) -> Callable[[Any, Tensor], Any]:
        return lambda sde, y0: solve(sde, y0, self._ts, **{**self._settings, **adjoint})


class WatchedSde(torch.nn.Module):
    """An SDE, and a call of ``tick`` before each call of one of its methods."""

    def __init__(self, sde: Any, tick: Callable[[], None]):
        super().__init__()
        self.sde, self._tick = sde, tick

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            found = getattr(self.sde, name)
        if not callable(found) or isinstance(found, torch.nn.Module):
            return found

        def method(*given: Any, **named: Any) -> Any:
            self._tick()
            return found(*given, **named)

        return method
