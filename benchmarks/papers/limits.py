"""What each way to a gradient can do and cannot, by trying it on a tiny case with a closed form.

- yes: the gradient is the closed form's, to a relative 1e-3 (dropout: 1e-9).
- wrong: a number came back that is not, or none where there is one (a gradient silently lost). "off by" is relative.
- refused: an error, in the forward or the backward pass.
- no: there is no argument to ask for it.

dopri5 at 1e-7 in float64, dy/dt = p·y with p = 0.3 and y(0) = 1.5 over t in [0, 1] where nothing else is said.
Second derivatives are asked for beside the loss, as a penalty on the gradient does: one that comes back without a graph
is silently taken for a constant there.
"""

from __future__ import annotations

import abc
import functools
import importlib
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchdiffeq
from torch import Tensor

import steptape.torch
from benchmarks.envelope import Rows
from benchmarks.measurements import Cells
from benchmarks.papers.verdicts import TOLERANCE, Y0, Absent, P, Verdict, row, verdict
from benchmarks.papers.ways import Claim


class Field(torch.nn.Module):
    """dy/dt = ``slope(p, t, y)`` with the parameter p."""

    def __init__(self, slope: Callable[..., Any], p: float = P):
        super().__init__()
        self.slope, self.p = slope, torch.nn.Parameter(torch.tensor(p, dtype=torch.float64))

    def forward(self, t: Tensor, y: Any) -> Any:
        """The slope."""
        return self.slope(self.p, t, y)


