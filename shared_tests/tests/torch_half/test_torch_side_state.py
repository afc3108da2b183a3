"""Random numbers drawn in func, and buffers that it changes: the replay finds them as the forward solve did."""

import pytest
import torch
import torchdiffeq

from steptape._errors import GradientError, UnsupportedError
from steptape.shared_tests.oracles.distance import distance
from steptape.torch import odeint_adjoint, record_solves
from steptape_helpers.torch_solves import ADAMS, ADAPTIVE, FIXED_GRID, gradients_of

TIMES = torch.linspace(0, 1, 5, dtype=torch.float64)
LOOSE = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(autouse=True)
def _own_random_numbers():
    with torch.random.fork_rng():
        yield


class Noisy(torch.nn.Module):
    """A small network with a front in time; it draws, for dropout or for noise, from the time ``begins`` on."""

    def __init__(self, dropout=0.0, noise=0.0, begins=-1.0):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(8, 3)
        ).double()
        self.noise, self.begins = noise, begins

    def forward(self, t, y):
        self.net.train(bool(t > self.begins))
        noise = self.noise * torch.randn_like(y) if self.noise and t > self.begins else 0
        return self.net(y) * (1 + 20 * (t - 0.55).clamp(0, 0.01) / 0.01 + noise)


def gradients(odeint, func, t=TIMES, **kwargs):
    """The solution, and its gradients in y0 and the parameters."""
    torch.manual_seed(1)
    y0 = torch.linspace(-1, 7, 15, dtype=torch.float64).sin().view(5, 3).requires_grad_()
    ys = odeint(func, y0, t, **kwargs)
    return ys, torch.autograd.grad(ys.square().sum(), (y0, *func.parameters()))


def check_equal(func, t=TIMES, adjoint_options=None, **kwargs):
    ys, grads = gradients(torchdiffeq.odeint, func, t, **kwargs)
    found, found_grads = gradients(
        odeint_adjoint, func, t, adjoint_method="aca", adjoint_options=adjoint_options, **kwargs
    )
    assert torch.equal(found, ys)
    assert distance(found_grads, grads) <= 1e-12


KEEP = [None, {"checkpoints": 2}, {"graph": "stage"}, {"checkpoints": 1, "graph": "stage"}]


@pytest.mark.parametrize("keep", KEEP, ids=str)
@pytest.mark.parametrize("method", FIXED_GRID)
def test_dropout_on_a_fixed_grid(method, keep):
    check_equal(Noisy(0.5), adjoint_options=keep, method=method, options={"step_size": 0.11})


