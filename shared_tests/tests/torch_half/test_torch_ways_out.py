"""For every refusal of the PyTorch half: the way out that its words name works when it is tried.

A refusal in the source that no case here provokes fails the last test.
"""

import ast
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
from steptape.torch import install, odeint_adjoint, sdeint_adjoint, seminorm

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


def with_threshold(detached=False, in_state=False):
    h = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
    state, func = torch.ones(1, dtype=torch.float64), lambda t, y: -y

    def event_fn(t, y):
        return (y - (h.detach() if detached else h)).sum()

    if in_state:
        state, func = (state, h), lambda t, y: (-y[0], torch.zeros_like(y[1]))

        def event_fn(t, y):
            return (y[0] - y[1]).sum()

    call = {"odeint_interface": odeint_adjoint, "adjoint_method": "aca", "adjoint_params": ()}
    time, _ = torchdiffeq.odeint_event(func, state, T[0], event_fn=event_fn, **call)
    if in_state:
        torch.testing.assert_close(torch.autograd.grad(time, h)[0], -1 / h)


refusal(
    UnsupportedError,
    "event_fn depends on tensors that require a",
    lambda: with_threshold(in_state=True),
    lambda: with_threshold(detached=True),
)(with_threshold)


def closure(params=None, module=False):
    func = Decay()
    right(func if module else lambda t, y: func(t, y), adjoint_params=params and tuple(func.parameters()))


refusal(OptionError, "is no torch.nn.Module", lambda: closure(module=True), lambda: closure(params=True))(closure)


refusal(OptionError, "must be tensors, such as", lambda: closure(params=True))(lambda: solved(adjoint_params="weights"))


def shared(where="before", **call):
    w = Decay().w.detach().requires_grad_()
    twice = w.sin().asin() * 1
    field = (lambda t, y: -(w.sin().asin() * 1) * y) if where == "anew" else (lambda t, y: -twice * y)
    y0 = y0_of()
    odeint_adjoint(field, y0, T, adjoint_params=(twice,) if where == "named" else (w,), **call)[-1].sum().backward()
    assert w.grad.abs().sum() > 0


for method in ("aca", "quadrature"):
    refusal(
        GradientError,
        f"'{method}'.: func uses a tensor that was computed from its parameters before",
        *[lambda where=where, method=method: shared(where, adjoint_method=method) for where in ("named", "anew")],
    )(lambda method=method: shared(adjoint_method=method))


def computed(both=True, inside=False):
    func = Decay()
    squared = func.w * func.w.sign()

    def field(t, y):
        return -(func.w * func.w.sign() if inside else squared) * y

    params = (func.w, squared) if both else (func.w,) if inside else (squared,)
    right(field, adjoint_params=params)


refusal(
    OptionError,
    "one of these tensors was computed from another",
    lambda: computed(both=False),
    lambda: computed(both=False, inside=True),
)(computed)


def cached(where="first"):
    class Cached(Decay):
        A = None

        def forward(self, t, y):
            if self.A is None or where == "each":
                self.A = self.w * 1
                self.A = self.A.detach() if where == "detached" else self.A
            return -self.A * y

    func = Cached()
    if where == "before":
        func.A = func.w * 1
    right(func, adjoint_params=(func.A,) if where == "before" else None)


refusal(
    GradientError,
    "evaluation and used it again in the next one",
    *[lambda where=where: cached(where) for where in ("each", "before", "detached")],
)(cached)


def hidden(named=False, **call):
    w = Decay().w.detach().requires_grad_()
    right(lambda t, y: -w * y, adjoint_params=(w,) if named else (), **call)


LOST = "are not among its parameters"
refusal(GradientError, LOST, lambda: hidden(True))(hidden)


def hidden_in_grid(named=False):
    middle = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    func = Decay()
    grid = {"grid_constructor": lambda f, y, t: torch.stack([t[0], middle, t[-1]])}
    params = (*func.parameters(), middle) if named else None
    ys = odeint_adjoint(func, y0_of(), T[::2], method="rk4", options=grid, adjoint_method="aca", adjoint_params=params)
    ys.sum().backward()
    expected = torchdiffeq.odeint(func, y0_of(), T[::2], method="rk4", options=grid)
    torch.testing.assert_close(middle.grad, torch.autograd.grad(expected.sum(), middle)[0])


