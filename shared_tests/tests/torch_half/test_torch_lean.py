"""The lean loop is the host's to the bit: solutions, the times func is told, callbacks, and all that the tape holds.

Calls are drawn by a seed; more of them: ``STEPTAPE_LEAN_EXAMPLES=100 python -P -m pytest ...``.
"""

import functools
import os
import random
from typing import Any, NamedTuple

import pytest
import torch

from steptape import UnsupportedError
from steptape.compat import _torchdiffeq as host
from steptape.torch import odeint_adjoint
from steptape.torch._autograd.surroundings import Surroundings
from steptape.torch._hosts import loops, stages
from steptape.torch._hosts.lean import LeanLoop
from steptape.torch._hosts.torchdiffeq import OdeSolve
from steptape.torch._tape.checkpoints import Keep

EXAMPLES = int(os.environ.get("STEPTAPE_LEAN_EXAMPLES", "2"))
SOLVERS = [name for name, solver in host.SOLVERS.items() if host.steps_by_tableau(solver)]
REAL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DTYPES = (*REAL, torch.complex128, torch.complex64)
# Older hosts have no min_step, and step in their own loop.
pytestmark = pytest.mark.skipif("min_step" not in host.option_names(host.AdaptiveRungeKutta), reason="no lean loop")
SHAPES = [(), (3,), (1, 3), (2, 3), (16, 17), ((3,), (2, 2), ())]


SIDES = ("", "", "random", "buffer", "grad", "dtype", "blows up")


class Field(torch.nn.Module):
    """A field that notes each t and y it is given; ``side``: what else it does."""

    def __init__(self, side):
        super().__init__()
        self.side, self.told = side, []
        self.register_buffer("count", torch.zeros(()))

    def forward(self, t, y):
        if isinstance(y, tuple):
            return tuple(self.slope(t, part) for part in y)
        return self.slope(t, y)

    def slope(self, t, y):
        self.told += [t.clone(), y.clone()]
        if self.side == "random":
            y = y + 0.01 * torch.rand(y.shape, dtype=y.real.dtype)
        elif self.side == "buffer":
            self.count += 0.01
            y = y + self.count.to(y.real.dtype)
        elif self.side == "grad":
            with torch.enable_grad():
                return torch.cos(3 * t) * y.requires_grad_() - 0.5 * y * y.abs()
        elif self.side == "dtype":
            return (torch.cos(3 * t) * y - 0.5 * y * y.abs()).to(torch.complex64 if y.is_complex() else torch.float32)
        elif self.side == "blows up":
            return torch.where(t > 1, y / 0, y)
        return torch.cos(3 * t) * y - 0.5 * y * y.abs()


class TellingField(Field):
    """The same with the host's callbacks."""

    def callback_step(self, t, y, h):
        self.told += [t, *(y if isinstance(y, tuple) else (y,)), h]

    callback_accept_step = callback_reject_step = callback_step


class Call(NamedTuple):
    """The arguments of a solve; ``func()`` makes a field."""

    func: Any
    y0: Any
    t: torch.Tensor
    rtol: Any
    atol: Any
    options: dict
    event_fn: Any
    checkpoints: int | None


def largest(state):
    return max(part.abs().max() for part in (state if isinstance(state, tuple) else (state,)) if part.numel())


def tolerance(draw, dtype, shape):
    loose = max(draw.choice([1e-2, 1e-4]), 4 * torch.finfo(dtype).eps)
    if isinstance(shape, tuple) and shape and isinstance(shape[0], tuple):
        return draw.choice([loose, tuple(loose * (i + 1) for i in range(len(shape)))])
    per_entry = torch.linspace(1, 2, max(1, shape[-1] if shape else 1), dtype=torch.float64)[
        : shape[-1] if shape else 1
    ]
    return draw.choice([loose, torch.tensor(loose, dtype=torch.float64), loose * per_entry.view(shape[-1:])])


