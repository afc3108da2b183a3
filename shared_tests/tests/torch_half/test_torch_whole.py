"""``adjoint_options={"memory": "graphs"}`` on fixed grids: one graph, and the solve taken again if that is gone."""

import itertools

import pytest
import torch
import torchdiffeq
from torch.autograd import grad

from steptape import GradientError, UnsupportedError
from steptape.shared_tests.oracles.distance import distance
from steptape.torch import odeint_adjoint, record_solves
from steptape_helpers.torch_solves import FIXED_GRID, TakesNoBatch

OURS = {"adjoint_method": "aca", "adjoint_options": {"memory": "graphs"}}
WAYS = ((torchdiffeq.odeint, {}), (odeint_adjoint, OURS))
# Between grid points, on them, and several in one step.
T = torch.tensor([0.0, 0.2, 0.45, 0.47, 1.0], dtype=torch.float64)


class Field(torch.nn.Module):
    """A driven layer; ``between``: what it does to its result."""

    def __init__(self, between=None, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(3, 3, generator=generator, dtype=torch.float64).to(dtype))
        self.between = between

    def forward(self, t, y):
        x = (y @ self.weight + torch.sin(3 * t)).tanh()
        return x if self.between is None else self.between(x)


def state(dtype=torch.float64):
    return torch.linspace(-1, 1, 12, dtype=dtype).view(4, 3).requires_grad_()


def by_both(make=Field, t=T, method="rk4", y0=state, pull=grad, **call):
    """Of each way its solution, gradients and func; of ours the record as well."""
    call = {"options": {"step_size": 0.1}, **call}
    for odeint, ours in WAYS:
        torch.manual_seed(0)
        func, y = make(), y0()
        with record_solves() as solves:
            ys = odeint(func, y, t, method=method, **ours, **call)
            yield ys, pull((ys + 0.3).abs().square().sum(), (y, *func.parameters())), func, solves


def gradient_of_gradient(loss, inputs):
    (g,) = grad(loss, inputs[:1], create_graph=True)
    return grad(g.abs().square().sum(), inputs)


def assert_exact(bound=1e-12, evaluates_again=False, **call):
    (expected, by, *_), (found, ours, _, solves) = by_both(**call)
    assert torch.equal(found, expected)
    assert distance(ours, by) <= bound
    assert bool(solves[0].evaluations_backward) is evaluates_again


@pytest.mark.parametrize("method", FIXED_GRID)
def test_the_gradient_is_that_of_back_propagation_and_nothing_is_evaluated_twice(method):
    assert_exact(method=method)


@pytest.mark.parametrize(
    "call",
    [
        {"t": T.flip(0)},
        {"options": {}},
        {"options": {"step_size": 0.1, "perturb": True}},
        {"options": {"grid_constructor": lambda func, y0, t: torch.linspace(0, 1, 8, dtype=t.dtype)}},
        {"t": T.float()},
        {"make": lambda: Field(dtype=torch.complex128), "y0": lambda: state(torch.complex128)},
        {"make": lambda: Field(torch.nn.Dropout(0.4))},
    ],
    ids=["decreasing", "own grid", "perturb", "grid constructor", "times in float32", "complex", "dropout"],
)
def test_whatever_the_times_and_the_state(call):
    assert_exact(**call)


def test_below_float64_it_is_so_to_the_bit():
    (_, expected, *_), (_, found, *_) = by_both(lambda: Field(dtype=torch.float32), y0=lambda: state(torch.float32))
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("between", [None, lambda: torch.nn.Dropout(0.4)], ids=["pure", "dropout"])
@pytest.mark.parametrize("method", FIXED_GRID)
def test_second_derivatives_take_the_solve_again_with_what_it_drew(method, between):
    make = Field if between is None else lambda: Field(between())
    assert_exact(method=method, make=make, pull=gradient_of_gradient, evaluates_again=True, bound=1e-11)


def test_running_statistics_are_those_of_the_solve_after_every_pass():
    make = lambda: Field(torch.nn.BatchNorm1d(3).double())  # noqa: E731
    for pull in (grad, gradient_of_gradient):
        (_, expected, host, _), (_, found, ours, _) = by_both(make, pull=pull)
        assert distance(found, expected) <= 1e-10
        assert torch.equal(ours.between.running_mean, host.between.running_mean)


def test_a_batch_that_an_operation_does_not_take_is_replayed():
    found = []
    for between in (TakesNoBatch.apply, None):
        func, y0 = Field(between), state()
        ys = odeint_adjoint(func, y0, T, method="rk4", options={"step_size": 0.1}, **OURS)
        batch = torch.linspace(-1, 1, 2 * ys.numel(), dtype=torch.float64).view(2, *ys.shape)
        found.append(grad(ys, (y0, func.weight), batch, is_grads_batched=True))
    assert distance(*found) <= 1e-12


def test_what_comes_without_a_graph_is_evaluated_again():
    """A table of slopes looks at the state of another one alone."""
    table = {}

    class Table(Field):
        def forward(self, t, y):
            if not table:
                table["slope"] = super().forward(t, y).detach()
            return table["slope"] if t < 0.3 else super().forward(t, y)

    found = []
    for _ in range(2):
        ((_, expected, *_), (_, ours, *_)) = by_both(Table)
        found.append(distance(ours, expected))
        table.clear()
    assert max(found) <= 1e-12


def test_callbacks_see_each_step_once():
    class Told(Field):
        def __init__(self):
            super().__init__()
            self.told = []

        def callback_step(self, t, y, h):
            self.told.append((float(t), float(h)))

    (*_, host, _), (*_, ours, _) = by_both(Told, pull=gradient_of_gradient)
    assert ours.told == host.told


def test_a_func_that_returns_other_values_is_refused_where_steps_are_taken_again():
    count = itertools.count()
    func, y0 = Field(lambda x: x * (1 + 0.01 * (next(count) > 50))), state()
    ys = odeint_adjoint(func, y0, T, method="rk4", options={"step_size": 0.1}, **OURS)
    with pytest.raises(GradientError, match="returned other values in the backward pass"):
        grad(ys.sum(), y0, create_graph=True)


@pytest.mark.parametrize("late", [False, True])
def test_a_state_that_is_written_to_is_refused(late):
    """Where parameters are named; else it is the host's affair."""

    def func(t, y):
        return y.mul_(1.0) if not late or t > 0.5 else 1.0 * y

    with pytest.raises((UnsupportedError, RuntimeError), match=r"changed the state y in place|in-place operation"):
        odeint_adjoint(
            func, state(), T, method="euler", options={"step_size": 0.1}, adjoint_params=(), **OURS
        ).sum().backward()


def test_no_more_is_held_than_by_back_propagation_but_for_the_times():
    storages, steps = {}, 100

    def pack(x):
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    func, y0, call = Field(), state(), {"method": "rk4", "options": {"step_size": 1 / steps}}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        ys = torchdiffeq.odeint(func, y0, T, **call)
    with record_solves() as solves:
        odeint_adjoint(func, y0, T, **call, **OURS)
    # And two samples of states, whole ones where they are small.
    times = 8 * (len(T) + 2 * steps + 1) + 2 * y0.nbytes
    assert len(ys) == len(T)
    assert solves[0].bytes_held <= sum(storages.values()) + times
