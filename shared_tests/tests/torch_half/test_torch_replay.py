"""What a replay costs: evaluations and states, counted exactly."""

import contextlib
import gc
import weakref

import pytest
import torch

from steptape._plan import Keeper, reversal
from steptape.compat._torchdiffeq import SOLVERS
from steptape.shared_tests.problems.problems import PROBLEMS
from steptape.torch import odeint_adjoint
from steptape.torch._hosts.scheme import scheme_of
from steptape_helpers.torch_solves import ADAPTIVE, FIXED_GRID, Module

STAGES = {"dopri5": 6, "dopri8": 13, "bosh3": 3, "fehlberg2": 2, "adaptive_heun": 1}
STAGES |= {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
pytestmark = pytest.mark.filterwarnings("ignore:Solver .* does not support callbacks")

CARRIES_A_SLOPE = ("fehlberg2", "adaptive_heun")


class Counted(Module):
    """Counts tries and accepted steps as well."""

    def __init__(self, problem):
        super().__init__(problem)
        self.tries = self.accepted = 0

    def callback_step(self, t, y, h):
        self.tries += 1

    def callback_accept_step(self, t, y, h):
        self.accepted += 1


def solve(method, **kwargs):
    problem = PROBLEMS["lotka_volterra"]
    func = Counted(problem)
    y0 = torch.tensor(problem.y0, dtype=torch.float64, requires_grad=True)
    t = torch.tensor(problem.times, dtype=torch.float64)
    if method in FIXED_GRID:
        kwargs["options"] = {"step_size": 0.1}
    kwargs["rtol"] = kwargs["atol"] = 1e-2 if method == "adaptive_heun" else 1e-4
    return func, y0, odeint_adjoint(func, y0, t, method=method, adjoint_method="aca", **kwargs)


@pytest.mark.parametrize("method", [*ADAPTIVE, *(name for name in FIXED_GRID if name in SOLVERS)])
def test_backward_evaluates_each_accepted_stage_once_and_no_rejected_try(method):
    func, _, ys = solve(method)
    steps = func.accepted or func.tries
    if method in ("dopri5", "dopri8", "bosh3"):
        assert func.tries > steps
    forward = func.evaluations
    ys.sum().backward()
    # An adaptive solver's first stage is the last of the step before, so the chain has one more.
    assert func.evaluations - forward == STAGES[method] * steps + (method in ADAPTIVE)


@contextlib.contextmanager
def saved():
    """What graphs that are alive hold of what was saved in the block."""
    noted = []

    def pack(x):
        x = x.view_as(x)
        noted.append(weakref.ref(x))
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield lambda: [x for x in (ref() for ref in noted) if x is not None]


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "adaptive_heun", "rk4"])
@pytest.mark.parametrize("checkpoints", [1, 4, 16])
def test_a_budget_of_checkpoints_is_kept_and_recomputes_what_the_plan_says(method, checkpoints):
    with saved() as held:
        func, y0, ys = solve(method, adjoint_options={"checkpoints": checkpoints})
    steps = func.accepted or func.tries
    states = [x for x in held() if x.shape == y0.shape]
    assert len(states) <= 1 + checkpoints * (2 if method in CARRIES_A_SLOPE else 1)
    forward, keeper = func.evaluations, Keeper(checkpoints)
    for step in range(steps):
        keeper.offer(step)
    advances = sum(action.kind == "advance" for action in reversal(keeper.kept, steps, checkpoints))
    ys.sum().backward()
    backward = STAGES[method] * steps + (method in ADAPTIVE)
    first = advances_from_the_start(keeper.kept, steps, checkpoints) if method in CARRIES_A_SLOPE else 0
    assert func.evaluations - forward == backward + STAGES[method] * advances + first


def advances_from_the_start(kept, steps, checkpoints):
    """How often the first step is recomputed: the one whose first slope a carrying solver evaluates."""
    return sum(action == ("advance", 0) for action in reversal(kept, steps, checkpoints))


