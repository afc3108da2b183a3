"""Calls of odeint and sdeint as people write them, drawn at random, and what they give with either gradient.

A call is drawn from what users vary: dtypes and the size of t, how often the field turns within a step, where its
weights come from and what is hooked to them, outputs, events, options of the solvers, memory, and the order of the
derivative.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.utils.parametrizations as parametrizations
import torch.nn.utils.parametrize as parametrize
import torchdiffeq
from hypothesis import strategies as st
from torch import Tensor

from steptape.compat._torchdiffeq import SOLVERS
from steptape.shared_tests.oracles.distance import euclidean
from steptape.torch import odeint_adjoint
from steptape.torch._hosts.scheme import scheme_of
from steptape_helpers.torch_solves import ADAPTIVE

BATCH, SIZE = 5, 3
METHODS = [name for name, solver in SOLVERS.items() if scheme_of(solver) is not None]
WEIGHTS = (
    "plain",
    "doubled by a hook",
    "clipped by a hook",
    "computed before",
    "context and its source",
    "orthogonal",
    "weight norm",
    "spectral norm",
    "scripted",
    "used later",
    "tied",
    "frozen",
    "double",
    "potential",
    "dropout",
    "noise once",
    "batch norm",
    "in place",
    "cached",
    "kept in a dict",
)
CLOSED_OVER = ("plain", "doubled by a hook", "used later", "tied", "context and its source", "cached", "potential")
# Which change something besides in every evaluation: a cubic through slopes evaluated anew is another one.
CHANGING = ("dropout", "batch norm", "spectral norm")


class Field(torch.nn.Module):
    """dy/dt = tanh(Wy + b) + v cos(ωt) - y/2, with W as ``weights`` says; notes when it is evaluated."""

    def __init__(self, weights: str, frequency: float, middle: float, dtype: torch.dtype):
        super().__init__()
        self.weights, self.frequency, self.middle = weights, frequency, middle
        self.net = torch.nn.Linear(SIZE, SIZE)
        self.v = torch.nn.Parameter(torch.linspace(0.5, 1.0, SIZE))
        self.more: torch.nn.Module = torch.nn.Identity()
        self.to(torch.float64 if weights == "double" else dtype)
        self._prepare(weights)
        self.memory: dict[str, Any] = {}
        self.times: dict[bool, set[float]] = {True: set(), False: set()}
        self.calls = 0

    def _prepare(self, weights: str) -> None:
        if weights == "orthogonal":
            parametrizations.orthogonal(self.net, orthogonal_map="cayley")
        elif weights in ("weight norm", "cached"):
            parametrizations.weight_norm(self.net)
        elif weights == "spectral norm":
            parametrizations.spectral_norm(self.net)
        elif weights == "scripted":
            # Which shares the parameters.
            self.net = torch.jit.script(self.net)
        elif weights == "dropout":
            self.more = torch.nn.Dropout(0.3)
        elif weights == "batch norm":
            self.more = torch.nn.BatchNorm1d(SIZE).to(self.v.dtype)
        elif weights == "frozen":
            self.net.bias.requires_grad_(False)
        elif weights == "tied":
            self.v = self.net.bias
        elif weights.endswith("hook"):
            for p in self.parameters():
                p.register_hook(self._hook)

    def _hook(self, gradient: Tensor) -> Tensor:
        self.calls += 1
        return 2 * gradient if self.weights.startswith("doubled") else gradient.clamp(-0.1, 0.1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if not any(self.times.values()):
            # The one that finds what is used, which may stand for the first of the solve.
            self.times[False].add(t.item())
        self.times[y.requires_grad and torch.is_grad_enabled()].add(t.item())
        x = y.real if y.is_complex() else y
        drive = self.v * torch.cos(self.frequency * t).to(self.v.dtype)
        if self.weights == "used later" and t.item() < self.middle:
            drive = torch.zeros_like(drive)
        return (self._inner(x) + drive).to(y.dtype) - y / 2

    def _inner(self, x: Tensor) -> Tensor:
        net = self.net
        if self.weights == "potential":
            x = x if x.requires_grad else x.detach().requires_grad_()
            return -torch.autograd.grad((net(x).square() / 4).sum(), x, create_graph=True)[0]
        if self.weights == "kept in a dict":
            A = self.memory.setdefault("A", (net.weight - net.weight.T).tanh())
            return x @ A + net.bias
        if self.weights == "computed before":
            return torch.tanh(x @ self.memory["A"] + net.bias)
        if self.weights == "context and its source":
            return torch.tanh(net(x) + x @ self.memory["A"])
        if self.weights == "noise once":
            if "noise" not in self.memory:
                self.memory["noise"] = torch.randn_like(x)
            return torch.tanh(net(x)) * self.memory["noise"]
        if self.weights == "in place":
            return net(x).mul_(0.9).tanh_()
        return torch.tanh(self.more(net(x.to(net.weight.dtype))))


@dataclasses.dataclass(frozen=True)
class OdeCall:
    """One call of odeint."""

    weights: str
    method: str
    dtype: torch.dtype
    t_dtype: torch.dtype
    start: float
    direction: int
    outputs: int
    frequency: float
    tolerance: float
    options: dict[str, Any]
    keep: dict[str, Any]
    event: bool
    is_tuple: bool
    second: bool
    moving: bool
    no_module: bool
    seed: int
    named: bool = False


def refusal(call: OdeCall) -> tuple[str, bool] | None:
    """What is said of a call that ours does not answer, and whether it must be said."""
    if call.weights in CHANGING and call.options.get("interp") == "cubic":
        # An iteration that has converged changes nothing.
        return "Use 'interp': 'linear'", False
    if call.weights in CHANGING and "memory" in call.keep:
        return "Give a larger size", False
    return None


@dataclasses.dataclass
class Outcome:
    """What a call gave: its solution, its gradients, those in time apart, and what the field noted."""

    solution: Tensor
    gradients: list[Tensor]
    in_time: list[Tensor]
    hooks: int
    times: dict[bool, set[float]]


@st.composite
def ode_calls(draw: Any) -> OdeCall:
    """Any of them, as far as the host takes it."""
    weights = draw(st.sampled_from(WEIGHTS))
    method = draw(st.sampled_from(METHODS))
    low = weights in ("plain", "doubled by a hook", "used later", "tied", "noise once")
    dtypes = [torch.float64, torch.float32] + [torch.bfloat16, torch.float16, torch.complex128, torch.complex64] * low
    dtype = draw(st.sampled_from(dtypes))
    t_dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    plain = dtype in (torch.float64, torch.float32)
    start = draw(st.sampled_from([0.0, 0.3, -7.0, 10.0, 300.0, 1000.0]))
    adaptive = method in ADAPTIVE
    # The host itself evaluates func at an event without a graph.
    event = plain and weights != "potential" and draw(st.integers(0, 5)) == 0
    return OdeCall(
        weights=weights,
        method=method,
        dtype=dtype,
        t_dtype=t_dtype,
        start=start,
        direction=draw(st.sampled_from([1, 1, -1])),
        outputs=draw(st.integers(1, 4)),
        frequency=draw(st.sampled_from([1.0, 6.2832, 40.0, 300.0])),
        tolerance=draw(st.sampled_from([1e-2, 1e-3, 1e-4] if adaptive else [1e-3])),
        options=draw(_options(method, event)),
        keep=draw(_keeps(method)),
        event=event,
        is_tuple=draw(st.booleans()) and dtype not in (torch.complex64, torch.complex128),
        # The time of an event has first derivatives alone.
        second=plain and not event and weights not in ("orthogonal", "spectral norm") and draw(st.integers(0, 3)) == 0,
        moving=dtype == torch.float64 and weights != "potential" and draw(st.booleans()),
        no_module=weights in CLOSED_OVER and draw(st.booleans()),
        seed=draw(st.integers(0, 2**20)),
        named=draw(st.booleans()),
    )


@st.composite
def quadrature_calls(draw: Any) -> OdeCall:
    """Those that the quadrature adjoint takes, at tolerances at which the gradient of the ODE is the discrete one."""
    call = draw(ode_calls())
    method = draw(st.sampled_from(["dopri5", "dopri8"]))
    return dataclasses.replace(
        call,
        weights=(weights := draw(st.sampled_from([w for w in WEIGHTS if w not in CHANGING and w != "used later"]))),
        event=call.event and weights != "potential",
        method=method,
        dtype=torch.float64,
        start=draw(st.sampled_from([0.0, -7.0, 10.0])),
        frequency=draw(st.sampled_from([1.0, 6.2832, 40.0])),
        tolerance=1e-9,
        options=draw(_options(method, event=False)) | {"min_step": 1e-6},
        keep={name: value for name, value in call.keep.items() if name not in ("graph", "memory")},
        second=False,
        no_module=False,
    )


@st.composite
def _options(draw: Any, method: str, event: bool) -> dict[str, Any]:
    if method not in ADAPTIVE:
        interp = draw(st.sampled_from(["linear", "cubic"]))
        options = {"step_size": draw(st.sampled_from([0.09, 0.2])), "interp": interp, "perturb": draw(st.booleans())}
        return options if event or draw(st.booleans()) else {k: v for k, v in options.items() if k != "step_size"}
    options = {"first_step": draw(st.sampled_from([0.01, 0.05])), "min_step": 1e-3}
    if draw(st.integers(0, 2)) == 0:
        options["step_t"] = (0.21, 0.5)
    if draw(st.integers(0, 2)) == 0:
        options["jump_t"] = (0.37,)
    return options


@st.composite
def _keeps(draw: Any, method: str) -> dict[str, Any]:
    keep: dict[str, Any] = {}
    scheme = scheme_of(SOLVERS[method])
    has_stages = scheme is not None and scheme.tableau is not None
    if has_stages and draw(st.booleans()):
        keep["graph"] = "stage"
    if has_stages and draw(st.integers(0, 2)) == 0:
        return {**keep, "memory": draw(st.sampled_from(["graphs", "200 kB"]))}
    if draw(st.booleans()):
        keep["checkpoints"] = draw(st.integers(1, 4))
    if draw(st.integers(0, 3)) == 0:
        keep["checkpoint_device"] = "cpu"
    return keep


def run_ode(call: OdeCall, ours: bool, adjoint_method: str = "aca") -> Outcome:
    """The call, by back-propagation through the host or by ours."""
    torch.manual_seed(call.seed)
    real = torch.empty(0, dtype=call.dtype).real.dtype
    middle = call.start + call.direction * 0.4
    field = Field(call.weights, call.frequency, middle, real)
    y0 = torch.randn(BATCH, SIZE).to(call.dtype).requires_grad_()
    gaps = torch.tensor([0.0] + [0.7 / call.outputs] * call.outputs, dtype=call.t_dtype)
    t = (call.start + call.direction * gaps.cumsum(0)).requires_grad_(call.moving)
    inputs = [*([t] if call.moving else []), y0, *(p for p in field.parameters() if p.requires_grad)]
    # What a closure uses later on must be named.
    named = call.named or call.weights == "used later"
    params: tuple[Tensor, ...] | None = tuple(field.parameters()) if call.no_module and named else None
    before = call.weights in ("computed before", "context and its source")
    if before:
        field.memory["A"] = field.net.weight - field.net.weight.T
        field.memory["A"].retain_grad()
        sources = (field.net.weight,) * (call.weights != "computed before")
        params = (field.memory["A"], *sources, field.net.bias, field.v) if call.named else None
    solve: Callable[..., Any] = torchdiffeq.odeint
    if ours:
        adjoint: dict[str, Any] = {
            "adjoint_method": adjoint_method,
            "adjoint_options": call.keep,
            "adjoint_params": params,
        }
        solve = functools.partial(odeint_adjoint, **adjoint)
    context = parametrize.cached() if call.weights == "cached" else contextlib.nullcontext()
    with context:
        solution = _solution(call, solve, field, y0, t)
        gradients = gradients_of(solution, inputs, call.second)
    retained = [field.memory["A"].grad] if before else []
    # Those in t come first, of the first derivatives and of the second.
    in_time = gradients[:: len(inputs)] if call.moving else []
    others = [g for i, g in enumerate(gradients) if not call.moving or i % len(inputs)]
    return Outcome(solution.detach(), others + retained, in_time, field.calls, field.times)


def _solution(call: OdeCall, solve: Callable[..., Any], field: Field, y0: Tensor, t: Tensor) -> Tensor:
    """All that the call returns, flat."""
    options = dict(call.options)
    for name in ("step_t", "jump_t"):
        if name in options:
            options[name] = call.start + call.direction * torch.tensor(options[name], dtype=torch.float64)
    func: Any = (lambda t, y: field(t, y)) if call.no_module else field
    state: Any = y0
    if call.is_tuple:
        state = (y0, torch.zeros(BATCH, dtype=call.dtype))
        func = _Pair(field) if not call.no_module else _Pair(field).forward
    settings = {"method": call.method, "rtol": call.tolerance, "atol": call.tolerance, "options": options}
    if not call.event:
        return _flat(solve(func, state, t, **settings))

    def event_fn(t: Tensor, y: Any) -> Tensor:
        y = y[0] if call.is_tuple else y
        return call.direction * (t - call.start) - 0.55 + 0.05 * y.sum().tanh()

    reverse = {"reverse_time": call.direction < 0}
    return _flat(
        torchdiffeq.odeint_event(func, state, t[0], event_fn=event_fn, odeint_interface=solve, **reverse, **settings)
    )


class _Pair(torch.nn.Module):
    """A field, and the integral of a function of its state."""

    def __init__(self, field: Field):
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.field(t, y[0]), y[0].square().sum(1)


def _flat(returned: Any) -> Tensor:
    if isinstance(returned, Tensor):
        return returned.reshape(-1)
    parts = [_flat(part) for part in returned]
    return torch.cat([part.to(parts[-1].dtype) for part in parts])


def gradients_of(solution: Tensor, inputs: list[Tensor], second: bool) -> list[Tensor]:
    """The gradients of a loss of the solution, and those of a penalty on them where asked for."""
    cotangent = torch.linspace(1, 2, len(solution), dtype=torch.float64).to(solution.dtype)
    settings: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    if not second:
        return list(torch.autograd.grad(solution, inputs, cotangent, **settings))
    # The loss is no linear function of the solution, so that its cotangent has a derivative too.
    loss = (cotangent * solution).sum() + solution.square().sum() / 4
    first = torch.autograd.grad(loss, inputs, create_graph=True, **settings)
    penalty = torch.stack([g.double().square().sum() for g in first]).sum()
    return [g.detach() for g in first] + list(torch.autograd.grad(penalty, inputs, **settings))


def differ(call: Any, found: Outcome, expected: Outcome) -> list[tuple[float, float]]:
    """The difference of the gradients, and of those in time, each with what rounding may bring.

    That is what sums over all evaluations differ by, relative to all gradients together, of which one may be a small
    difference of large sums. Those in time divide by h, and are in the dtype of t, as are then second derivatives.
    """
    root = len(found.times[False] | found.times[True]) ** 0.5
    eps, eps_t = torch.finfo(call.dtype).eps, torch.finfo(call.t_dtype).eps
    plain = max(eps, eps_t * call.moving) * 100 if call.second else eps
    pairs = [(difference(found.gradients, expected.gradients), 20 * plain * root)]
    if call.moving:
        bound = 2000 * max(eps, eps_t) * root * (100 if call.second else 1)
        pairs.append((difference(found.in_time, expected.in_time), bound))
    return pairs


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Relative, of all of them together; infinite where one is finite and the other is not."""
    finite = [[gradient.isfinite() for gradient in gradients] for gradients in (found, expected)]
    if not all(map(torch.equal, *finite)):
        return float("inf")
    return euclidean(*([g[kept] for g, kept in zip(gs, finite[1], strict=True)] for gs in (found, expected)))
