"""What each way to a gradient can do and cannot, by trying it on a tiny case with a closed form.

- yes: the gradient is the closed form's, to a relative 1e-3 (dropout: 1e-9).
- wrong: a number came back that is not, or none where there is one (a gradient silently lost). "off by" is relative.
- refused: an error, in the forward or the backward pass.
- no: there is no argument to ask for it.

dopri5 at 1e-7 in float64, dy/dt = p·y with p = 0.3 and y(0) = 1.5 over t in [0, 1] where nothing else is said.
Second derivatives are asked for beside the loss, as a penalty on the gradient does: one that comes back without a graph
is silently taken for a constant there.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchdiffeq
from torch import Tensor

import steptape.torch
from benchmarks.envelope import Rows
from benchmarks.fields import Field
from benchmarks.measurements import Cells
from benchmarks.papers import exact
from benchmarks.papers.claims import Claim
from benchmarks.papers.exact import Y0, P
from benchmarks.papers.verdicts import Verdict, row, verdict
from benchmarks.peers import METHODS, Method, ours
from benchmarks.ways import HOST, HOST_ADJOINT, OURS, Absent

PEERS = {
    "torchdiffeq odeint": METHODS[HOST],
    "odeint_adjoint": METHODS[HOST_ADJOINT],
    "odeint_adjoint, seminorm": METHODS[f"{HOST_ADJOINT}, seminorm"],
    "steptape ACA": METHODS[OURS],
    "steptape quadrature": Method(ours("quadrature"), "steptape"),
    **{name: METHODS[name] for name in ("zuko", "torchode, autograd", "torchode, joint backsolve")},
    **{name: METHODS[name] for name in ("torchdyn, autograd", "torchdyn, adjoint")},
}
_TOLERANCES = {"rtol": exact.TOLERANCE, "atol": exact.TOLERANCE}


def _solved(peer: str, field: Any, y0: Any, t: Tensor, method: str = "dopri5") -> Any:
    """The solution at ``t``; a grid has steps of 0.01."""
    options = None if method == "dopri5" else {"step_size": 0.01}
    return PEERS[peer].solve(field, y0, t, **_TOLERANCES, method=method, options=options)


def _field(slope: Callable[..., Any]) -> tuple[Field, Tensor]:
    """dy/dt = ``slope(p, t, y)``, and its parameter p."""
    p = torch.nn.Parameter(torch.tensor(P, dtype=torch.float64))
    return Field(functools.partial(slope, p), p), p


def _growth(p: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return p * y


def _start() -> Tensor:
    return torch.full((1,), Y0, dtype=torch.float64, requires_grad=True)


def _times(*times: float) -> Tensor:
    return torch.tensor(times or (0.0, 1.0), dtype=torch.float64)


def _differ(loss: Tensor, inputs: Sequence[Tensor], right: Sequence[float]) -> float:
    found = torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=True)
    return max(math.inf if x is None else abs(complex(x.sum()) - y) / abs(y) for x, y in zip(found, right, strict=True))


@dataclasses.dataclass(frozen=True)
class _Plain:
    """A loss of a solve, and its derivatives: in y(0) and p, or in p alone."""

    right: Sequence[float]
    loss: Callable[[Any], Tensor] = lambda ys: ys[-1].sum()
    times: tuple[float, ...] = ()
    slope: Callable[..., Any] = _growth
    start: Callable[[], Any] = _start
    method: str = "dopri5"

    def __call__(self, peer: str) -> float:
        (field, p), y0 = _field(self.slope), self.start()
        loss = self.loss(_solved(peer, field, y0, _times(*self.times), self.method))
        return _differ(loss, [y0, p][-len(self.right) :], self.right)


def _event(peer: str) -> float:
    if PEERS[peer].package not in ("torchdiffeq", "steptape"):
        raise Absent
    (field, p), y0, start = _field(lambda p, t, y: p.expand_as(y)), _start(), torch.zeros((), dtype=torch.float64)
    how = {**_TOLERANCES, "method": "dopri5", "odeint_interface": PEERS[peer].solve}
    when = torchdiffeq.odeint_event(field, y0, start, event_fn=lambda t, y: y[0] - 2, **how)[0]
    return _differ(when, [y0, p], exact.CROSSING)


def _time(peer: str) -> float:
    t = _times().requires_grad_()
    loss = _solved(peer, _field(_growth)[0], _start(), t)[-1].sum()
    found = torch.autograd.grad(loss, t, allow_unused=True)[0]
    return math.inf if found is None else float((found - _times(-exact.SLOPE, exact.SLOPE)).abs().max()) / exact.SLOPE


def _second(peer: str) -> float:
    # Of L = y(1)² plus either of its derivatives, the derivatives.
    (field, p), y0 = _field(_growth), _start()
    loss = _solved(peer, field, y0, _times())[-1].square().sum()
    first = torch.autograd.grad(loss, [y0, p], create_graph=True)
    return max(
        _differ(loss + x.sum(), [y0, p], [y + z for y, z in zip(exact.SQUARE, second, strict=True)])
        for x, second in zip(first, exact.HESSIAN, strict=True)
    )


class _Geometric(torch.nn.Module):
    """Geometric Brownian motion: y(1) is linear in y0, and dy(1)/dp = y(1)."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self) -> None:
        super().__init__()
        self.p = torch.nn.Parameter(torch.tensor(P, dtype=torch.float64))

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.p * y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return 0.2 * y