@pytest.mark.parametrize("keep", KEEP[:2], ids=str)
@pytest.mark.parametrize("method", ADAMS)
def test_dropout_in_a_multistep_method(method, keep):
    options = {"step_size": 0.05} | ({"max_iters": 20} if method == "implicit_adams" else {})
    check_equal(Noisy(0.3), adjoint_options=keep, method=method, options=options, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("keep", KEEP, ids=str)
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_noise_among_rejected_tries(method, backward, keep):
    func = Noisy(noise=1e-3)
    t = TIMES.flip(0) if backward else TIMES
    with record_solves() as solves:
        check_equal(func, t, keep, method=method, options={"first_step": 0.7}, **LOOSE)
    assert solves[0].rejected_steps > 0


def test_noise_with_the_hosts_own_first_step():
    """The host evaluates func twice before its first try."""
    func = Noisy(noise=1e-3)
    with record_solves() as solves:
        _, grads = gradients(odeint_adjoint, func, adjoint_method="aca", method="dopri5", **LOOSE)
    first = {}
    func.callback_accept_step = lambda t, y, h: first.setdefault("first_step", h)
    gradients(torchdiffeq.odeint, func, method="dopri5", **LOOSE)
    if not first:
        pytest.skip("torchdiffeq 0.2.3 calls no callbacks, which tell the size of the first step here")

    class Evaluated(Noisy):
        """With one evaluation more before the rest, as the host's guess of the first step makes."""

        calls = 0

        def forward(self, t, y):
            slope = super().forward(t, y)
            if not self.calls:
                super().forward(t, y)
            self.calls += 1
            return slope

    func = Evaluated(noise=1e-3)
    _, expected = gradients(torchdiffeq.odeint, func, method="dopri5", options=first, **LOOSE)
    assert distance(grads, expected) <= 1e-12
    assert solves[0].accepted_steps > 1


@pytest.mark.parametrize("point", ["step_t", "jump_t"])
def test_noise_around_given_points(point):
    options = {"first_step": 0.2, point: torch.tensor([0.3, 0.31, 0.8], dtype=torch.float64)}
    check_equal(Noisy(noise=1e-3), method="dopri5", options=options, **LOOSE)


def test_numbers_drawn_from_the_middle_of_a_solve_on():
    check_equal(Noisy(noise=1e-3, begins=0.4), method="dopri5", options={"first_step": 0.1}, **LOOSE)
    check_equal(Noisy(0.5, begins=0.4), method="rk4", options={"step_size": 0.1})


@pytest.mark.parametrize("method", ["rk4", "dopri5", "explicit_adams"])
def test_second_derivatives(method):
    options = {"first_step": 0.2} if method == "dopri5" else {"step_size": 0.1}

    def second(odeint, **kwargs):
        func = Noisy(0.1)
        torch.manual_seed(1)
        y0 = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
        ys = odeint(func, y0, TIMES, method=method, options=options, rtol=0.1, atol=0.1, **kwargs)
        (first,) = torch.autograd.grad(ys.square().sum(), y0, create_graph=True)
        return torch.autograd.grad(first.square().sum(), (y0, *list(func.parameters())[:3]))

    assert distance(second(odeint_adjoint, adjoint_method="aca"), second(torchdiffeq.odeint)) <= 1e-12


def test_the_backward_pass_leaves_the_generator_alone():
    func = Noisy(0.5)
    gradients(odeint_adjoint, func, adjoint_method="aca", method="rk4")
    after = torch.get_rng_state()
    torch.manual_seed(1)
    gradients(torchdiffeq.odeint, func, method="rk4")
    assert torch.equal(torch.get_rng_state(), after)


def test_two_backward_passes():
    func = Noisy(0.5)
    y0 = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    ys = odeint_adjoint(func, y0, TIMES, method="rk4", adjoint_method="aca")
    once, again = (torch.autograd.grad(ys.sum(), (y0, *func.parameters()), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, once, again))


def test_a_solve_that_draws_nothing_keeps_no_states_of_the_generator():
    func = Noisy(0.0)
    with record_solves() as solves:
        gradients(odeint_adjoint, func.eval(), adjoint_method="aca", method="rk4", options={"step_size": 0.01})
    assert solves[0].bytes_held < 101 * (15 * 8 + 8 * 8) + 1000


def test_what_the_generators_states_weigh_is_counted():
    with record_solves() as solves:
        gradients(odeint_adjoint, Noisy(0.5), adjoint_method="aca", method="rk4", options={"step_size": 0.01})
    assert solves[0].bytes_held > 100 * 5000


def test_cubic_interpolation_is_refused():
    """The host evaluates the slope at the end of a step once for each output inside it."""
    with pytest.raises(
        UnsupportedError,
        match=r"'interp': 'cubic'.*drew random numbers.*or changed its buffers.*Use 'interp': 'linear'",
    ):
        gradients(
            odeint_adjoint,
            Noisy(0.5),
            adjoint_method="aca",
            method="rk4",
            options={"step_size": 0.3, "interp": "cubic"},
        )


class Normed(torch.nn.Module):
    """A small network with a layer that changes its buffers at each evaluation."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        first = torch.nn.Linear(3, 8)
        if kind == "spectral_norm":
            first = torch.nn.utils.spectral_norm(first)
        elif kind == "parametrized spectral_norm":
            first = torch.nn.utils.parametrizations.spectral_norm(first)
        norm = torch.nn.BatchNorm1d(8) if kind == "BatchNorm1d" else torch.nn.Identity()
        self.net = torch.nn.Sequential(first, norm, torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()

    def forward(self, t, y):
        return self.net(y) * (1 + 20 * (t - 0.55).clamp(0, 0.01) / 0.01)


@pytest.mark.parametrize(
    ("method", "keep"),
    [("dopri5", None), ("dopri5", KEEP[-1]), ("fehlberg2", KEEP[1]), ("rk4", KEEP[2]), ("explicit_adams", KEEP[1])],
)
@pytest.mark.parametrize("kind", ["BatchNorm1d", "spectral_norm", "parametrized spectral_norm"])
def test_buffers_that_evaluations_change(kind, method, keep):
    options = {"first_step": 0.7} if method in ADAPTIVE else {"step_size": 0.11}
    host, ours = Normed(kind), Normed(kind)
    ys, grads = gradients(torchdiffeq.odeint, host, method=method, options=options, **LOOSE)
    found, found_grads = gradients(
        odeint_adjoint, ours, method=method, options=options, adjoint_method="aca", adjoint_options=keep, **LOOSE
    )
    assert torch.equal(found, ys)
    # Parameters that do not matter, such as a bias before a batch norm, have gradients of rounding's size.
    scale = max(g.abs().max() for g in grads)
    assert all((a - b).abs().max() <= 1e-12 * scale for a, b in zip(found_grads, grads, strict=True))
    assert all(map(torch.equal, ours.buffers(), host.buffers()))


class Thermostat(torch.nn.Module):
    """Heats from when it is cold until it is warm: the mode is in a buffer, or in an attribute."""

    def __init__(self, kind):
        super().__init__()
        self.rates, self.kind, self.on = torch.nn.Parameter(torch.tensor([2.0, 3.0], dtype=torch.float64)), kind, False
        self.register_buffer("mode", torch.zeros((), dtype=torch.bool))

    def forward(self, t, y):
        if y[0] < 0.4 or y[0] > 0.8:
            self.on = bool(y[0] < 0.4)
            self.mode.fill_(self.on)
        on = bool(self.mode) if self.kind == "buffer" else self.on
        return self.rates[0] - 0.5 * y if on else -self.rates[1] * y


class Observer(torch.nn.Module):
    """Scales by the largest value seen so far, which rises now and then."""

    def __init__(self):
        super().__init__()
        self.rates = torch.nn.Parameter(torch.tensor([1.3], dtype=torch.float64))
        self.register_buffer("largest", torch.full((), 0.1, dtype=torch.float64))

    def forward(self, t, y):
        self.largest.copy_(torch.maximum(self.largest, y.detach().abs().max()))
        return self.rates * (torch.sin(3 * t) + 0.3 * t - y / self.largest.clone())


def thermal_gradient(odeint, func, method, end, **adjoint):
    y0, t = torch.ones(1, dtype=torch.float64), torch.tensor([0.0, end], dtype=torch.float64)
    options = {"step_size": 0.02} if method == "rk4" else {"first_step": 0.05}
    ys = odeint(func, y0, t, method=method, rtol=1e-3, atol=1e-3, options=options, **adjoint)
    return torch.autograd.grad(ys[-1].sum(), func.rates)[0]


@pytest.mark.parametrize("adjoint_options", [{}, {"checkpoints": 3}, {"graph": "stage"}, {"memory": "graphs"}], ids=str)
@pytest.mark.parametrize("method", ["dopri5", "bosh3", "rk4"])
@pytest.mark.parametrize("make", [lambda: Thermostat("buffer"), Observer], ids=["mode", "largest"])
def test_a_buffer_that_changes_now_and_then(make, method, adjoint_options):
    """The mode ends as it began, after two switches; the largest value stays for many steps before it rises again."""
    for end in (1.0, 2.0, 4.0):
        found = thermal_gradient(
            odeint_adjoint, make(), method, end, adjoint_method="aca", adjoint_options=adjoint_options
        )
        torch.testing.assert_close(found, thermal_gradient(torchdiffeq.odeint, make(), method, end), rtol=1e-11, atol=0)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_a_mode_in_an_attribute_is_refused_wherever_it_changes(method):
    with pytest.raises(GradientError, match="returned other values in the backward pass"):
        thermal_gradient(odeint_adjoint, Thermostat("attribute"), method, 2.0, adjoint_method="aca")


def test_the_quadrature_refuses_a_mode_that_ends_as_it_began():
    with pytest.raises(GradientError, match="changed its buffers"):
        thermal_gradient(odeint_adjoint, Thermostat("buffer"), "dopri5", 2.0, adjoint_method="quadrature")


class Rebinding(torch.nn.Module):
    """Moves on with each evaluation, by what is put in another's place."""

    def __init__(self):
        super().__init__()
        self.rates = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(2, dtype=torch.float64))
        self.generator, self.weight, self.count, self.past = torch.Generator().manual_seed(0), 1.0, 0, []

    def forward(self, t, y):
        self.mean, self.weight, self.count = 0.9 * self.mean + 0.1 * y.detach(), 0.9 * self.weight, self.count + 1
        self.past.append(y.detach())
        noise = torch.randn(2, generator=self.generator, dtype=torch.float64)
        return self.rates * (y - self.mean) * self.weight + noise + 0.01 * self.count + len(self.past)


