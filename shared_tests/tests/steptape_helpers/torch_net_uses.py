"""What people do around solves, drawn at random: state of func's own, changes between solves, ways to call and to pull.

Each program is a chain of solves and one backward pass, by back-propagation through the host or by ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import torch
import torchdiffeq
from hypothesis import strategies as st
from torch import Tensor

from steptape.torch import install, odeint_adjoint
from steptape_helpers.torch_net import METHODS, _keeps
from steptape_helpers.torch_solves import ADAPTIVE

# Whose evaluations change something: in the ways that are given back, and in those that may be refused.
STATES = ("none", "largest so far", "running mean", "counter", "counter later", "dropout", "batch norm")
UNSEEN = ("another buffer", "mode", "number", "list", "own generator")
CHANGES = ("nothing", "number", "layer", "weight", "buffer", "mode", "closure")


class Field(torch.nn.Module):
    """dy/dt = tanh(net(y)) w s + c - y/2, with s as ``state`` says, and a context c that was computed before."""

    def __init__(self, state: str, size: int, dtype: torch.dtype, middle: float):
        super().__init__()
        self.state, self.size, self.middle = state, size, middle
        layers = torch.nn.Sequential(torch.nn.Linear(size, 4), torch.nn.Tanh(), torch.nn.Linear(4, size))
        self.inner = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([layers])})
        self.more: torch.nn.Module = torch.nn.Identity()
        if state == "dropout":
            self.more = torch.nn.Dropout(0.3)
        elif state == "batch norm":
            self.more = torch.nn.BatchNorm1d(size)
        self.w = torch.nn.Parameter(torch.linspace(0.5, 1.0, size))
        self.register_buffer("top", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("shift", torch.ones(size))
        self.to(dtype)
        self.scale, self.seen, self.values = 0.7, 0, list[float]()
        self.generator = torch.Generator().manual_seed(3)
        self.context: Any = 0.0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        x = (y.real if y.is_complex() else y).reshape(-1, self.size)
        out = self.more(self.inner["blocks"][0](x).tanh()) * self.w * self._factor(t.item(), x.detach())
        out = (out * self.scale + self.shift * self.context).to(y.dtype).reshape(y.shape)
        return (out * (1 + 0.5j) if y.is_complex() else out) - y / 2

    def _factor(self, t: float, x: Tensor) -> Any:
        state, late = self.state, t > self.middle
        if state == "largest so far":
            self.top.copy_(torch.maximum(self.top, x.abs().max()))
            return 1 / (1 + self.top)
        if state == "running mean":
            self.mean.mul_(0.9).add_(0.1 * x.mean(0))
            return 1 + self.mean
        if state == "another buffer":
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
            return 1 + self.mean
        if state == "counter" or (state == "counter later" and late):
            self.count += 1
        if state.startswith("counter"):
            return 1 + 0.01 * self.count.to(x.dtype)
        if state == "mode":
            factor = 1.0 if self.training else 1.5
            if late:
                self.eval()
            return factor
        if state == "number":
            self.seen += 1
            return 1 + 0.01 * self.seen
        if state == "list":
            self.values.append(t)
            return 1 + 0.01 * len(self.values)
        if state == "own generator":
            return 1 + 0.1 * torch.rand((), generator=self.generator, dtype=torch.float64).to(x.dtype)
        return 1.0

    def change(self, how: str, dtype: torch.dtype) -> None:
        """What a program does between two solves."""
        if how == "number":
            self.scale = 1.3
        elif how == "layer":
            self.inner["blocks"][0][2] = torch.nn.Linear(4, self.size).to(dtype)
        elif how == "weight":
            self.w = torch.nn.Parameter(torch.linspace(1.0, 0.2, self.size).to(dtype))
        elif how == "buffer":
            self.shift = 2 * self.shift
        elif how == "mode":
            self.eval()
        elif how == "closure" and isinstance(self.context, Tensor):
            self.context = self.context.sin()


@dataclasses.dataclass(frozen=True)
class Program:
    """A chain of solves, one call of each, and the gradient of all."""

    state: str
    method: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    solves: int
    change: str
    named: str
    call: str
    keep: dict[str, Any]
    interp: str
    context: bool
    closure: bool
    batched: bool
    seed: int


@st.composite
def programs(draw: Any) -> Program:
    """Any of them, as far as the host takes it."""
    method = draw(st.sampled_from(METHODS))
    state = draw(st.sampled_from(STATES + STATES + UNSEEN))
    shapes = [(3, 2), (2,), (1,), ()] if state != "batch norm" else [(3, 2)]
    low = [torch.bfloat16, torch.float16] if state != "batch norm" else []
    dtypes = [torch.float64] * 3 + [torch.float32, torch.complex128, torch.complex64, *low]
    return Program(
        state=state,
        method=method,
        dtype=draw(st.sampled_from(dtypes)),
        shape=draw(st.sampled_from(shapes)),
        solves=draw(st.integers(1, 3)),
        change=draw(st.sampled_from(CHANGES)),
        named=draw(st.sampled_from(["all", "all", "none", "some", "nothing said"])),
        call=draw(st.sampled_from(["direct", "direct", "direct", "installed", "overridden"])),
        keep=draw(_keeps(method)),
        interp=draw(st.sampled_from(["linear", "linear", "cubic"])),
        context=draw(st.booleans()),
        closure=draw(st.booleans()),
        batched=draw(st.integers(0, 3)) == 0,
        seed=draw(st.integers(0, 2**20)),
    )


def may_be_refused(program: Program) -> bool:
    """Whether func is one whose changes no replay is promised to repeat, or for which there is little room."""
    changes = program.state != "none"
    cubic = changes and program.interp == "cubic" and program.method not in ADAPTIVE
    return program.state in UNSEEN or cubic or (changes and program.keep.get("memory") == "200 kB")


@dataclasses.dataclass
class Outcome:
    """The solutions, the gradients, None where there is none, and what func has in the end."""

    solutions: list[Tensor]
    gradients: list[Tensor | None]
    named: list[int]
    state: dict[str, Tensor]


def run(program: Program, ours: bool) -> Outcome:
    """The program, by back-propagation or by ours."""
    torch.manual_seed(program.seed)
    real = torch.empty(0, dtype=program.dtype).real.dtype
    size = program.shape[-1] if program.shape else 1
    field = Field(program.state, size, real, middle=0.4)
    y0 = torch.randn(program.shape).to(program.dtype).requires_grad_()
    source = torch.randn(size).to(real).requires_grad_()
    if program.context:
        field.context = torch.tanh(source)
    inputs, named, solutions, y = [y0, source, *field.parameters()], list[Tensor](), list[Tensor](), y0
    with _solver(program, ours) as solve:
        for i in range(program.solves):
            if i:
                field.change(program.change, real)
                inputs += [p for p in field.parameters() if all(p is not q for q in inputs)]
            # Of a single number the host makes one in the dtype of the times.
            t = torch.tensor([0.0, 0.3, 0.7], dtype=torch.float64 if program.shape else real)
            params = params_of(program, field)
            named += params
            solutions.append(
                solve(params, (lambda t, y: field(t, y)) if program.closure else field, y, t, **_settings(program))
            )
            y = solutions[-1][-1]
        gradients = _gradients(program, ours, solutions, inputs)
    state = {name: x.clone() for name, x in field.state_dict().items()}
    places = [i for i, x in enumerate(inputs) if any(x is p for p in named)]
    return Outcome([x.detach() for x in solutions], gradients, places, state)


def _settings(program: Program) -> dict[str, Any]:
    adaptive = program.method in ADAPTIVE
    options = {"first_step": 0.05, "min_step": 1e-2} if adaptive else {"step_size": 0.1, "interp": program.interp}
    return {"method": program.method, "rtol": 1e-2, "atol": 1e-2, "options": options}


@contextlib.contextmanager
def _solver(program: Program, ours: bool) -> Iterator[Any]:
    """What solves: ours or the host's, which is given the parameters to name as well."""
    if not ours:
        yield lambda params, *args, **rest: torchdiffeq.odeint(*args, **rest)
    elif program.call == "direct":
        yield functools.partial(_directly, program)
    elif program.call == "installed":
        with install():
            yield functools.partial(_by_option, program)
    else:
        with install(default="aca", adjoint_options=program.keep, override=True):
            yield lambda params, *args, **rest: torchdiffeq.odeint(*args, **rest)


