"""What func stores for the loss, from the middle of a solve on; and what it leaves otherwise."""

import collections

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


def in_place_of_a_buffer(func, term):
    func.buffer += term


def another_buffer(func, term):
    func.buffer = func.buffer + term


def one_of_a_list(func, term):
    func.pair[0] = func.pair[0] + term


def of_the_function(func, term):
    func.step.sum = getattr(func.step, "sum", 0.0) + term


def bound(func, term):
    func.add(term)


def queued(func, term):
    func.queue.append(term)


def hooked(func, term):
    func.identity(term)


def listed(func, term):
    func.terms.append(term)


def among_zeros(func, term):
    func.terms[-1] = term


STORES = [
    *(attribute, in_place, in_place_of_a_buffer, another_buffer, one_of_a_list, of_the_function),
    *(bound, queued, hooked, listed, among_zeros),
]


class Late(torch.nn.Module):
    """Stores from the middle of the solve on, of its state or of its weights; ``among_zeros``: and zeros before."""

    def __init__(self, store, of_weights=False, detached=False, since=0.5):
        super().__init__()
        self.store, self.of_weights, self.detached, self.since = store, of_weights, detached, since
        self.net, self.other = linear(), torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.penalty, self.terms = torch.zeros((), dtype=torch.float64), []
        self.register_buffer("buffer", torch.zeros((), dtype=torch.float64))
        self.pair, self.add, self.identity = (
            [torch.zeros((), dtype=torch.float64)],
            self.terms.append,
            torch.nn.Identity(),
        )
        self.identity.register_forward_hook(lambda module, given, out: self.terms.append(out))
        self.step, self.queue = lambda y: y, collections.deque()

    def forward(self, t, y):
        if self.store is among_zeros:
            self.terms.append(torch.zeros((), dtype=torch.float64))
        if t > self.since:
            term = self.other.square() if self.of_weights else y.square().sum()
            self.store(self, term.detach() if self.detached else term)
        return self.step(self.net(y).tanh())

    def loss(self, ys):
        stored = self.penalty + self.buffer + self.pair[0] + getattr(self.step, "sum", 0.0)
        return ys[-1].sum() + stored + sum(self.terms) + sum(self.queue)


def linear():
    torch.manual_seed(3)
    return torch.nn.Linear(2, 2, dtype=torch.float64)


def late(odeint, store, what, method="rk4", since=0.5, **adjoint):
    func = Late(store, what == "weights", what == "detached", since)
    return func, func.loss(odeint(func, Y0, T, method=method, options=OPTIONS[method], **adjoint))


@pytest.mark.parametrize("keep", KEEPS, ids=str)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("what", ["state", "weights", "detached"])
@pytest.mark.parametrize(("method", "since"), [("rk4", 0.5), ("dopri5", 0.5), ("rk4", -1.0)])
@pytest.mark.by_default(every=4)
def test_what_func_stores_from_some_time_on(keep, store, what, method, since):
    expected, loss = late(torchdiffeq.odeint, store, what, method, since)
    loss.backward()
    func, found = late(odeint_adjoint, store, what, method, since, adjoint_method="aca", adjoint_options=keep)
    assert found == loss
    assert len(func.terms) == len(expected.terms)
    # The host keeps graphs too, and takes over where they are asked for.
    if what != "state" or keep == {"memory": "graphs"}:
        found.backward()
        assert distance(*([p.grad for p in one.parameters() if p.grad is not None] for one in (func, expected))) < 1e-12
    else:
        with pytest.raises(GradientError, match="computed from the state y and stored"):
            found.backward()


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("default", ["aca", "quadrature"])
@pytest.mark.parametrize("since", [0.5, -1.0])
@pytest.mark.by_default(every=2)
def test_a_plain_call_whose_func_stores_something_is_the_host_s(store, default, since):
    expected, loss = late(torchdiffeq.odeint, store, "state", since=since)
    loss.backward()
    with install(default=default, override=True):
        func, found = late(torchdiffeq.odeint, store, "state", since=since)
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
    """With a gradient, that is the host's where graphs are asked for, else refused; without one it is a number."""

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
    if keep == {"memory": "graphs"}:
        loss(odeint_adjoint, True, **aca).backward()
        return
    with pytest.raises(GradientError, match="and stored"):
        loss(odeint_adjoint, True, **aca).backward()


def switched(flag, odeint, **adjoint):
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    field = lambda t, y: -weight * y * (2.0 if flag(y, weight) else 1.0)  # noqa: E731
    ys = odeint(field, Y0, T, method="rk4", **adjoint)
    return ys, lambda: torch.autograd.grad(ys[-1].sum(), weight)


BY_STATES = [{}, {"graph": "stage"}, {"checkpoints": 2, "graph": "stage"}]


@pytest.mark.parametrize("keep", BY_STATES, ids=str)
def test_another_field_with_a_graph_than_without_is_refused(keep):
    _, gradient = switched(lambda y, _: y.requires_grad, odeint_adjoint, adjoint_method="aca", adjoint_options=keep)
    with pytest.raises(GradientError, match="returned other values"):
        gradient()


