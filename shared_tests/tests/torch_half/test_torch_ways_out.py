"""For every refusal of the PyTorch half: the way out that its words name works when it is tried.

A refusal in the source that no case here provokes fails the last test.
"""

import ast
import collections
import functools
import importlib
import itertools
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torchdiffeq

import steptape.torch
from steptape import GradientError, HostChangedError, OptionError, UnsupportedError
from steptape.compat import _torchdiffeq
from steptape.torch import compare, compare_sde, install, odeint_adjoint, sdeint_adjoint, seminorm

torchsde = pytest.importorskip("torchsde")

T = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
OPEN = {"step_t": torch.tensor([0.3], dtype=torch.float64)}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Case(NamedTuple):
    """``said``: by the error that ``refused()`` raises; ``ways``: calls that give gradients where they were wanted."""

    error: type
    said: str
    refused: Callable
    ways: tuple


CASES: list[Case] = []


def refusal(error, said, *ways):
    """The decorated call is refused with ``said``; each of the ``ways`` is a way out of it."""

    def register(refused):
        CASES.append(Case(error, said, refused, ways))
        return refused

    return register


class Decay(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([0.7, 1.3], dtype=torch.float64))

    def forward(self, t, y):
        return -self.w * y


def y0_of():
    return torch.ones(2, dtype=torch.float64, requires_grad=True)


def solved(func=None, odeint=odeint_adjoint, t=T, **call):
    """Solve and differentiate in y0; equal to back-propagation to the tolerance of a continuous adjoint."""
    call = {"adjoint_method": "aca", **call} if odeint is odeint_adjoint else call
    y0 = y0_of()
    ys = odeint(Decay() if func is None else func, y0, t, **call)
    ys = ys[1] if isinstance(ys, tuple) else ys
    (g,) = torch.autograd.grad(ys[-1].sum(), y0)
    assert g.isfinite().all()
    assert g.abs().sum() > 0
    return g


def right(*args, **call):
    torch.testing.assert_close(solved(*args, **call), solved(odeint=torchdiffeq.odeint), rtol=1e-4, atol=1e-6)


def odd(name, value, **call):
    return lambda: solved(adjoint_options={name: value}, **call)


QUAD = {"adjoint_method": "quadrature"}


def with_steps_of_any_length(**call):
    """As in torchdiffeq 0.2.3."""
    before, _torchdiffeq.BOUNDS_STEPS = _torchdiffeq.BOUNDS_STEPS, False
    try:
        right(**call)
    finally:
        _torchdiffeq.BOUNDS_STEPS = before


refusal(UnsupportedError, "have no 'max_step'", with_steps_of_any_length, lambda: right(**QUAD))(
    lambda: with_steps_of_any_length(**QUAD)
)

refusal(OptionError, "a positive number of Gauss–Legendre nodes", *[odd("nodes", n, **QUAD) for n in (3, None)])(
    odd("nodes", 0, **QUAD)
)
refusal(OptionError, "unknown option. The quadrature adjoint takes", odd("checkpoints", 3, **QUAD))(
    odd("checkpoint", 3, **QUAD)
)
refusal(
    OptionError,
    "must be a norm of a state",
    odd("norm", torch.linalg.vector_norm, **QUAD),
    odd("norm", "seminorm", **QUAD),
    lambda: solved(**QUAD, adjoint_options={"norm": seminorm(y0_of())}),
)(odd("norm", "seminrom", **QUAD))
refusal(OptionError, "no solver of torchdiffeq. Use one of", odd("method", "bosh3", **QUAD))(odd("method", "b", **QUAD))
refusal(
    UnsupportedError,
    "from the dense output of an adaptive solver",
    lambda: right(**QUAD, method="dopri8"),
    lambda: right(method="rk4", options={"step_size": 0.1}),
)(lambda: solved(**QUAD, method="rk4"))
refusal(OptionError, "unknown option. The adaptive checkpoint adjoint takes", odd("checkpoints", 2))(odd("keep", 2))
refusal(OptionError, "must be a positive number of states", odd("checkpoints", 1), odd("checkpoints", None))(
    odd("checkpoints", 0)
)
refusal(OptionError, "must be 'step' or 'stage'", odd("graph", "step"), odd("graph", "stage"))(odd("graph", "none"))
refusal(OptionError, "must be True or False", odd("lean", True), odd("lean", False))(odd("lean", "no"))
refusal(
    OptionError,
    "must be 'states', 'graphs', or a size",
    *[odd("memory", memory) for memory in ("states", "graphs", "2 GiB", "500 MB", 10**6)],
)(odd("memory", "2 GiBs"))


def kept_twice(**options):
    return lambda: right(adjoint_options=options)


for other in ({"checkpoints": 2}, {"checkpoint_device": "cpu"}):
    refusal(OptionError, "each says what is kept, and where", kept_twice(memory="graphs"), kept_twice(**other))(
        kept_twice(memory="graphs", **other)
    )