@pytest.mark.parametrize("method", ["dopri5", "adaptive_heun", "rk4"])
def test_stage_by_stage_one_graph_is_alive_at_a_time(method):
    inside, most = [], []

    def func(t, y):
        kept_by_the_graph = y.sin()
        if torch.is_grad_enabled():
            inside.append(weakref.ref(kept_by_the_graph))
            most.append(sum(ref() is not None for ref in inside))
        return kept_by_the_graph * kept_by_the_graph - y

    def backward(graph):
        inside.clear(), most.clear()
        y0 = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
        t = torch.linspace(0, 2, 5, dtype=torch.float64)
        options = {"step_size": 0.1} if method == "rk4" else {}
        settings = {"adjoint_method": "aca", "adjoint_params": (), "adjoint_options": {"graph": graph}}
        odeint_adjoint(func, y0, t, method=method, rtol=1e-4, options=options, **settings).sum().backward()
        return max(most)

    assert backward("stage") == 1
    if method != "adaptive_heun":
        assert backward("step") >= STAGES[method]


@pytest.mark.parametrize("method", [*ADAPTIVE, "rk4"])
def test_the_tape_holds_states_and_scalars_and_no_graph(method):
    with saved() as held:
        func, y0, ys = solve(method)
    held, steps = held(), func.accepted or func.tries
    assert all(x.grad_fn is None for x in held)
    states = [x for x in held if x.shape == y0.shape]
    # y0 is both an input and the first state.
    assert len(states) == 1 + steps + (steps - 1 if method in CARRIES_A_SLOPE else 0)
    scalars = sum(x.numel() for x in held) - sum(x.numel() for x in states) - func.params.numel()
    stages = scheme_of(SOLVERS[method]).tableau.stages
    assert scalars <= (2 + stages) * steps + 1 + 2 * len(ys) + 2 * y0.numel()


def test_nothing_of_a_step_s_graph_outlives_the_solve():
    """Every tensor func makes in the forward pass is gone when the solve returns, those of the tape apart."""
    made = []

    class Watched(Module):
        def forward(self, t, y):
            slope = super().forward(t, y)
            made.append(weakref.ref(slope))
            return slope

    problem = PROBLEMS["pendulum"]
    func = Watched(problem)
    y0 = torch.tensor(problem.y0, dtype=torch.float64, requires_grad=True)
    ys = odeint_adjoint(func, y0, torch.tensor([0.0, 1.0]).double(), adjoint_method="aca")
    gc.collect()
    assert made
    assert not [ref for ref in made if ref() is not None]
    del made[:]
    ys.sum().backward()
    gc.collect()
    assert made
    assert not [ref for ref in made if ref() is not None]


def test_the_tape_is_freed_by_the_backward_pass():
    states = []

    class Watched(Module):
        def callback_accept_step(self, t, y, h):
            states.append(weakref.ref(y))

    problem = PROBLEMS["pendulum"]
    func = Watched(problem)
    y0 = torch.tensor(problem.y0, dtype=torch.float64, requires_grad=True)
    ys = odeint_adjoint(func, y0, torch.tensor([0.0, 1.0]).double(), adjoint_method="aca")
    ys.sum().backward()
    gc.collect()
    assert len(states) > 10
    assert not [ref for ref in states[1:] if ref() is not None]


@pytest.mark.parametrize("interp", ["linear", "cubic"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", list(STAGES))
def test_every_evaluation_is_at_a_time_of_the_forward_pass_to_the_bit(method, dtype, interp):
    """A func that jumps in t is on the side of the jump that the solve saw, also where t_n + h rounds."""
    seen = []

    def func(t, y):
        seen.append(t.item())
        return torch.cos(3 * t) * y

    t = torch.rand(60, generator=torch.Generator().manual_seed(0), dtype=dtype).sort().values
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    options = {} if method in ADAPTIVE else {"interp": interp}
    ys = odeint_adjoint(func, y0, t, method=method, options=options, adjoint_method="aca", adjoint_params=())
    forward = set(seen)
    seen.clear()
    ys.sum().backward()
    assert seen
    assert set(seen) <= forward


@pytest.mark.parametrize("method", ["rk4", "explicit_adams"])
def test_an_empty_state(method):
    y0 = torch.ones(0, dtype=torch.float64, requires_grad=True)
    t = torch.linspace(0, 1, 3, dtype=torch.float64)
    ys = odeint_adjoint(lambda t, y: -y, y0, t, method=method, adjoint_method="aca", adjoint_params=())
    assert torch.autograd.grad(ys.sum(), y0)[0].shape == (0,)