def _sde(peer: str) -> float:
    import torchsde

    solves = {"torchdiffeq odeint": torchsde.sdeint, "odeint_adjoint": torchsde.sdeint_adjoint}
    for name, method in (("steptape ACA", "aca"), ("steptape quadrature", "quadrature")):
        solves[name] = functools.partial(steptape.torch.sdeint_adjoint, adjoint_method=method)
    if peer not in solves:
        raise Absent
    field, y0 = _Geometric(), torch.full((1, 1), Y0, dtype=torch.float64, requires_grad=True)
    path = torchsde.BrownianInterval(0.0, 1.0, size=(1, 1), dtype=torch.float64, entropy=7)
    end = solves[peer](field, y0, _times(), bm=path, dt=1e-3, method="milstein")[-1].sum()
    return _differ(end, [y0, field.p], [float(end) / Y0, float(end)])


def _closure(peer: str) -> float:
    # A module, as odeint_adjoint asks for, with a parameter of its own, which is 0, and one that it does not own.
    (_, p), own, y0 = _field(_growth), torch.nn.Parameter(torch.zeros((), dtype=torch.float64)), _start()
    loss = _solved(peer, Field(lambda t, y: (p + own) * y, own), y0, _times())[-1].sum()
    return _differ(loss, [y0, p], exact.END)


def _dropout(peer: str) -> float:
    # Linear in y0 whatever is dropped, on a grid: dy(1)/dy0 = y(1) / y0 for the masks that were drawn.
    y0 = torch.full((9,), Y0, dtype=torch.float64, requires_grad=True)
    field, _ = _field(lambda p, t, y: p * torch.nn.functional.dropout(y, 0.5))
    end = _solved(peer, field, y0, _times(), "rk4")[-1]
    found = torch.autograd.grad(end.sum(), y0)[0]
    return float((found - end / Y0).abs().max() / found.abs().max())


CASES: dict[str, Callable[[str], float]] = {
    "tuple state": _Plain(
        exact.PARTS,
        lambda parts: parts[1][-1][0],
        slope=lambda p, t, y: (p * y[0], y[0].expand(2)),
        start=lambda: (torch.ones(1, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)),
    ),
    "several outputs": _Plain(exact.OUTPUTS, lambda ys: ys[1:].sum(), (0.0, *exact.TIMES)),
    "reverse time": _Plain(exact.BACK, times=(1.0, 0.0)),
    "event's time": _event,
    "gradient in t": _time,
    "second derivatives": _second,
    "fixed grid": _Plain(exact.END, method="rk4"),
    "SDE": _sde,
    "parameter in a closure": _closure,
    "dropout": _dropout,
    "complex state": _Plain(
        exact.TURNED,
        lambda ys: ys[-1].imag.sum(),
        slope=lambda p, t, y: 1j * p * y,
        start=lambda: torch.full((1,), Y0, dtype=torch.complex128),
    ),
}
# Its closed form is the discrete solution's own.
BOUNDS = {"dropout": 1e-9}


def run(quick: bool) -> Cells:
    return {name: functools.partial(_cell, name) for name in PEERS}


def _cell(name: str) -> Rows:
    if PEERS[name].missing():
        return [{"peer": name, "tuple state": "not installed"}]
    return [row(name, {case: _try(name, case) for case in CASES})]


def _try(peer: str, case: str) -> Verdict:
    torch.manual_seed(0)
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
            "Their backward passes differentiate with respect to what they are told of. steptape's replay finds the "
            "parameter in the graph of func.",
        ),
        Claim("zuko's gradient in t0 has the wrong sign", f"zuko, gradient in t: {sign}", "Relative to |dL/dt|."),
    ]