refusal(OptionError, "Give a larger size", kept_twice(memory=2000))(kept_twice(memory=100))
refusal(OptionError, "no torch device", odd("checkpoint_device", "cpu"))(odd("checkpoint_device", "disk"))
refusal(
    OptionError,
    "no such adjoint. steptape's are",
    *[lambda name=name: right(adjoint_method=name) for name in ("aca", "quadrature", "dopri8")],
)(lambda: solved(adjoint_method="ACA"))
refusal(OptionError, "t must be a non-empty 1-D floating-point tensor", lambda: right(t=T))(lambda: solved(t=T.long()))
refusal(OptionError, "strictly increasing or strictly decreasing", lambda: right(t=T.flip(0).sort().values.unique()))(
    lambda: solved(t=torch.cat([T, T]))
)
refusal(
    UnsupportedError,
    "cannot be replayed. Use one of",
    lambda: right(method="dopri8"),
    lambda: right(method="scipy_solver", adjoint_method=None, options={"solver": "RK45"}),
)(lambda: solved(method="scipy_solver", options={"solver": "RK45"}))
STEPS = {"method": "implicit_adams", "options": {"step_size": 0.05}}
refusal(UnsupportedError, "is replayed as a whole. Leave out 'graph'", lambda: right(**STEPS))(
    odd("graph", "stage", **STEPS)
)
refusal(
    UnsupportedError,
    "starts from slopes of earlier ones, or iterates",
    lambda: right(**STEPS),
    lambda: right(adjoint_options={"memory": "graphs"}),
)(odd("memory", "graphs", adjoint_params=(), **STEPS))

COMPILE = {"compile": {"backend": "eager"}}
refusal(
    OptionError,
    "must be True, False, or a dict of torch.compile's",
    odd("compile", False),
    *[odd("compile", {"backend": "eager", **more}) for more in ({}, {"mode": None}, {"options": None})],
)(odd("compile", {"fullgraph": False}))
for other in ({"memory": "graphs"}, {"graph": "stage"}):
    refusal(OptionError, "is taken again as a whole, from its state", kept_twice(**COMPILE), kept_twice(**other))(
        kept_twice(**COMPILE, **other)
    )
refusal(
    UnsupportedError,
    "the host's own, which is not compiled",
    lambda: right(**STEPS),
    lambda: right(adjoint_options=COMPILE),
)(lambda: right(**STEPS, adjoint_options=COMPILE))


class Odd(Decay):
    """Decays, and does what only Python sees: each a way not to be compiled."""

    def __init__(self, what="nothing"):
        super().__init__()
        self.what, self.count, self.seen = what, 0, None
        self.drop = torch.nn.Dropout(0.5)
        self.table = torch.nn.Embedding(1, 2, sparse=True, dtype=torch.float64) if what == "is sparse" else None
        self.ones = torch.ones(2, dtype=torch.float64)
        if what == "hook":
            self.drop.eval().register_full_backward_hook(lambda *_: None)

    def forward(self, t, y):
        if self.what == "counts" or (self.what == "counts as it is" and not torch.compiler.is_compiling()):
            self.count += 1
        elif (self.what == "branches" and t > 2) or (self.what == "looks" and y.norm() > 1e3):
            y = y * 2
        elif self.what == "stores":
            self.seen = y.detach()
        elif self.what == "changes":
            y = y * self.ones.mul_(1.0)
        elif self.what in ("draws", "hook"):
            y = self.drop(y)
        elif self.what == "clips" and y.requires_grad:
            y = y * 1.0
            y.register_hook(lambda g: g.clamp(-0.01, 0.01))
        elif self.table is not None:
            y = y * self.table(torch.zeros((), dtype=torch.long)).abs()
        return super().forward(t, y)


def odd_solved(what, compiled=True):
    options = COMPILE if compiled else None
    return lambda: solved(Odd(what), method="rk4", options={"step_size": 0.25}, adjoint_options=options)


for what, why in {
    "counts": "so that each would be compiled anew. Let it count where",
    "branches": "ata-dependent",
    "looks": "ata-dependent",
    "stores": "it stores what it was given or has computed",
    "changes": "it changes a tensor in place that it has not made",
    "draws": r"it draws random numbers \(dropout\?\) or changes buffers",
    "hook": "backward hooks on its modules would not run",
    "clips": "it clips or scales cotangents, which come in parts there",
    "is sparse": "a parameter has a sparse gradient",
}.items():
    # A tensor that is changed in place cannot be replayed either but one stage at a time.
    as_it_is = odd_solved("nothing" if what == "changes" else what, compiled=False)
    refusal(UnsupportedError, f"cannot be compiled: .*{why}", odd_solved("nothing"), as_it_is)(odd_solved(what))
refusal(UnsupportedError, "cannot be compiled: .*Leave out 'compile'", odd_solved("counts as it is"))(
    odd_solved("counts")
)


def with_a_hook_on_all_modules(**call):
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, given, found: None)
    try:
        right(**call)
    finally:
        handle.remove()


refusal(
    UnsupportedError,
    "hooks on all modules would not run",
    with_a_hook_on_all_modules,
    lambda: right(adjoint_options=COMPILE),
)(lambda: with_a_hook_on_all_modules(adjoint_options=COMPILE))


def wrongly(graph, inputs):
    """A backend that doubles what it finds."""
    return lambda *given: [x * 2 for x in graph(*given)]


refusal(
    GradientError,
    "compiled, a step has another gradient than as it is",
    lambda: right(adjoint_options={}),
    lambda: right(adjoint_options=COMPILE),
)(lambda: right(adjoint_options={"compile": {"backend": wrongly}}))


class Drifting(torch.nn.Module):
    """Multiplies by a tensor that each evaluation changes in place, to what it was."""

    def __init__(self):
        super().__init__()
        self.rate = torch.full((2,), -0.7, dtype=torch.float64)

    def forward(self, t, y):
        return self.rate.mul_(1.0) * y


refusal(
    GradientError,
    "modified by an inplace operation since its graph was built",
    lambda: solved(lambda t, y: -0.7 * y, adjoint_options={"memory": "graphs"}),
    lambda: solved(Drifting(), adjoint_options={"graph": "stage"}),
)(lambda: solved(Drifting(), adjoint_options={"memory": "graphs"}))


