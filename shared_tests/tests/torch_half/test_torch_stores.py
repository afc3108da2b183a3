"""What func stores for the loss, from the middle of a solve on; and what it leaves otherwise."""

import pytest
import torch
import torchdiffeq

from steptape import GradientError
from steptape.shared_tests.oracles.distance import distance
from steptape.torch import install, odeint_adjoint, record_solves

T = torch.tensor([0.0, 1.0], dtype=torch.float64)
Y0 = torch.ones(2, dtype=torch.float64)
OPTIONS = {"rk4": {"step_size": 0.1}, "dopri5": {"first_step": 0.1}}
KEEPS = [{}, {"checkpoints": 2}, {"graph": "stage"}, {"memory": "graphs"}, {"memory": "64 KB"}, {"lean": False}]


def attribute(func, term):
    func.penalty = func.penalty + term


def in_place(func, term):
    func.penalty += term


def listed(func, term):
    func.terms.append(term)


def among_zeros(func, term):
    func.terms[-1] = term


class Late(torch.nn.Module):
    """Stores from the middle of the solve on, of its state or of its weights; ``among_zeros``: and zeros before."""

    def __init__(self, store, of_weights=False, detached=False, since=0.5):
        super().__init__()
        self.store, self.of_weights, self.detached, self.since = store, of_weights, detached, since
        self.net, self.other = linear(), torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.penalty, self.terms = torch.zeros((), dtype=torch.float64), []

    def forward(self, t, y):
        if self.store is among_zeros:
            self.terms.append(torch.zeros((), dtype=torch.float64))
        if t > self.since:
            term = self.other.square() if self.of_weights else y.square().sum()
            self.store(self, term.detach() if self.detached else term)
        return self.net(y).tanh()

    def loss(self, ys):
        return ys[-1].sum() + self.penalty + sum(self.terms)


def linear():
    torch.manual_seed(3)
    return torch.nn.Linear(2, 2, dtype=torch.float64)


def late(odeint, store, what, method="rk4", **adjoint):
    func = Late(store, what == "weights", what == "detached")
    return func, func.loss(odeint(func, Y0, T, method=method, options=OPTIONS[method], **adjoint))


@pytest.mark.parametrize("keep", KEEPS, ids=str)
@pytest.mark.parametrize("store", [attribute, in_place, listed, among_zeros])
@pytest.mark.parametrize("what", ["state", "weights", "detached"])
@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.by_default(every=2)
def test_what_func_stores_later_than_at_first(keep, store, what, method):
    expected, loss = late(torchdiffeq.odeint, store, what, method)
    loss.backward()
    func, found = late(odeint_adjoint, store, what, method, adjoint_method="aca", adjoint_options=keep)
    assert found == loss
    assert len(func.terms) == len(expected.terms)
    if what != "state":
        found.backward()
        assert distance(*([p.grad for p in one.parameters() if p.grad is not None] for one in (func, expected))) < 1e-12
    else:
        with pytest.raises(GradientError, match="computed from the state y and stored"):
            found.backward()


@pytest.mark.parametrize("store", [attribute, in_place, listed, among_zeros])
@pytest.mark.parametrize("default", ["aca", "quadrature"])
def test_a_plain_call_whose_func_stores_something_later_is_the_host_s(store, default):
    expected, loss = late(torchdiffeq.odeint, store, "state")
    loss.backward()
    with install(default=default, override=True):
        func, found = late(torchdiffeq.odeint, store, "state")
        found.backward()
    assert found == loss
    assert len(func.terms) == len(expected.terms)
    assert all(
        map(torch.equal, (func.net.weight.grad, func.net.bias.grad), (p.grad for p in expected.net.parameters()))
    )


def test_a_plain_call_that_calls_back_is_the_host_s():
    """What a callback keeps of the state has its gradient there."""

    class Recorded(Late):
        def callback_step(self, t, y, h):
            self.terms.append(y.square().sum() * h)

    def solved():
        func = Recorded(attribute)
        return torch.autograd.grad(func.loss(torchdiffeq.odeint(func, Y0, T, method="rk4")), [*func.net.parameters()])

    expected = solved()
    with install(default="aca", override=True):
        assert all(map(torch.equal, solved(), expected))


@pytest.mark.parametrize("keep", KEEPS, ids=str)
def test_a_time_that_func_stores(keep):
    """With a gradient, that is refused; without one it is a number."""

    def loss(odeint, moves, **adjoint):
        times, t = [], T.clone().requires_grad_(moves)

        def func(t, y):
            times.append(t)
            return -y * t

        ys = odeint(func, Y0.clone().requires_grad_(), t, method="rk4", **adjoint)
        return ys[-1].sum() + sum(x.square() for x in times)

    aca = {"adjoint_method": "aca", "adjoint_options": keep}
    assert loss(odeint_adjoint, False, **aca) == loss(torchdiffeq.odeint, False)
    loss(odeint_adjoint, False, **aca).backward()
    with pytest.raises(GradientError, match="and stored"):
        loss(odeint_adjoint, True, **aca).backward()


@pytest.mark.parametrize("flag", [lambda y: torch.is_grad_enabled(), lambda y: y.requires_grad])
def test_another_field_with_a_graph_than_without_is_refused(flag):
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    for keep in ({}, {"graph": "stage"}, {"checkpoints": 2, "graph": "stage"}):
        ys = odeint_adjoint(
            lambda t, y: -weight * y * (2.0 if flag(y) else 1.0),
            Y0,
            T,
            method="rk4",
            adjoint_method="aca",
            adjoint_options=keep,
        )
        with pytest.raises(GradientError, match="returned other values"):
            ys[-1].sum().backward()


@pytest.mark.parametrize("left", [float, str, lambda t: (float(t),), lambda t: {"t": float(t)}, torch.clone])
def test_what_each_evaluation_sets_is_as_the_solve_left_it(left):
    class Sets(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.last, self.count = linear(), None, 0

        def forward(self, t, y):
            self.last, self.count = left(t), self.count + 1
            return self.net(y)

    func = Sets()
    ys = odeint_adjoint(func, Y0, T, method="rk4", adjoint_method="aca")
    last, count = func.last, func.count
    ys.sum().backward()
    assert str(func.last) == str(last)
    assert func.count > count


def test_what_is_recorded_of_a_solve_that_is_taken_again():
    """Its evaluations are those of both times, and one at its end."""
    counts = []
    for since in (0.5, 2.0):
        func = Late(attribute, since=since)
        with record_solves() as solves:
            ys = odeint_adjoint(func, Y0, T, method="rk4", adjoint_method="aca")
        counts.append(solves[0].evaluations_forward)
        assert ys.requires_grad
    assert counts == [9, 4]


@pytest.mark.parametrize("keeps", [float, torch.clone])
def test_what_a_callback_keeps_is_kept_once(keeps):
    """A solve is taken once where that is a number; where it may be computed from the state, twice to see, with a look at its end."""

    class Called(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.seen, self.evaluations = linear(), [], 0

        def callback_step(self, t, y, h):
            self.seen.append(keeps(t))

        def forward(self, t, y):
            self.evaluations += 1
            return self.net(y).tanh()

    func, expected = Called(), Called()
    with record_solves() as solves:
        ys = odeint_adjoint(func, Y0, T, method="rk4", adjoint_method="aca")
    torchdiffeq.odeint(expected, Y0, T, method="rk4")
    assert func.seen == expected.seen
    assert solves[0].evaluations_forward == (4 if keeps is float else 9)
    ys.sum().backward()