refusal(GradientError, "the grid_constructor depends on", lambda: hidden_in_grid(True))(hidden_in_grid)
RATES = Decay().w.detach()
refusal(OptionError, "Return the shape of y from func", lambda: right(lambda t, y: -RATES * y, adjoint_params=()))(
    lambda: solved(lambda t, y: -y[:1], adjoint_params=(), method="euler")
)


class Moody(Decay):
    """Another field in the backward pass, unless it has ``settled``."""

    def __init__(self, settled=False):
        super().__init__()
        self.settled = settled

    def forward(self, t, y):
        return super().forward(t, y) * (-1 if torch.is_grad_enabled() and not self.settled else 1)


refusal(GradientError, "returned other values in the backward pass", lambda: right(Moody(True)))(
    lambda: solved(Moody())
)
refusal(GradientError, "func returned another value in the backward pass", lambda: right(Moody(True), **QUAD))(
    lambda: solved(Moody(), **QUAD)
)


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


def jacobian(vectorize=True, loop=False):
    func, wrt = Decay(), torch.ones(2, dtype=torch.float64)
    if loop:
        y0 = y0_of()
        y1 = odeint_adjoint(func, y0, T, adjoint_method="aca")[-1]
        rows = [torch.autograd.grad(y1, y0, row, retain_graph=True)[0] for row in torch.eye(2, dtype=torch.float64)]
        found = torch.stack(rows)
    else:
        end = lambda y0: odeint_adjoint(func, y0, T, adjoint_method="aca")[-1]  # noqa: E731
        found = torch.autograd.functional.jacobian(end, wrt, vectorize=vectorize)
    torch.testing.assert_close(found.detach(), torch.exp(-func.w).diag().detach(), rtol=1e-5, atol=1e-6)


refusal(UnsupportedError, "several cotangents at once", lambda: jacobian(vectorize=False), lambda: jacobian(loop=True))(
    jacobian
)


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
refusal(UnsupportedError, WHOLE, sde_right)(lambda: sde_solved(adjoint_options={"graph": "stage"}))


def sde_transformed():
    y0 = torch.ones(3, 2, dtype=torch.float64)
    loss = lambda y0: sdeint_adjoint(Sde(), y0, [0.0, 1.0], bm=path(), dt=0.1, adjoint_method="aca").sum()  # noqa: E731
    torch.func.grad(loss)(y0)


refusal(UnsupportedError, "torch.func over sdeint_adjoint", sde_right)(sde_transformed)


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
        if self.what == "y" and not torch.is_grad_enabled():
            y = y.clone() if self.anew else y
            y.mul_(1.0)
        return super().f(t, y)

    def g_prod(self, t, y, v):
        if self.what == "v" and not torch.is_grad_enabled():
            v = v.clone() if self.anew else v
            v.mul_(1.0)
        return super().g(t, y) * v


refusal(UnsupportedError, "sde changed the state y in place", lambda: sde_right(InPlace("y", anew=True)))(
    lambda: sde_solved(InPlace("y"))
)
refusal(UnsupportedError, "sde changed a Brownian increment in place", lambda: sde_right(InPlace("v", anew=True)))(
    lambda: sde_solved(InPlace("v"))
)


def before(where="before"):
    w = Sde().w.detach().requires_grad_()
    halves = w * 1

    class Anew(Plain):
        def f(self, t, y):
            return -(w * 1) * y

    sde = Anew(w) if where == "anew" else Plain(halves)
    params = (halves,) if where == "named" else (w,)
    sde_right(sde, adjoint_params=params)


refusal(GradientError, r"^sdeint.*parameters before this evaluation", lambda: before("named"), lambda: before("anew"))(
    before
)


def sde_hidden(named=False):
    w = Sde().w.detach().requires_grad_()
    sde_right(Plain(w), adjoint_params=(w,) if named else ())


refusal(GradientError, r"^sdeint_adjoint.*are not among its parameters", lambda: sde_hidden(True))(sde_hidden)
NORM = {"adjoint_method": None, "adjoint_adaptive": True}
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
    """Those of ``lost``, which puts its words together, are known by what they hand to it."""
    said = [case.said for case in CASES if LOST not in case.said]
    said += ["FSDP", "^$", "Evaluations cannot"]
    assert not [where for where, words in sources() if not any(re.search(one, words) for one in said)]