def averaging(what="kept", **call):
    """A tenth of the state of the evaluation before, kept from some time on, as it is or without what leads to it.

    Kept where nothing is seen of it before the graphs are.
    """
    around = [[[[None]]]]

    def field(t, y):
        before = around[0][0][0]
        slope = -0.7 * y + (0.0 if what == "none" or before[0] is None else 0.1 * before[0])
        if t > 0.2:
            before[0] = y.detach() if what == "detached" else y
        return slope

    return solved(field, adjoint_options={"memory": "graphs"}, **call)


refusal(
    GradientError,
    "an earlier one was given or computed from it",
    lambda: averaging("detached"),
    lambda: averaging("none"),
)(averaging)
WHOLE = "a step of an SDE solver is replayed as a whole"


def moving_step(odeint=odeint_adjoint, detached=False):
    step = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    solved(odeint=odeint, options={"first_step": step.detach() if detached else step})


refusal(
    UnsupportedError,
    "it requires a gradient, and is held constant",
    lambda: moving_step(detached=True),
    lambda: moving_step(torchdiffeq.odeint),
)(moving_step)


def with_threshold(second=False, changed=None, monkeypatch=None):
    """y' = -y from 1 is at h at the time log(1/h)."""
    h = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
    call = {"odeint_interface": odeint_adjoint, "adjoint_method": "aca", "rtol": 1e-9, "atol": 1e-9}
    event = {"event_fn": lambda t, y: (y - h).sum(), **call}
    time, _ = torchdiffeq.odeint_event(lambda t, y: -y, torch.ones(1, dtype=torch.float64), T[0], **event)
    torch.testing.assert_close(torch.autograd.grad(time, h, create_graph=second)[0], -1 / h.detach())


def event_as_a_channel(second=False):
    """The level as a channel of the state; and of the state alone there are second derivatives."""
    h = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
    state, func = (torch.ones(1, dtype=torch.float64), h), lambda t, y: (-y[0], torch.zeros_like(y[1]))
    call = {"event_fn": lambda t, y: (y[0] - y[1]).sum(), "adjoint_method": "aca"}
    time, (_, level) = odeint_adjoint(func, state, T[::2], **call)
    torch.testing.assert_close(torch.autograd.grad(time, h, retain_graph=True)[0], -1 / h.detach())
    torch.autograd.grad(level[-1].square().sum(), h, create_graph=True)


def someone_else_s_events(act=with_threshold):
    """Events after someone else has replaced what torchdiffeq differentiates their times by."""
    host = importlib.import_module("torchdiffeq._impl.odeint")
    own, host.ImplicitFnGradientRerouting = host.ImplicitFnGradientRerouting, object()
    try:
        act()
    finally:
        host.ImplicitFnGradientRerouting = own


refusal(UnsupportedError, "of the time of an event", event_as_a_channel, with_threshold)(lambda: with_threshold(True))
refusal(
    UnsupportedError,
    "which someone else has changed",
    with_threshold,
    lambda: someone_else_s_events(event_as_a_channel),
)(someone_else_s_events)


refusal(OptionError, "must be tensors, such as", lambda: right(adjoint_params=Decay().parameters()))(
    lambda: solved(adjoint_params="weights")
)


REGISTRY = {}


class Registered:
    """What has its attributes where no one looks for what func refers to."""

    def __init__(self, w=None):
        self.mode, self.t, self.w = None, None, w

    def __getattr__(self, name):
        return REGISTRY[name]

    def __setattr__(self, name, value):
        REGISTRY[name] = value


def kept_later(where="later", **call):
    """What is computed from w for a time and kept for the stages at that time, other than from the first one on."""
    w, kept = Decay().w.detach().requires_grad_(), Registered()
    before = w.sin().asin()

    def field(t, y):
        if where == "before":
            return -before * y
        if where == "anew" or float(t) < 0.2:
            return -w.sin().asin() * y
        if kept.t != float(t):
            kept.t, kept.w = float(t), w.sin().asin()
        return -kept.w * y

    odeint_adjoint(field, y0_of(), T, options={"first_step": 0.1}, **call)[-1].sum().backward()
    assert w.grad.abs().sum() > 0


KEPT = "func uses a tensor that was computed before this evaluation"
for method in ("aca", "quadrature"):
    refusal(
        GradientError,
        f"'{method}'.: {KEPT}",
        *[lambda where=where, method=method: kept_later(where, adjoint_method=method) for where in ("before", "anew")],
    )(lambda method=method: kept_later(adjoint_method=method))


def kept_from_the_second_one_on(where="second", **call):
    func, kept = Decay(), {}

    def field(t, y):
        if where == "each" or (where == "second" and float(t) == 0.0):
            return -func.w * 1 * y
        if "w" not in kept:
            kept["w"] = func.w * 1
        return -kept["w"] * y

    if where == "before":
        kept["w"] = func.w * 1
    right(field, **call)


refusal(
    GradientError,
    "in the solve, after its first evaluation, and kept it for others",
    *[lambda where=where: kept_from_the_second_one_on(where) for where in ("each", "first", "before")],
    lambda: kept_from_the_second_one_on(adjoint_options={"memory": "graphs"}),
)(kept_from_the_second_one_on)


def forgotten(where="later"):
    """A slot that is emptied between the passes, where the solve does not see it."""
    w = Decay().w.detach().requires_grad_()
    slots = Registered(w * 1)
    y0 = y0_of()
    if where == "before":
        before = slots.w
        field = lambda t, y: -before * y  # noqa: E731
    else:
        field = lambda t, y: -(w * 1 if where == "each" else slots.w) * y  # noqa: E731
    ys = odeint_adjoint(field, y0, T, adjoint_method="aca")
    slots.w = slots.w.detach()
    ys[-1].sum().backward()
    assert w.grad.abs().sum() > 0