@pytest.mark.parametrize("adjoint_options", [{}, {"memory": "graphs"}], ids=str)
def test_the_solution_is_the_host_s_where_func_moves_on_with_each_evaluation(adjoint_options):
    def solved(odeint, **adjoint):
        func = Rebinding()
        ys = odeint(func, torch.ones(2, dtype=torch.float64), torch.tensor([0.0, 0.5, 1.0]), method="rk4", **adjoint)
        return ys, func

    (expected, host), (found, ours) = (
        solved(torchdiffeq.odeint),
        solved(odeint_adjoint, adjoint_method="aca", adjoint_options=adjoint_options),
    )
    assert torch.equal(found, expected)
    assert torch.equal(ours.mean, host.mean)
    assert (ours.weight, ours.count) == (host.weight, host.count)


class SetAtFirst(torch.nn.Module):
    """It sets a weight in place, by the first state that it meets (ActNorm)."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.register_buffer("met", torch.zeros(()))

    def forward(self, t, y):
        if not self.met:
            with torch.no_grad():
                self.scale.copy_(1 / y.std(0))
                self.met.fill_(1)
        return torch.tanh(self.scale * y + t)


KEPT = [None, {"checkpoints": 2}, {"memory": "graphs"}, {"graph": "stage"}]


@pytest.mark.parametrize("order", ["first", "again", "second"])
@pytest.mark.parametrize(
    ("method", "adjoint_options"),
    [*((method, None) for method in (*ADAPTIVE, "rk4")), *(("dopri5", kept) for kept in KEPT[1:]), ("rk4", KEPT[1])],
)
def test_weights_that_the_first_evaluation_sets_in_place(method, adjoint_options, order):
    options = {"step_size": 0.1} if method == "rk4" else {"first_step": 0.1}

    def solved(odeint, **kwargs):
        func, y0 = SetAtFirst(), torch.linspace(-1, 7, 15, dtype=torch.float64).sin().view(5, 3).requires_grad_()
        ys = odeint(func, y0, TIMES, method=method, options=dict(options), **LOOSE, **kwargs)
        loss, inputs = ys.square().sum(), (y0, func.scale)
        if order == "again":
            torch.autograd.grad(loss, inputs, retain_graph=True)
        return ys, func.scale, gradients_of(loss, inputs, second=order == "second")

    expected, scale, grads = solved(torchdiffeq.odeint)
    ys, found_scale, found = solved(odeint_adjoint, adjoint_method="aca", adjoint_options=adjoint_options)
    assert torch.equal(ys, expected)
    assert torch.equal(found_scale, scale)
    assert distance(found, grads) <= 1e-12


@pytest.mark.parametrize("written", [False, True])
def test_a_large_buffer_is_copied_only_if_it_is_written_to(written):
    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
            self.register_buffer("table", torch.ones(10**5, dtype=torch.float64))

        def forward(self, t, y):
            if written:
                self.table.mul_(1.01)
            return -self.w * y * self.table[0].item()

    def gradient(odeint, **aca):
        func, y0 = Field(), torch.ones(2, dtype=torch.float64)
        ys = odeint(func, y0, torch.tensor([0.0, 1.0], dtype=torch.float64), method="rk4", **aca)
        grads = torch.autograd.grad(ys.sum(), [func.w])
        return grads, func.table

    (found, ours), (expected, hosts) = gradient(odeint_adjoint, adjoint_method="aca"), gradient(torchdiffeq.odeint)
    assert distance(found, expected) <= 1e-12
    assert torch.equal(ours, hosts)
    # torch tells where a copy is yet to be made.
    assert written or torch._C._is_cow_tensor(ours)