def _directly(program: Program, params: tuple[Tensor, ...], *args: Any, **rest: Any) -> Tensor:
    named = {} if program.named == "nothing said" else {"adjoint_params": params}
    return odeint_adjoint(*args, adjoint_method="aca", adjoint_options=program.keep, **named, **rest)


def _by_option(program: Program, params: Any, *args: Any, method: str, options: dict[str, Any], **rest: Any) -> Tensor:
    options = {**options, "method": method, "adjoint_options": program.keep}
    return torchdiffeq.odeint(*args, method="aca", options=options, **rest)


def params_of(program: Program, field: Field) -> tuple[Tensor, ...]:
    """Those that a call names."""
    if program.named == "none":
        return ()
    if program.named == "some":
        return (field.w,)
    context = (field.context,) if program.context else ()
    return (*context, *field.parameters())


def have_gradients(program: Program, found: Outcome, expected: Outcome) -> list[bool]:
    """Which inputs have one: those that have one of the host, but for what a call leaves out.

    The state at the start comes first, then what a context was computed from.
    """
    has, had = ([g is not None for g in outcome.gradients] for outcome in (found, expected))
    if program.call == "direct" and program.named in ("none", "some"):
        named = {0} if program.named == "none" else {0, *found.named}
        had = [of_host and i in named for i, of_host in enumerate(had)]
    assert has == had
    return has


def _gradients(program: Program, ours: bool, solutions: list[Tensor], inputs: list[Tensor]) -> list[Tensor | None]:
    ys = torch.cat([y.reshape(-1) for y in solutions])
    cotangent = torch.linspace(1, 2, len(ys), dtype=torch.float64).to(ys.dtype)
    if not program.batched:
        return list(torch.autograd.grad(ys, inputs, cotangent, allow_unused=True))
    several = torch.stack([cotangent, cotangent.flip(0)])
    if ours:
        return list(torch.autograd.grad(ys, inputs, several, allow_unused=True, is_grads_batched=True))
    # Not every operation of the host's takes a batch.
    each = [torch.autograd.grad(ys, inputs, one, allow_unused=True, retain_graph=True) for one in several]
    return [None if grads[0] is None else torch.stack(grads) for grads in zip(*each, strict=True)]