def drawn_call(draw, dtype):
    """A call of odeint with an adaptive solver."""
    shape = draw.choice(SHAPES)
    parts = shape if shape and isinstance(shape[0], tuple) else (shape,)
    generator = torch.Generator().manual_seed(draw.randrange(10**6))
    y0 = tuple((torch.rand(part, generator=generator, dtype=torch.float64) + 0.3).to(dtype) for part in parts)
    if draw.random() < 0.3 and len(parts) == 1 and len(shape) == 2:
        y0 = (y0[0].t().contiguous().t(),)
    of_times = draw.choice([torch.float64, torch.float32])
    start = draw.choice([0.0, 0.125, -1.3, 300.0])
    t = torch.tensor([start + x for x in draw.choice([[0, 1.9], [0, 0.3, 1.2, 1.9], [0.05 * i for i in range(38)]])])
    span = start + torch.tensor([1.4123, 0.3314, -2.0], dtype=torch.float64), start + torch.tensor([1.1371, 0.75, 5.0])
    choices = {
        "first_step": [None, None, 0.03, 1.5],
        "step_t": [None, None, span[0]],
        "jump_t": [None, None, span[1]],
        "min_step": [None, None, 0.041],
        "max_step": [None, None, 0.157],
        "max_num_steps": [None, 1000, 5],
        "norm": [None, None, largest],
        "dtype": [None, None, torch.float32],
        "safety": [None, 0.7],
        "ifactor": [None, 1.5],
        "dfactor": [None, 0.9],
    }
    options = {name: draw.choice(values) for name, values in choices.items()}
    reverse, event = draw.random() < 0.3, draw.random() < 0.2
    if reverse:
        t = 2 * start - t
        options.update({n: 2 * start - options[n] for n in ("step_t", "jump_t") if options[n] is not None})
    event_time = start + (-1.234 if reverse else 1.234)
    return Call(
        func=functools.partial(draw.choice([Field, TellingField]), draw.choice(SIDES)),
        y0=y0 if len(parts) > 1 else y0[0],
        t=(t[[0, -1]] if event else t).to(of_times),
        rtol=tolerance(draw, dtype, shape),
        atol=tolerance(draw, dtype, shape),
        options={name: value for name, value in options.items() if value is not None},
        event_fn=(lambda t, y: t - event_time) if event else None,
        checkpoints=draw.choice([None, 2]),
    )


def outcome(method, call, lean):
    """What a solve returns and tells func, without a tape and with one, and all that the tape holds; or its error."""
    torch.manual_seed(0)
    func = call.func()
    keep = Keep(call.checkpoints, interpolants=call.checkpoints is None, lean=lean)
    _, checked, y0, t, rtol, atol, _, options, event_fn, _ = host.check_inputs(
        func, call.y0, call.t, call.rtol, call.atol, method, call.options, call.event_fn, host.SOLVERS
    )
    solve, points = OdeSolve.from_call(checked, y0, t, rtol, atol, method, options, keep, event_fn)
    try:
        with torch.no_grad():
            plain = solve.integrate(y0, t, points)
            told = len(func.told)
            results, tape = solve.record((y0, t, points), Surroundings(y0.device, func), None)
    except (AssertionError, RuntimeError, TypeError, UnsupportedError) as error:
        return [type(error), str(error), func.told]
    return [plain, told, results, func.told, vars(tape)]


def differences(a, b, at=""):
    """Where two trees differ."""
    if isinstance(a, torch.Tensor):
        equal = a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
        return [] if equal and torch.equal(*(x.detach().nan_to_num(7.0) for x in (a, b))) else [f"{at}: {a} {b}"]
    if isinstance(a, dict):
        a, b = list(a.items()), list(b.items())
    if isinstance(a, (tuple, list)):
        if len(a) != len(b):
            return [f"{at}: {len(a)} and {len(b)} entries"]
        return [line for i, (x, y) in enumerate(zip(a, b, strict=True)) for line in differences(x, y, f"{at}.{i}")]
    return [] if a == b else [f"{at}: {a} {b}"]


@pytest.fixture
def lean_solves(monkeypatch):
    """The solvers of the solves that the lean loop took."""
    taken = []

    class Noted(LeanLoop):
        def __init__(self, solver, *args):
            super().__init__(solver, *args)
            taken.append(solver)

    # Not the trials, which the first solve of a kind makes.
    monkeypatch.setattr(
        loops, "LeanLoop", lambda *args: (Noted if "trial" not in type(args[1]).__module__ else LeanLoop)(*args)
    )
    yield taken
    loops.same_as_host.cache_clear()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", SOLVERS)