@pytest.mark.parametrize("keep", [*BY_STATES, {"memory": "graphs"}], ids=str)
@pytest.mark.parametrize(
    "flag",
    [
        lambda y, weight: torch.is_grad_enabled(),
        lambda y, weight: (weight * y).requires_grad,
        lambda y, weight: (weight * y).grad_fn is not None,
    ],
)
def test_a_field_that_asks_for_the_grad_mode_finds_that_of_back_propagation(flag, keep):
    ys, gradient = switched(flag, torchdiffeq.odeint)
    ours, found = switched(flag, odeint_adjoint, adjoint_method="aca", adjoint_options=keep)
    assert torch.equal(ours, ys)
    assert distance(found(), gradient()) <= 1e-12


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
    """A solve is taken once where that is a number, and twice where it may be computed from the state, to see."""

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


def test_what_hooks_in_func_keep_of_a_backward_pass_stays():
    class Monitored(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.cotangent = linear(), None
            self.net.register_full_backward_hook(
                lambda module, given, out: setattr(self, "of_net", out[0].sum().item())
            )

        def save(self, cotangent):
            self.cotangent = cotangent

        def forward(self, t, y):
            slope = self.net(y)
            if slope.requires_grad:
                slope.register_hook(self.save)
            return slope.tanh()

    found = []
    for odeint, adjoint in (
        (torchdiffeq.odeint, {}),
        (odeint_adjoint, {"adjoint_method": "aca"}),
        (odeint_adjoint, {"adjoint_method": "aca", "adjoint_options": {"memory": "graphs"}}),
    ):
        func = Monitored()
        odeint(func, Y0.clone().requires_grad_(), T, method="rk4", **adjoint).sum().backward()
        found.append((func.cotangent, func.of_net))
    for cotangent, of_net in found[1:]:
        torch.testing.assert_close(cotangent, found[0][0])
        assert of_net == pytest.approx(found[0][1])


def logged(odeint, of_inner, within, **adjoint):
    """A penalty of the weights alone, listed by an inner solve: the gradient, and how many there are before it."""
    weight, log = torch.tensor([0.8, 1.3], dtype=torch.float64, requires_grad=True), []

    def inner(t, y):
        log.append(weight.square().sum())
        return torch.tanh(weight * y)

    def outer(t, y):
        return of_inner(inner, y, T / 2, method="rk4", options={"step_size": 0.25}, **within)[-1] - y

    ys = odeint(outer, Y0, T, method="rk4", options={"step_size": 0.25}, **adjoint)
    count = len(log)
    return torch.autograd.grad(ys[-1].sum(), weight)[0], count


@pytest.mark.parametrize("keep", [{}, {"memory": "graphs"}], ids=str)
@pytest.mark.parametrize("inner", [torchdiffeq.odeint, odeint_adjoint])
def test_what_a_solve_in_func_stores(keep, inner):
    aca = {"adjoint_method": "aca", "adjoint_options": keep}
    within = aca if inner is odeint_adjoint else {}
    expected, count = logged(torchdiffeq.odeint, torchdiffeq.odeint, {})
    found, ours = logged(odeint_adjoint, inner, within, **aca)
    assert ours == count
    assert distance(found, expected) <= 1e-12


def test_what_func_stores_up_to_an_event_is_that_of_the_host_s_evaluations():
    def stored(odeint, **adjoint):
        weight, log = torch.tensor(1.3, dtype=torch.float64, requires_grad=True), []

        def func(t, y):
            log.append(weight.square())
            return torch.tanh(weight * y)

        call = {"event_fn": lambda t, y: y[0] - 1.5, "options": {"first_step": 0.1}, **adjoint}
        odeint(func, Y0, 3 * T, **call)
        return len(log), torch.autograd.grad(sum(log), weight)[0]

    assert stored(odeint_adjoint, adjoint_method="aca") == stored(torchdiffeq.odeint)


@pytest.mark.parametrize("keep", KEEPS, ids=str)
def test_a_penalty_that_is_written_into_a_row_of_zeros(keep):
    def gradient(odeint, **adjoint):
        weight, rows, at = torch.tensor(0.5, dtype=torch.float64, requires_grad=True), torch.zeros(100), [0]

        def func(t, y):
            slope = torch.sin(weight * y)
            rows[at[0]] = slope.square().sum()
            at[0] += 1
            return slope

        ys = odeint(func, Y0, T, method="rk4", options={"step_size": 0.1}, **adjoint)
        return torch.autograd.grad(ys[-1].sum() + rows.sum(), weight)

    aca = {"adjoint_method": "aca", "adjoint_options": keep}
    if keep == {"memory": "graphs"}:
        assert distance(gradient(odeint_adjoint, **aca), gradient(torchdiffeq.odeint)) <= 1e-12
    else:
        with pytest.raises(GradientError, match="computed from the state y and stored"):
            gradient(odeint_adjoint, **aca)


@pytest.mark.parametrize("depth", range(2))
def test_a_plain_call_stores_once_in_containers_of_containers(depth):
    class Trainer:
        def __init__(self):
            self.terms = terms = {}
            for _ in range(depth):
                terms["in"] = terms = {}
            terms["in"], self.net = [], linear()

        def field(self, t, y):
            slope, terms = self.net(y).tanh(), self.terms
            while isinstance(terms, dict):
                terms = terms["in"]
            terms.append(slope.square().sum())
            self.last = terms
            return slope

    def gradient():
        trainer = Trainer()
        ys = torchdiffeq.odeint(lambda t, y: trainer.field(t, y), Y0, T, method="rk4", options={"step_size": 0.1})
        return torch.autograd.grad(ys[-1].sum() + sum(trainer.last), trainer.net.weight)[0]

    expected = gradient()
    with install(default="aca", override=True):
        assert torch.equal(gradient(), expected)