class Peer(abc.ABC):
    """One way to solve and differentiate, of the package it needs."""

    package: str

    @abc.abstractmethod
    def solve(self, field: Any, y0: Any, t: Tensor, method: str | None = None) -> Any:
        """The solution at ``t``, on a grid where there is a ``method``."""

    def event(self, field: Any, y0: Tensor, event: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The time at which ``event`` is 0."""
        raise Absent

    def sde(self, field: Any, y0: Tensor, t: Tensor, path: Any) -> Tensor:
        """The solution of an SDE on a Brownian path."""
        raise Absent


class Torchdiffeq(Peer):
    """torchdiffeq and torchsde, or steptape in front of them, by ``odeint`` or ``odeint_adjoint`` with settings."""

    package = "torchdiffeq"

    def __init__(self, interface: Callable[..., Any], **settings: Any):
        self._interface, self._settings = interface, settings

    def solve(self, field: Any, y0: Any, t: Tensor, method: str | None = None) -> Any:
        """A grid has steps of 0.01."""
        settings = {"rtol": TOLERANCE, "atol": TOLERANCE, "method": method or "dopri5", **self._settings}
        return self._interface(field, y0, t, **settings, options={"step_size": 0.01} if method else None)

    def event(self, field: Any, y0: Tensor, event: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """By ``odeint_event``."""
        start, settings = torch.zeros((), dtype=torch.float64), {"rtol": TOLERANCE, "atol": TOLERANCE, **self._settings}
        return torchdiffeq.odeint_event(
            field, y0, start, event_fn=event, odeint_interface=self._interface, method="dopri5", **settings
        )[0]

    def sde(self, field: Any, y0: Tensor, t: Tensor, path: Any) -> Tensor:
        """By Milstein's method."""
        import torchsde

        solves = {
            torchdiffeq.odeint: torchsde.sdeint,
            torchdiffeq.odeint_adjoint: torchsde.sdeint_adjoint,
            steptape.torch.odeint_adjoint: steptape.torch.sdeint_adjoint,
        }
        if "adjoint_options" in self._settings:
            raise Absent
        return solves[self._interface](field, y0, t, bm=path, dt=1e-3, method="milstein", **self._settings)


class Zuko(Peer):
    """zuko's odeint: the end of an adaptive solve."""

    package = "zuko"

    def solve(self, field: Any, y0: Any, t: Tensor, method: str | None = None) -> Any:
        """Several outputs are several solves."""
        from zuko.utils import odeint

        if method:
            raise Absent
        params, ys = tuple(field.parameters()), [y0]
        # It hands over the parts of a tuple one by one.
        func = field if isinstance(y0, Tensor) else lambda t, *y: field(t, y)
        for start, end in itertools.pairwise(t):
            ys.append(odeint(func, ys[-1], start, end, params, atol=TOLERANCE, rtol=TOLERANCE))
        return torch.stack(ys) if isinstance(y0, Tensor) else tuple(map(torch.stack, zip(*ys, strict=True)))


class Torchode(Peer):
    """torchode with one of its adjoints; its state is (batch, features)."""

    package = "torchode"

    def __init__(self, adjoint: str):
        self._adjoint = adjoint

    def solve(self, field: Any, y0: Any, t: Tensor, method: str | None = None) -> Any:
        """A batch of one; its one fixed grid is Euler's with a constant step."""
        import torchode

        if not isinstance(y0, Tensor):
            raise Absent
        term = torchode.ODETerm(_Batched(field))
        step = (torchode.Euler if method else torchode.Dopri5)(term=term)
        controller = (
            torchode.FixedStepController()
            if method
            else torchode.IntegralController(atol=TOLERANCE, rtol=TOLERANCE, term=term)
        )
        own = self._adjoint == "AutoDiffAdjoint"
        solver = getattr(torchode, self._adjoint)(*((step, controller) if own else (term, step, controller)))
        times = t.unsqueeze(0)
        problem = torchode.InitialValueProblem(y0[None], t_start=times[:, 0], t_end=times[:, -1], t_eval=times)
        first = {"dt0": torch.full((1,), 1e-3, dtype=torch.float64)} if method else {}
        return solver.to(torch.float64).solve(problem, term=term if own else None, **first).ys[0]


class Torchdyn(Peer):
    """torchdyn, by autograd or by the adjoint of its ``ODEProblem``."""

    package = "torchdyn"

    def __init__(self, adjoint: bool):
        self._adjoint = adjoint

    def solve(self, field: Any, y0: Any, t: Tensor, method: str | None = None) -> Any:
        """A fixed grid is that of its output times."""
        from torchdyn.numerics import DormandPrince45, RungeKutta4, odeint
        from torchdyn.numerics.sensitivity import _gather_odefunc_adjoint

        solver = (RungeKutta4 if method else DormandPrince45)(torch.float64)
        times = torch.linspace(0, 1, 101, dtype=torch.float64) if method else t
        interpolator = None if method else "4th"
        if not self._adjoint:
            return odeint(field, y0, times, solver, TOLERANCE, TOLERANCE, interpolator=interpolator)[1]
        params = torch.cat([p.reshape(1) for p in field.parameters()])
        forward, backward = (solver, TOLERANCE, TOLERANCE, interpolator), (solver, TOLERANCE, TOLERANCE)
        solve = _gather_odefunc_adjoint(field, params, *forward, *backward, None, "standard")
        return solve.apply(params, y0, times, None, ())[1]


class _Batched(torch.nn.Module):
    """A field for t (batch,) and y (batch, features), of a batch of one."""

    def __init__(self, field: torch.nn.Module):
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.field(t[0], y[0]).unsqueeze(0)


PEERS: dict[str, Peer] = {
    "torchdiffeq odeint": Torchdiffeq(torchdiffeq.odeint),
    "odeint_adjoint": Torchdiffeq(torchdiffeq.odeint_adjoint),
    "odeint_adjoint, seminorm": Torchdiffeq(torchdiffeq.odeint_adjoint, adjoint_options={"norm": "seminorm"}),
    "steptape ACA": Torchdiffeq(steptape.torch.odeint_adjoint, adjoint_method="aca"),
    "steptape quadrature": Torchdiffeq(steptape.torch.odeint_adjoint, adjoint_method="quadrature"),
    "zuko": Zuko(),
    "torchode, autograd": Torchode("AutoDiffAdjoint"),
    "torchode, joint backsolve": Torchode("JointBacksolveAdjoint"),
    "torchdyn, autograd": Torchdyn(adjoint=False),
    "torchdyn, adjoint": Torchdyn(adjoint=True),
}


def _growth(p: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return p * y


def _start() -> Tensor:
    return torch.full((1,), Y0, dtype=torch.float64, requires_grad=True)


def _times(*times: float) -> Tensor:
    return torch.tensor(times or (0.0, 1.0), dtype=torch.float64)


def _differ(loss: Tensor, inputs: Sequence[Tensor], exact: Sequence[float]) -> float:
    found = torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=True)
    return max(math.inf if x is None else abs(complex(x.sum()) - y) / abs(y) for x, y in zip(found, exact, strict=True))


def _tuple(peer: Peer) -> float:
    # a = exp(pt) and b' = a: L = b(1) has dL/dp = (p e^p − e^p + 1) / p².
    field = Field(lambda p, t, y: (p * y[0], y[0].expand(2)))
    state = torch.ones(1, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    b = peer.solve(field, state, _times())[1][-1]
    return _differ(b[0], [field.p], [(P * math.exp(P) - math.exp(P) + 1) / P**2])


def _outputs(peer: Peer) -> float:
    field, y0, times = Field(_growth), _start(), (0.0, 0.2, 0.5, 1.0)
    loss = peer.solve(field, y0, _times(*times))[1:].sum()
    exact = [math.exp(P * t) for t in times[1:]]
    return _differ(loss, [y0, field.p], [sum(exact), sum(Y0 * t * x for t, x in zip(times[1:], exact, strict=True))])


def _reverse(peer: Peer) -> float:
    field, y0 = Field(_growth), _start()
    loss = peer.solve(field, y0, _times(1.0, 0.0))[-1].sum()
    return _differ(loss, [y0, field.p], [math.exp(-P), -Y0 * math.exp(-P)])


def _event(peer: Peer) -> float:
    # y = 1.5 + 0.3 t is 2 at t = (2 − y0) / p.
    field, y0 = Field(lambda p, t, y: p.expand_as(y)), _start()
    when = peer.event(field, y0, lambda t, y: y[0] - 2)
    return _differ(when, [y0, field.p], [-1 / P, -(2 - Y0) / P**2])


def _time(peer: Peer) -> float:
    field, t = Field(_growth), _times(0.0, 1.0).requires_grad_()
    loss = peer.solve(field, _start(), t)[-1].sum()
    found = torch.autograd.grad(loss, t, allow_unused=True)[0]
    slope = P * Y0 * math.exp(P)
    return math.inf if found is None else float((found - _times(-slope, slope)).abs().max()) / slope


def _second(peer: Peer) -> float:
    # L = y(1)² = y0² e^2p: of L plus either of its derivatives, the derivatives.
    field, y0 = Field(_growth), _start()
    loss = peer.solve(field, y0, _times())[-1].square().sum()
    first = torch.autograd.grad(loss, [y0, field.p], create_graph=True)
    g = math.exp(2 * P)
    once, twice = (2 * Y0 * g, 2 * Y0**2 * g), ((2 * g, 4 * Y0 * g), (4 * Y0 * g, 4 * Y0**2 * g))
    return max(
        _differ(loss + x.sum(), [y0, field.p], [y + z for y, z in zip(once, exact, strict=True)])
        for x, exact in zip(first, twice, strict=True)
    )


def _grid(peer: Peer) -> float:
    field, y0 = Field(_growth), _start()
    loss = peer.solve(field, y0, _times(), "rk4")[-1].sum()
    return _differ(loss, [y0, field.p], [math.exp(P), Y0 * math.exp(P)])


class _Geometric(torch.nn.Module):
    noise_type, sde_type = "diagonal", "ito"

    def __init__(self) -> None:
        super().__init__()
        self.p = torch.nn.Parameter(torch.tensor(P, dtype=torch.float64))

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.p * y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return 0.2 * y


def _sde(peer: Peer) -> float:
    # Geometric Brownian motion: y(1) is linear in y0, and dy(1)/dp = y(1).
    import torchsde

    field, y0 = _Geometric(), torch.full((1, 1), Y0, dtype=torch.float64, requires_grad=True)
    path = torchsde.BrownianInterval(0.0, 1.0, size=(1, 1), dtype=torch.float64, entropy=7)
    end = peer.sde(field, y0, _times(), path)[-1].sum()
    return _differ(end, [y0, field.p], [float(end) / Y0, float(end)])


class _Borrower(torch.nn.Module):
    """dy/dt = (p + own)·y with own = 0: a module, as ``odeint_adjoint`` asks for, that does not own its p."""

    def __init__(self, p: Tensor):
        super().__init__()
        self.own = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        self._slope = lambda y: (p + self.own) * y

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self._slope(y)


def _closure(peer: Peer) -> float:
    p, y0 = torch.tensor(P, dtype=torch.float64, requires_grad=True), _start()
    loss = peer.solve(_Borrower(p), y0, _times())[-1].sum()
    return _differ(loss, [y0, p], [math.exp(P), Y0 * math.exp(P)])


def _dropout(peer: Peer) -> float:
    # Linear in y0 whatever is dropped, on a grid: dy(1)/dy0 = y(1) / y0 for the masks that were drawn.
    y0 = torch.full((9,), Y0, dtype=torch.float64, requires_grad=True)
    field = Field(lambda p, t, y: p * torch.nn.functional.dropout(y, 0.5))
    end = peer.solve(field, y0, _times(), "rk4")[-1]
    found = torch.autograd.grad(end.sum(), y0)[0]
    return float((found - end / Y0).abs().max() / found.abs().max())


def _complex(peer: Peer) -> float:
    # y = exp(ipt)·y0; L = Im y(1) = y0 sin p.
    field, y0 = Field(lambda p, t, y: 1j * p * y), torch.full((1,), Y0, dtype=torch.complex128)
    loss = peer.solve(field, y0, _times())[-1].imag.sum()
    return _differ(loss, [field.p], [Y0 * math.cos(P)])


CASES: dict[str, Callable[[Peer], float]] = {
    "tuple state": _tuple,
    "several outputs": _outputs,
    "reverse time": _reverse,
    "event's time": _event,
    "gradient in t": _time,
    "second derivatives": _second,
    "fixed grid": _grid,
    "SDE": _sde,
    "parameter in a closure": _closure,
    "dropout": _dropout,
    "complex state": _complex,
}
# Its closed form is the discrete solution's own.
BOUNDS = {"dropout": 1e-9}


def run(quick: bool) -> Cells:
    """A cell for each peer."""
    return {name: functools.partial(_cell, name) for name in PEERS}


def _cell(name: str) -> Rows:
    peer = PEERS[name]
    try:
        importlib.import_module(peer.package)
    except ImportError:
        return [{"peer": name, "tuple state": "not installed"}]
    return [row(name, {case: _try(peer, case) for case in CASES})]


def _try(peer: Peer, case: str) -> Verdict:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return verdict(lambda: CASES[case](peer), BOUNDS.get(case, 1e-3))


def claims(rows: Rows) -> list[Claim]:
    """The project's own notes on its peers."""
    found = {row["peer"]: row for row in rows}
    lost = [name for name, row in found.items() if "wrong" in row.get("parameter in a closure", "")]
    sign = found.get("zuko", {}).get("gradient in t", "not installed")
    return [
        Claim(
            "a parameter held only in a closure silently gets no gradient from every memory-saving peer",
            f"lost by {', '.join(lost) or 'none'}",
            "Their backward passes differentiate with respect to what they are told of. steptape finds the parameter "
            "in the graph of func and raises an error that names the way out.",
        ),
        Claim("zuko's gradient in t0 has the wrong sign", f"zuko, gradient in t: {sign}", "Relative to |dL/dt|."),
    ]