def test_a_lean_solve_is_the_hosts_to_the_bit(method, dtype, lean_solves):
    for seed in range(EXAMPLES):
        call = drawn_call(random.Random(f"{method} {dtype} {seed}"), dtype)
        expected = outcome(method, call, lean=False)
        assert not lean_solves
        found = differences(expected, outcome(method, call, lean=True))
        assert not found, f"seed {seed}, {call}: {found[:3]}"
        assert lean_solves
        lean_solves.clear()
        # Its sums as for a large state.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stages, "_LARGE", 1)
            found = differences(expected, outcome(method, call, lean=True))
        assert not found, f"seed {seed}, {call}: {found[:3]}"
        lean_solves.clear()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_sums_of_large_states_are_torchs_to_the_bit(dtype):
    """Of each number of slopes that a solver has."""
    torch.manual_seed(0)
    y = torch.randn(64, 65, dtype=dtype)
    made, _ = stages._places(y, 14)
    assert isinstance(made, stages._OneByOne)
    for slope in made.each:
        slope.copy_(torch.randn_like(y))
    side_by_side = made.all
    for n in range(1, 15):
        weights = torch.randn(n, dtype=dtype)
        assert torch.equal(made.sum(weights), (side_by_side[..., :n] * weights).sum(-1))
    made.each[0].fill_(-0.0)
    assert not made.sum(weights[:1].abs()).signbit().any()


Y0, T = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)


def solve(func=lambda t, y: -y * y, y0=Y0, t=T, **call):
    call = {"rtol": 1e-4, "atol": 1e-6, "adjoint_method": "aca", "adjoint_params": (), **call}
    return odeint_adjoint(func, y0.clone().requires_grad_(), t, **call)


@pytest.mark.parametrize("call", [{"adjoint_method": "aca"}, {"adjoint_method": "quadrature"}, {"method": "dopri8"}])
def test_it_serves_gradients_and_plain_solves(call, lean_solves):
    solve(**call)
    with torch.no_grad():
        solve(**call)
    assert len(lean_solves) == 2


def test_it_serves_autocast(lean_solves):
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    y0 = torch.tensor([[0.3, -1.0]])
    with torch.autocast("cpu", torch.bfloat16):
        ys = [solve(lambda t, y: net(y), y0, adjoint_options={"lean": lean}) for lean in (True, False)]
    assert torch.equal(*ys)
    assert len(lean_solves) == 1


@pytest.mark.parametrize("adjoint_method", ["aca", "quadrature"])
def test_it_is_turned_off_by_an_option(adjoint_method, lean_solves):
    expected = solve(adjoint_method=adjoint_method)
    assert lean_solves.pop()
    assert torch.equal(solve(adjoint_method=adjoint_method, adjoint_options={"lean": False}), expected)
    assert not lean_solves


@pytest.mark.parametrize(
    ("func", "call", "message"),
    [
        (lambda t, y: y * y, {"options": {"max_num_steps": 7}}, r"max_num_steps exceeded \(7>=7\)"),
        (lambda t, y: y * y, {}, "underflow in dt "),
        (lambda t, y: 1e200 * y, {"options": {"min_step": 0.25}}, "non-finite values in state `y`: "),
    ],
)
def test_the_hosts_errors_are_raised(func, call, message, lean_solves):
    errors = []
    for lean in (True, False):
        with pytest.raises(AssertionError, match=message) as raised:
            solve(func, adjoint_options={"lean": lean}, **call)
        errors.append(str(raised.value))
    assert errors[0] == errors[1]
    assert len(lean_solves) == 1


def test_a_solver_of_ones_own_steps_in_the_hosts_loop(monkeypatch, lean_solves):
    monkeypatch.setitem(host.SOLVERS, "mine", type("Mine", (host.SOLVERS["dopri5"],), {}))
    assert torch.equal(solve(method="mine"), solve(adjoint_options={"lean": False}))
    assert not lean_solves


def test_a_solver_with_an_unknown_setting_steps_in_the_hosts_loop(monkeypatch, lean_solves):
    init = host.AdaptiveRungeKutta.__init__

    def with_more(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.controller = "PI"

    monkeypatch.setattr(host.AdaptiveRungeKutta, "__init__", with_more)
    solve()
    assert not lean_solves


def test_where_it_differs_from_the_host_the_hosts_loop_runs(monkeypatch, lean_solves):
    expected = solve()
    assert lean_solves.pop()
    monkeypatch.setattr(LeanLoop, "_next_size", lambda self, h, ratio, root: h * 0.999)
    loops.same_as_host.cache_clear()
    assert torch.equal(solve(), expected)
    assert not lean_solves