refusal(GradientError, "does not use it in the backward pass", lambda: forgotten("before"), lambda: forgotten("each"))(
    forgotten
)


def scripted(where="scripted"):
    def product(y: torch.Tensor, w: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return -w * u * y

    func = Decay()
    ones = func.w / func.w
    call = product if where == "plain" else torch.jit.script(product)
    right(lambda t, y: call(y, func.w, func.w / func.w if where == "inside" else ones))


refusal(
    GradientError,
    r"a scripted or custom function, .*uses a tensor",
    lambda: scripted("plain"),
    lambda: scripted("inside"),
)(scripted)


class FullyShardedDataParallel(torch.nn.Module):
    """By name: what it does takes processes, which have tests of their own."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args):
        return self.module(*args)


class Containing(torch.nn.Module):
    def __init__(self, func):
        super().__init__()
        self.func = func

    def forward(self):
        right(self.func)


refusal(GradientError, "is sharded by FSDP", lambda: FullyShardedDataParallel(Containing(Decay()))())(
    lambda: Containing(FullyShardedDataParallel(Decay()))()
)


def kept_for_a_time(where="time"):
    class Kept(Decay):
        A, t = None, None

        def forward(self, t, y):
            if where == "each" or self.A is None or (where != "once" and self.t != float(t)):
                self.A, self.t = self.w * 1, float(t)
                self.A = self.A.detach() if where == "detached" else self.A
            return -self.A * y

    right(Kept())


refusal(
    GradientError,
    "which the next one used again, and later ones do not",
    *[lambda where=where: kept_for_a_time(where) for where in ("each", "once", "detached")],
)(kept_for_a_time)


def hidden(where="closure", **call):
    w = Decay().w.detach().requires_grad_()
    slots = Registered(w)

    def field(t, y):
        return -slots.w * y if t > 0.5 else -y

    y0, options = y0_of(), {"first_step": 0.1}
    named = (w,) if where == "named" else None
    ys = odeint_adjoint(field, y0, T, options=options, adjoint_method="aca", adjoint_params=named, **call)
    expected = torch.autograd.grad(torchdiffeq.odeint(field, y0, T, options=options)[-1].sum(), (y0, w))
    torch.testing.assert_close(torch.autograd.grad(ys[-1].sum(), (y0, w)), expected)


refusal(GradientError, "that its first evaluation did not use", lambda: hidden("named"))(hidden)


def hooked(z_of, **call):
    def field(t, y):
        z = z_of(y)
        if z.requires_grad:
            z.register_hook(lambda g: g.clamp(-0.1, 0.1))
        return -z

    return solved(field, method="euler", **call)


def compared(y0, loss=None, **call):
    (row,) = compare(lambda t, y: -y, y0, T, loss=loss, method="euler", ways=["aca"], **call).rows
    assert row.why_not is None


refusal(OptionError, "neither y0 nor anything that is used", lambda: compared(y0_of()))(
    lambda: compared(y0_of().detach())
)
refusal(OptionError, "y0 must be a tensor or a tuple of them", lambda: compared(y0_of()))(lambda: compared([0.5, 1.0]))
refusal(OptionError, "the solve alone, without a gradient, takes longer", lambda: compared(y0_of()))(
    lambda: compared(y0_of(), time_limit=1e-9)
)
refusal(OptionError, "must map the solution to a scalar", lambda: compared(y0_of(), torch.sum))(
    lambda: compared(y0_of(), lambda ys: ys)
)
refusal(
    GradientError,
    "puts a hook on the state y itself",
    lambda: hooked(lambda y: y.view_as(y)),
    lambda: hooked(lambda y: y, odeint=torchdiffeq.odeint),
    lambda: hooked(lambda y: y, adjoint_options={"memory": "graphs"}),
)(lambda: hooked(lambda y: y))


def written(make):
    return right(lambda t, y: -torch.tensor([0.7, 1.3], dtype=torch.float64) * make(y).mul_(1.0))


refusal(UnsupportedError, "changed the state y in place, or", lambda: written(torch.clone))(
    lambda: written(lambda y: y)
)


class Registers(Decay):
    """Its penalties are so deep in dictionaries, and not in a list."""

    def __init__(self, depth):
        super().__init__()
        self.terms = functools.reduce(lambda inner, _: {"in": inner}, range(depth), {"out": torch.zeros(())})

    def forward(self, t, y):
        out, register = super().forward(t, y), self.terms
        while "in" in register:
            register = register["in"]
        register["out"] = register["out"] + out.square().sum()
        return out


def registered(depth, override=True):
    with install(default="aca", override=override):
        right(Registers(depth), odeint=torchdiffeq.odeint)


refusal(
    UnsupportedError,
    "in a place where it is not found again",
    lambda: registered(2),
    lambda: registered(9, override=False),
)(lambda: registered(9))


def clipped_twice(clip, odeint=odeint_adjoint, **call):
    def field(t, y):
        z = -y.sin()
        if clip and z.requires_grad:
            z.register_hook(lambda g: g.clamp(-0.1, 0.1))
        return z

    call = {"adjoint_method": "aca", **call} if odeint is odeint_adjoint else call
    y0 = y0_of()
    ys = odeint(field, y0, T, method="rk4", **call)
    (g,) = torch.autograd.grad(ys[-1].sum(), y0, create_graph=True)
    return torch.autograd.grad(g.sum(), y0)


refusal(
    GradientError,
    "clips or scales cotangents",
    lambda: clipped_twice(clip=False),
    lambda: clipped_twice(clip=True, odeint=torchdiffeq.odeint),
)(lambda: clipped_twice(clip=True))


def checkpointed(**how):
    w = torch.tensor([0.7, 1.3], dtype=torch.float64, requires_grad=True)

    def field(t, y):
        return -torch.utils.checkpoint.checkpoint(torch.mul, w, y, **how) if how else -w * y

    return solved(field)


refusal(GradientError, "with use_reentrant=True", lambda: checkpointed(use_reentrant=False), lambda: checkpointed())(
    lambda: checkpointed(use_reentrant=True)
)


class Steady(Decay):
    """A field that is the same with a graph in each pass, and another one without."""

    def forward(self, t, y):
        return super().forward(t, y) * (1 if torch.is_grad_enabled() else -1)


class Moody(Decay):
    """Another field in the backward pass, unless it has ``settled``."""

    def __init__(self, settled=False):
        super().__init__()
        self.settled = settled

    def forward(self, t, y):
        return super().forward(t, y) * (-1 if y.requires_grad and not self.settled else 1)


refusal(
    GradientError,
    "returned other values in the backward pass",
    lambda: right(Moody(True)),
    lambda: right(Steady(), adjoint_options={"memory": "graphs"}),
)(lambda: solved(Moody()))
refusal(GradientError, "func returned another value in the backward pass", lambda: right(Moody(True), **QUAD))(
    lambda: solved(Moody(), **QUAD)
)


class Paced(Decay):
    """Its rate goes by an iterator, or by a queue of the same numbers."""

    def __init__(self, paces):
        super().__init__()
        self.paces = paces

    def forward(self, t, y):
        if isinstance(self.paces, collections.deque):
            self.paces.rotate(-1)
            return super().forward(t, y) * self.paces[0]
        return super().forward(t, y) * next(self.paces)


GRAPHS = {"method": "rk4", "options": {"step_size": 0.1}, "adjoint_options": {"memory": "graphs"}}
refusal(
    GradientError,
    "returned other values when it was evaluated again",
    lambda: solved(Paced(collections.deque((0.9, 1.0))), **GRAPHS),
    lambda: solved(Paced(itertools.cycle((1.0, 0.9))), torchdiffeq.odeint, method="rk4"),
)(lambda: solved(Paced(itertools.cycle((1.0, 0.9))), **GRAPHS))


def points(name="aca", detached=False):
    given = OPEN["step_t"].clone().requires_grad_(not detached)
    right(adjoint_method=name, options={"step_t": given})


refusal(
    UnsupportedError,
    "step_t or jump_t require a gradient",
    lambda: points("quadrature", detached=True),
    points,
)(lambda: points("quadrature"))


def transformed(**call):
    func = Decay()
    loss = lambda y0: odeint_adjoint(func, y0, T, **call)[-1].sum()  # noqa: E731
    torch.testing.assert_close(torch.func.grad(loss)(torch.ones(2).double()), solved(), rtol=1e-4, atol=0)


refusal(
    UnsupportedError,
    "inside a transform of torch.func",
    lambda: transformed(adjoint_method="aca"),
    lambda: right(**QUAD),
)(lambda: transformed(**QUAD))
refusal(
    UnsupportedError,
    "moves its times in a way that the transforms do not take",
    lambda: transformed(adjoint_method="aca", **STEPS),
    lambda: transformed(adjoint_method="aca", method="rk4", options={"step_size": 0.05, "perturb": True}),
)(lambda: transformed(adjoint_method="aca", method="implicit_adams", options={"perturb": True}))


def batched(inside=False):
    func = Decay()
    y0 = torch.ones(3, 2, dtype=torch.float64)
    loss = lambda y0: odeint_adjoint(func, y0, T, adjoint_method="aca")[-1].sum()  # noqa: E731
    assert (torch.func.grad(loss)(y0) if inside else torch.vmap(torch.func.grad(loss))(y0)).shape == (3, 2)


refusal(UnsupportedError, "of one state, not of a batch of them", lambda: batched(True))(batched)


def second(name="aca"):
    func, y0 = Decay(), y0_of()
    ys = odeint_adjoint(func, y0, T, adjoint_method=name)
    (g,) = torch.autograd.grad(ys[-1].square().sum(), y0, create_graph=True)
    torch.autograd.grad(g.sum(), func.w)


def forward_mode(odeint=odeint_adjoint, transform=False, **call):
    func = Decay()
    end = lambda y0: odeint(func, y0, T, **call)[-1]  # noqa: E731
    y0, v = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    if transform:
        tangent = torch.func.jvp(end, (y0,), (v,))[1]
    else:
        with torch.autograd.forward_ad.dual_level():
            dual = end(torch.autograd.forward_ad.make_dual(y0, v))
            tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(tangent.detach(), torch.exp(-func.w).detach(), rtol=1e-3, atol=0)


refusal(
    UnsupportedError,
    "there is a tape to go back on, none to ",
    lambda: forward_mode(transform=True, adjoint_method="aca"),
    lambda: forward_mode(torchdiffeq.odeint, method="rk4", options={"step_size": 0.05}),
)(lambda: forward_mode(adjoint_method="aca"))
refusal(UnsupportedError, "solve is not differentiated in its turn", second)(lambda: second("quadrature"))


class Dropout(Decay):
    def forward(self, t, y):
        return super().forward(t, torch.nn.functional.dropout(y, 0.1))


LOOSE = {"rtol": 1e3, "atol": 1e3}
refusal(
    GradientError, "so the vector field of the backward solve would be another one", lambda: solved(Dropout(), **LOOSE)
)(lambda: solved(Dropout(), **LOOSE, **QUAD))
refusal(
    UnsupportedError,
    "interpolation evaluates it anew for each output",
    lambda: solved(Dropout(), method="rk4", options={"interp": "linear"}),
    lambda: solved(Dropout(), **LOOSE),
)(lambda: solved(Dropout(), method="rk4", options={"interp": "cubic"}))


def of_dtype(dtype):
    y0 = torch.ones((), dtype=dtype, requires_grad=True)
    odeint_adjoint(lambda t, y: -y, y0, T, method="euler", adjoint_method="aca", adjoint_params=())[-1].backward()


refusal(UnsupportedError, "turned into another dtype or shape|into another dtype", lambda: of_dtype(torch.float64))(
    lambda: of_dtype(torch.float32)
)


def with_grid(fickle=False):
    sizes = iter([3, 4, 5, 6])
    grid = {"grid_constructor": lambda f, y, t: torch.linspace(0, 1, next(sizes) if fickle else 30).to(t)}
    right(method="rk4", t=T[::2], options=grid)


refusal(GradientError, "the grid constructor returned another grid", with_grid)(lambda: with_grid(fickle=True))

# install()


def installed(call):
    with install():
        return call()


refusal(
    OptionError,
    "'aca' is a method of torchdiffeq.odeint",
    lambda: installed(lambda: right(method="dopri5")),
    lambda: installed(lambda: solved(odeint=torchdiffeq.odeint, method="aca")),
)(lambda: installed(lambda: torchdiffeq.odeint_adjoint(Decay(), y0_of(), T, method="aca")))


def plain(**options):
    return lambda: installed(lambda: solved(odeint=torchdiffeq.odeint, method="aca", options=options))


refusal(OptionError, "no solver of torchdiffeq. Use one of", plain(method="dopri8"))(plain(method="dopri6"))
refusal(OptionError, "unknown option. 'aca' takes", plain(step_size=0.1, method="rk4"))(plain(step_size=0.1))

HOST_ADJOINT = torchdiffeq.odeint_adjoint


class Stored:
    odeint = staticmethod(HOST_ADJOINT)


def by_reference(odeint):
    y0 = y0_of()
    odeint(Decay(), y0, T, adjoint_method="aca")[-1].sum().backward()


refusal(
    UnsupportedError,
    "this call reached the host's own function",
    lambda: installed(lambda: by_reference(torchdiffeq.odeint_adjoint)),
    lambda: by_reference(odeint_adjoint),
)(lambda: installed(lambda: by_reference(Stored.odeint)))


def replaced(undone=False):
    original, torchdiffeq.odeint_adjoint = torchdiffeq.odeint_adjoint, lambda *args, **kwargs: None
    try:
        if undone:
            torchdiffeq.odeint_adjoint = original
        install().uninstall()
    finally:
        torchdiffeq.odeint_adjoint = original


refusal(HostChangedError, "someone else has replaced it", lambda: replaced(undone=True), lambda: right())(replaced)


def by_default(method="dopri5", adjoint_method=None, **settings):
    """A call that names no adjoint; or one of the host's, to its tolerance."""
    with install(**settings):
        call = {"adjoint_method": adjoint_method, "adjoint_options": adjoint_method and {}}
        right(odeint=lambda *args: torchdiffeq.odeint_adjoint(*args, method=method, **call))


refusal(
    OptionError,
    "no adjoint of steptape. Use 'aca' or 'quadrature'",
    lambda: by_default(default="aca"),
    lambda: by_default(default="quadrature"),
)(lambda: by_default(default="ACA"))
refusal(OptionError, "is for a default adjoint", lambda: by_default(default="aca", override=True))(
    lambda: by_default(override=True)
)


def unreplayed(**call):
    by_default(default="aca", method="scipy_solver", **call)


def outside():
    right(odeint=torchdiffeq.odeint_adjoint, method="scipy_solver")


refusal(
    UnsupportedError,
    r"does not ask for this adjoint itself.*name one of the host's.*or call it outside of this",
    lambda: unreplayed(adjoint_method="dopri5"),
    outside,
    lambda: by_default(default="aca"),
)(unreplayed)

# seminorm()

refusal(
    OptionError,
    "Pass the y0 of the solve, and use the norm as",
    lambda: right(adjoint_method=None, adjoint_options={"norm": seminorm(y0_of())}),
)(lambda: solved(adjoint_method=None, adjoint_options={"norm": seminorm(torch.ones(3))}))
refusal(OptionError, "must be 'mixed' or 'joint'", lambda: seminorm(T, reduction="joint"))(
    lambda: seminorm(T, reduction="max")
)
refusal(OptionError, "Pass reduction='mixed'", lambda: seminorm(T, reduction="mixed", norm=torch.norm))(
    lambda: seminorm(T, reduction="joint", norm=torch.norm)
)
refusal(OptionError, "must be some, and not all, of the places", lambda: seminorm((T, T), integrals=[1]))(
    lambda: seminorm((T, T), integrals=[0, 1])
)

# torchsde


class Sde(torch.nn.Module):
    noise_type, sde_type = "diagonal", "ito"

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([0.7, 1.3], dtype=torch.float64))

    def f(self, t, y):
        return -self.w * y

    def g(self, t, y):
        return self.w.sigmoid() * y.cos()


class Plain:
    """An SDE that is no module and uses a tensor computed from ``w``, or ``w`` itself."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, w):
        self.w = w

    f, g = Sde.f, Sde.g


def path(**settings):
    return torchsde.BrownianInterval(0.0, 1.0, size=(3, 2), dtype=torch.float64, entropy=3, **settings)


def sde_solved(sde=None, sdeint=sdeint_adjoint, **call):
    y0 = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    call = {"bm": path(), "dt": 0.1, "method": "euler", **call}
    if sdeint is sdeint_adjoint:
        call = {"adjoint_method": "aca", **call}
    ys = sdeint(Sde() if sde is None else sde, y0, [0.0, 1.0], **call)
    (g,) = torch.autograd.grad(ys[-1].sum(), y0)
    return g


def sde_right(*args, **call):
    torch.testing.assert_close(sde_solved(*args, **call), sde_solved(sdeint=torchsde.sdeint), rtol=1e-9, atol=0)


refusal(UnsupportedError, "an SDE's solution has none", sde_right)(lambda: sde_solved(adjoint_method="quadrature"))
refusal(OptionError, "no such adjoint. steptape's is 'aca'", sde_right, lambda: sde_solved(adjoint_method="milstein"))(
    lambda: sde_solved(adjoint_method="dopri5")
)
refusal(
    UnsupportedError,
    "of which the increments are the most",
    *[
        lambda o=o: sde_right(adjoint_options=o)
        for o in ({"memory": "graphs"}, {"memory": "states"}, {"checkpoints": 9})
    ],
)(lambda: sde_solved(adjoint_options={"memory": "1 MB"}))
refusal(UnsupportedError, WHOLE, sde_right)(lambda: sde_solved(adjoint_options={"graph": "stage"}))


class NoisyLater(Sde):
    def f(self, t, y):
        return super().f(t, y) * (torch.rand_like(y) if t > 0.9 else 1.0)


def twice_noisy(memory):
    y0 = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    call = {"bm": path(), "dt": 0.1, "method": "euler", "adjoint_method": "aca", "adjoint_options": {"memory": memory}}
    ys = sdeint_adjoint(NoisyLater(), y0, [0.0, 1.2], **call)
    (first,) = torch.autograd.grad(ys[-1].square().sum(), y0, retain_graph=True)
    (again,) = torch.autograd.grad(ys[-1].square().sum(), y0, create_graph=True)
    torch.testing.assert_close(again, first, rtol=1e-9, atol=0)


refusal(GradientError, "but not in its first steps", lambda: twice_noisy("states"))(lambda: twice_noisy("graphs"))


def sde_transformed():
    y0 = torch.ones(3, 2, dtype=torch.float64)
    loss = lambda y0: sdeint_adjoint(Sde(), y0, [0.0, 1.0], bm=path(), dt=0.1, adjoint_method="aca").sum()  # noqa: E731
    torch.func.grad(loss)(y0)


refusal(UnsupportedError, "torch.func over sdeint_adjoint", sde_right)(sde_transformed)


def sde_compared(y0, ts=(0.0, 1.0)):
    (row,) = compare_sde(Sde(), y0, ts, dt=0.1, method="euler", ways=["aca"]).rows
    assert row.why_not is None


for wrong in [0.5, 1.0], y0_of(), (y0_of()[None], y0_of()[None]):
    refusal(OptionError, r"y0 must be a tensor of shape \(batch, channels\)", lambda: sde_compared(torch.ones(3, 2)))(
        functools.partial(sde_compared, wrong)
    )
refusal(
    OptionError,
    "and ts a tensor or a sequence of numbers",
    lambda: sde_compared(torch.ones(3, 2)),
    lambda: sde_compared(torch.ones(3, 2), T),
)(lambda: sde_compared(torch.ones(3, 2), 1.0))


class Learned:
    """A Brownian path of a scale that is learned, or was."""

    def __init__(self, learned):
        self.scale = torch.ones((), dtype=torch.float64, requires_grad=learned)
        self.path = path()

    def __getattr__(self, name):
        return getattr(self.__dict__["path"], name)

    def __call__(self, *args, **kwargs):
        return self.scale * self.path(*args, **kwargs)


refusal(
    UnsupportedError,
    "its increments require a gradient",
    lambda: sde_right(bm=Learned(False)),
    lambda: sde_solved(sdeint=torchsde.sdeint, bm=Learned(True)),
)(lambda: sde_solved(bm=Learned(True)))


class Fickle(Learned):
    """Other increments each time."""

    def __call__(self, *args, **kwargs):
        return self.path(*args, **kwargs) + random.random()


refusal(
    GradientError,
    "Brownian object answered the same query otherwise",
    lambda: sde_solved(bm=Fickle(False)),
    lambda: sde_right(adjoint_options={"checkpoints": 2}),
)(lambda: sde_solved(bm=Fickle(False), adjoint_options={"checkpoints": 2}))


class InPlace(Sde):
    """Changes the state, or the increment that ``g_prod`` is given, or a new tensor made of it."""

    def __init__(self, what, anew=False):
        super().__init__()
        self.what, self.anew = what, anew

    def f(self, t, y):
        if self.what == "y" and not y.requires_grad:
            y = y.clone() if self.anew else y
            y.mul_(1.0)
        return super().f(t, y)

    def g_prod(self, t, y, v):
        if self.what == "v" and not y.requires_grad:
            v = v.clone() if self.anew else v
            v.mul_(1.0)
        return super().g(t, y) * v


refusal(UnsupportedError, "sde changed the state y in place", lambda: sde_right(InPlace("y", anew=True)))(
    lambda: sde_solved(InPlace("y"))
)
refusal(UnsupportedError, "sde changed a Brownian increment in place", lambda: sde_right(InPlace("v", anew=True)))(
    lambda: sde_solved(InPlace("v"))
)


def sde_kept_later(where="later"):
    w, kept = Sde().w.detach().requires_grad_(), Registered()
    halves = w * 1

    class Kept(Plain):
        def at(self, t):
            if where != "later" or float(t) < 0.3:
                return halves if where == "before" else w * 1
            if kept.mode != torch.is_grad_enabled():
                kept.mode, kept.w = torch.is_grad_enabled(), w * 1
            return kept.w

        def f(self, t, y):
            return -self.at(t) * y

    sde_right(Kept(w))


refusal(
    GradientError,
    r"^sdeint.*uses a tensor that was computed before this evaluation",
    lambda: sde_kept_later("before"),
    lambda: sde_kept_later("anew"),
)(sde_kept_later)


def sde_hidden(where="closure"):
    w = Sde().w.detach().requires_grad_()
    slots = Registered(w)

    class Hidden(Plain):
        def f(self, t, y):
            return -slots.w * y if t > 0.3 else -slots.w.detach() * y

    sde_right(Hidden(w.detach()), adjoint_params=(w,) if where == "named" else None)


refusal(GradientError, r"^sdeint_adjoint.*first evaluation did not use", lambda: sde_hidden("named"))(sde_hidden)
NORM = {"adjoint_method": None, "adjoint_adaptive": True}


def seminorm_of(make):
    sde = make()
    sdeint_adjoint(sde, y0_of()[None], T, adjoint_options={"norm": "seminorm"}, method="euler", dt=0.1, **NORM)


refusal(OptionError, "its parameters are unknown", lambda: seminorm_of(Sde))(
    lambda: seminorm_of(lambda: Plain(Sde().w))
)
STRATONOVICH = {"adjoint_options": {"norm": "seminorm"}, **NORM}
refusal(OptionError, "must be 'seminorm', or left out", lambda: sde_solved(**STRATONOVICH), lambda: sde_solved(**NORM))(
    lambda: sde_solved(adjoint_options={"norm": "max"}, **NORM)
)
refusal(
    OptionError,
    "Pass adjoint_adaptive=True, or leave out 'norm'",
    lambda: sde_solved(**STRATONOVICH),
    lambda: sde_solved(adjoint_method=None),
)(lambda: sde_solved(**{**STRATONOVICH, "adjoint_adaptive": False}))


def reversible(**call):
    sde = Sde()
    sde.sde_type = "stratonovich"
    return lambda: sde_solved(sde, method="reversible_heun", **call)


refusal(
    UnsupportedError,
    "its adjoint has other channels than states and parameters",
    reversible(),
    reversible(adjoint_method=None),
)(reversible(**STRATONOVICH))


def with_its_bias_stepped(step=True, other_data=False, **keep):
    layer, y0 = torch.nn.Linear(2, 2, dtype=torch.float64), y0_of()
    ys = odeint_adjoint(lambda t, y: layer(y), y0, T, adjoint_method="aca", adjoint_options=keep)
    with torch.no_grad():
        if other_data:
            layer.bias.data = layer.bias.data.half()
        elif step:
            layer.bias.add_(1.0)
    return torch.autograd.grad(ys[-1].sum(), (y0, layer.weight))


refusal(
    GradientError,
    "modified by an inplace operation since the solve, such as an optimizer's step",
    lambda: with_its_bias_stepped(step=False),
    lambda: with_its_bias_stepped(memory="graphs"),
)(with_its_bias_stepped)
refusal(
    GradientError,
    "or given other data, such as those of another dtype",
    lambda: with_its_bias_stepped(step=False),
    lambda: with_its_bias_stepped(other_data=True, memory="graphs"),
)(lambda: with_its_bias_stepped(other_data=True))


def with_a_penalty(way="stored"):
    keep = {"memory": "graphs"} if way == "graphs" else None
    aca = functools.partial(odeint_adjoint, adjoint_method="aca", adjoint_options=keep)
    solve = torchdiffeq.odeint if way == "host" else aca
    model, stored = Decay(), []

    def func(t, y):
        slope = model(t, y)
        stored.append(slope.detach().square().sum() if way == "detached" else slope.square().sum())
        return slope

    def with_integral(t, state):
        slope = model(t, state[0])
        return slope, slope.square().sum()

    if way == "state":
        ys, penalty = solve(with_integral, (y0_of(), torch.zeros((), dtype=torch.float64)), T)
        (ys[-1].sum() + penalty[-1]).backward()
    else:
        (solve(func, y0_of(), T)[-1].sum() + torch.stack(stored).sum()).backward()
    assert model.w.grad is not None


refusal(
    GradientError,
    "computed from the state y and stored",
    lambda: with_a_penalty("state"),
    lambda: with_a_penalty("detached"),
    lambda: with_a_penalty("host"),
    lambda: with_a_penalty("graphs"),
)(with_a_penalty)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.said[:40])
def test_a_way_out_that_is_named_works(case):
    with pytest.raises(case.error, match=case.said):
        case.refused()
    assert case.ways
    for way in case.ways:
        way()


def sources():
    """Each refusal in the source: where it is, and the words of its own."""
    errors = ("OptionError", "UnsupportedError", "GradientError", "HostChangedError")
    for path in sorted(Path(steptape.torch.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and getattr(getattr(node.exc, "func", None), "id", "") in errors:
                constants = [str(x.value) for x in ast.walk(node.exc) if isinstance(x, ast.Constant)]
                yield f"{path.name}:{node.lineno}", " ".join(constants)


def test_every_refusal_has_a_way_out():
    said = [*(case.said for case in CASES), "^$", "Evaluations cannot"]
    assert not [where for where, words in sources() if not any(re.search(one, words) for one in said)]
