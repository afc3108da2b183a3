"""The quadrature adjoint: the ODE's own gradient, to the tolerance, from a backward solve of the cotangent alone."""

import functools
import math
import re

import pytest
import torch
import torchdiffeq

from steptape import GradientError, OptionError, UnsupportedError
from steptape.shared_tests.oracles.distance import distance, euclidean
from steptape.shared_tests.parity.promises import LUCKY
from steptape.shared_tests.problems.make_references import load_references
from steptape.shared_tests.problems.problems import PROBLEMS
from steptape.torch import install, odeint_adjoint, record_solves, seminorm
from steptape_helpers.torch_solves import ADAPTIVE, Module, differentiate

quadrature = functools.partial(odeint_adjoint, adjoint_method="quadrature")
REFERENCES = load_references()
SMOOTH = ("exponential", "rotation", "harmonic", "lotka_volterra", "van_der_pol_mild", "pendulum", "mlp")
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def reference(name):
    return [torch.tensor(REFERENCES[name]["gradient"][part], dtype=torch.float64) for part in ("y0", "times", "params")]


def error(name, tolerance, **kwargs):
    found = differentiate(quadrature, PROBLEMS[name], rtol=tolerance, atol=tolerance, **kwargs)
    return distance(found.gradients, reference(name))


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_solution_is_the_hosts(name):
    problem = PROBLEMS[name]
    found = differentiate(quadrature, problem, rtol=1e-6, atol=1e-6)
    assert torch.equal(found.solution, differentiate(torchdiffeq.odeint, problem, rtol=1e-6, atol=1e-6).solution)


@pytest.mark.parametrize("name", SMOOTH)
def test_the_gradient_of_the_ode_to_the_tolerance(name):
    errors = [error(name, tolerance) for tolerance in (1e-4, 1e-6, 1e-8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] <= 100 * 1e-8  # the solution's own error is of this size


@pytest.mark.parametrize("name", ["van_der_pol_stiff", "three_body"])
def test_where_an_adjoint_that_integrates_y_in_reverse_fails(name):
    if name == "van_der_pol_stiff":
        with pytest.raises(AssertionError, match="underflow in dt"):
            differentiate(torchdiffeq.odeint_adjoint, PROBLEMS[name], rtol=1e-6, atol=1e-6)
    assert error(name, 1e-6) <= {"van_der_pol_stiff": 50, "three_body": 1e4}[name] * 1e-6


@pytest.mark.parametrize("method", ADAPTIVE)
def test_every_adaptive_solver_is_as_close_as_its_back_propagation(method):
    tolerance = 1e-4 if method in ("fehlberg2", "adaptive_heun") else 1e-6
    tolerances = {"rtol": tolerance, "atol": tolerance, "method": method}
    exact = differentiate(functools.partial(odeint_adjoint, adjoint_method="aca"), PROBLEMS["pendulum"], **tolerances)
    assert error("pendulum", tolerance, method=method) <= 1.5 * distance(exact.gradients, reference("pendulum"))


@pytest.mark.by_default(every=2)
@pytest.mark.parametrize("options", [{"nodes": 1}, {"nodes": 2}, {"nodes": 3}, {"nodes": 5}], ids=repr)
def test_gauss_legendre_for_the_parameters(options):
    own, gauss = (differentiate(quadrature, PROBLEMS["rotation"], adjoint_options=o, **TIGHT) for o in (None, options))
    assert torch.equal(own.gradients[0], gauss.gradients[0])
    # Of order 2 n: on steps of about a hundredth.
    assert distance(gauss.gradients[2:], own.gradients[2:]) <= max(1e-9, 1e-2 ** (2 * options["nodes"]))


@pytest.mark.by_default(every=3)
@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("options", [{"checkpoints": 1}, {"checkpoints": 3}, {"checkpoint_device": "cpu"}], ids=repr)
def test_what_is_kept_changes_nothing(options, method):
    tolerances = {"rtol": 1e-3, "atol": 1e-3, "method": method}
    all_kept, found = (
        differentiate(quadrature, PROBLEMS["pendulum"], adjoint_options=o, **tolerances) for o in (None, options)
    )
    assert distance(found.gradients, all_kept.gradients) <= 1e-11


def test_a_parameter_is_in_no_state_and_no_norm():
    """A second parameter vector, as long as may be, changes neither steps nor evaluations."""

    class Scaled(torch.nn.Module):
        def __init__(self, size):
            super().__init__()
            self.rate, self.idle = torch.nn.Parameter(torch.tensor(-1.0)), torch.nn.Parameter(torch.full((size,), 1e6))
            self.times = []

        def forward(self, t, y):
            self.times.append(float(t))
            return self.rate * y + self.idle.mean() * t.sin() * 1e-6

    funcs = [Scaled(1), Scaled(1000)]
    for func in funcs:
        quadrature(func, torch.ones(1), torch.tensor([0.0, 5.0]), rtol=1e-4, atol=1e-4)[-1].sum().backward()
    assert funcs[0].times == funcs[1].times


def test_evaluations_are_those_of_the_backward_steps():
    """Of dopri5: one where an interval begins, six a try, and the one that checks the start."""
    tries = []
    func = Module(PROBLEMS["pendulum"])
    func.callback_step = lambda t, y, h: tries.append(t)
    y0, t = torch.tensor(PROBLEMS["pendulum"].y0, dtype=torch.float64), torch.tensor([0.0, 0.5, 1.0])
    y0.requires_grad_()
    ys = quadrature(func, y0, t.double(), rtol=1e-6, atol=1e-6)
    forward, func.evaluations = func.evaluations, 0
    assert forward == 2 + 6 * len(tries)
    ys[1:].sum().backward()
    assert func.evaluations % 6 == 3
    assert func.evaluations <= 3 + 6 * (len(tries) + 2)


def test_the_scale_of_the_loss_changes_nothing():
    def gradient(scale):
        problem = PROBLEMS["exponential"]
        func, y0 = Module(problem), torch.tensor(problem.y0, dtype=torch.float64, requires_grad=True)
        ys = quadrature(func, y0, torch.tensor([0.0, 20.0], dtype=torch.float64), rtol=1e-6, atol=1e-6)
        (ys[-1].sum() * scale).backward()
        return torch.cat([y0.grad, func.params.grad]) / scale

    assert torch.equal(gradient(2.0**-80), gradient(1.0))
    assert torch.equal(gradient(2.0**80), gradient(1.0))


def test_tuple_states_and_their_norm():
    """A running cost beside the state; the norm of the forward solve, which leaves it out, serves backward as well."""
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)

    def field(t, state):
        y, _ = state
        return -rate * y, y**2

    t = torch.tensor([0.0, 1.5], dtype=torch.float64)
    options = {"norm": lambda state: state[0].abs().max()}
    zero = torch.zeros(1, dtype=torch.float64)
    _, cost = quadrature(field, (y0, zero), t, options=options, adjoint_params=(rate,), **TIGHT)
    found = torch.autograd.grad(cost[-1].sum(), (y0, rate))
    e, z, r = math.exp(-2 * 0.7 * 1.5), 2.0, 0.7
    expected = (z * (1 - e) / r, z**2 * (2 * 1.5 * r * e - (1 - e)) / (2 * r**2))
    assert distance(found, [torch.tensor(x, dtype=torch.float64) for x in expected]) <= 1e-8


def test_complex_states():
    rate = torch.tensor(-0.3 + 2.0j, dtype=torch.complex128, requires_grad=True)
    y0 = torch.tensor([1.0 - 0.5j], dtype=torch.complex128, requires_grad=True)
    t = torch.tensor([0.0, 0.7, 2.0], dtype=torch.float64, requires_grad=True)
    ys = quadrature(lambda t, y: rate * y, y0, t, adjoint_params=(rate,), **TIGHT)
    closed = y0 * torch.exp(rate * (t - t[0]))[:, None]
    found, expected = (torch.autograd.grad(x[1:].abs().sum() + x[-1].real.sum(), (y0, t, rate)) for x in (ys, closed))
    assert distance(found, expected) <= 1e-8


def test_decreasing_times_and_single_precision():
    y0 = torch.tensor([1.0, 2.0], requires_grad=True)
    t = torch.tensor([1.0, 0.5, -1.0], requires_grad=True)
    ys = quadrature(lambda t, y: t * y, y0, t, rtol=1e-5, atol=1e-6, adjoint_params=())
    closed = y0 * torch.exp((t**2 - t[0] ** 2) / 2)[:, None]
    found, expected = (torch.autograd.grad(x.square().sum(), (y0, t)) for x in (ys, closed))
    assert [x.dtype for x in found] == [torch.float32, torch.float32]
    assert distance(found, expected) <= 1e-4


@pytest.mark.parametrize("times", [[0.0, 3.0], [0.0, 1.0, 3.0]], ids=repr)
def test_a_vector_field_that_jumps(times):
    """From rate a to rate b at 1, without a step across the jump, forward or backward."""
    rates = torch.tensor([0.5, -2.0], dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    t = torch.tensor(times, dtype=torch.float64)

    def field(t, y):
        return rates[int(t >= 1)] * y

    options = {"jump_t": torch.tensor([1.0], dtype=torch.float64)}
    ys = quadrature(field, y0, t, options=options, adjoint_params=(rates,), **TIGHT)
    found = torch.autograd.grad(ys[-1].sum(), (y0, rates))
    end = 1.5 * math.exp(0.5 - 4.0)
    expected = torch.tensor([end / 1.5], dtype=torch.float64), torch.tensor([end, 2 * end], dtype=torch.float64)
    assert distance(found, expected) <= 1e-8


@pytest.mark.parametrize("options", [None, {"checkpoints": 2}, {"nodes": 3}], ids=repr)
def test_the_time_of_an_event(options):
    """A ball thrown up from a height h at speed v lands after (v + sqrt(v² + 2 g h)) / g."""
    g = torch.tensor(9.81, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([10.0, 3.0], dtype=torch.float64, requires_grad=True)
    t0 = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    t, ys = torchdiffeq.odeint_event(
        lambda t, y: torch.stack([y[1], -g]),
        y0,
        t0,
        event_fn=lambda t, y: y[0],
        odeint_interface=quadrature,
        adjoint_params=(g,),
        adjoint_options=options,
        **TIGHT,
    )
    h, v = y0
    landed = t0 + (v + torch.sqrt(v**2 + 2 * g * h)) / g
    expected = torch.autograd.grad(landed + torch.sqrt(v**2 + 2 * g * h), (y0, t0, g))
    found = torch.autograd.grad(t - ys[-1, 1], (y0, t0, g))
    assert distance(found, expected) <= 1e-8


def test_outputs_without_a_cotangent_are_passed_by():
    func = Module(PROBLEMS["pendulum"])
    y0 = torch.tensor(PROBLEMS["pendulum"].y0, dtype=torch.float64, requires_grad=True)
    t = torch.linspace(0, 5, 11, dtype=torch.float64)
    ys = quadrature(func, y0, t, rtol=1e-6, atol=1e-6)
    first = quadrature(func, y0, t[:2], rtol=1e-6, atol=1e-6)
    func.evaluations = 0
    expected = torch.autograd.grad(first[1].sum(), (y0, func.params))
    alone, func.evaluations = func.evaluations, 0
    found = torch.autograd.grad(ys[1].sum(), (y0, func.params))
    assert func.evaluations <= alone + 6
    assert distance(found, expected) <= 1e-5


def test_a_solve_of_no_length():
    y0 = torch.ones(2, requires_grad=True)
    quadrature(lambda t, y: -y, y0, torch.zeros(1), adjoint_params=()).sum().backward()
    assert torch.equal(y0.grad, torch.ones(2))


def test_a_cotangent_that_is_not_finite():
    func, y0 = Module(PROBLEMS["pendulum"]), torch.tensor(PROBLEMS["pendulum"].y0, dtype=torch.float64)
    ys = quadrature(func, y0.requires_grad_(), torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=1e-6, atol=1e-6)
    gradients = torch.autograd.grad(ys[-1].sum() * float("inf"), (y0, func.params))
    assert all(x.isnan().all() for x in gradients)


def test_a_retained_graph():
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    loss = quadrature(lambda t, y: -y, y0, torch.tensor([0.0, 1.0]), adjoint_params=()).sum()
    first, second = (torch.autograd.grad(loss, y0, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_a_backward_solver_of_its_own():
    problem = PROBLEMS["pendulum"]
    other = {"method": "bosh3", "max_num_steps": 10_000}
    found = differentiate(quadrature, problem, rtol=1e-9, atol=1e-9, adjoint_rtol=1e-7, adjoint_options=other)
    assert distance(found.gradients, reference("pendulum")) <= 1e-4


def test_a_fixed_grid_in_a_backward_solver_is_refused():
    with pytest.raises(UnsupportedError, match=r"'method': 'rk4'.*dense output of an adaptive solver"):
        differentiate(quadrature, PROBLEMS["pendulum"], adjoint_options={"method": "rk4"})


def test_after_install():
    with install():
        found = differentiate(
            functools.partial(torchdiffeq.odeint_adjoint, adjoint_method="quadrature"), PROBLEMS["pendulum"], **TIGHT
        )
    assert distance(found.gradients, differentiate(quadrature, PROBLEMS["pendulum"], **TIGHT).gradients) == 0


def solve(func=torch.sin, **kwargs):
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return quadrature(lambda t, y: func(y), y0, t, **{"adjoint_params": (), **kwargs}).sum()


@pytest.mark.parametrize("method", ["rk4", "implicit_adams", "scipy_solver"])
def test_solvers_without_dense_output(method):
    with pytest.raises(
        UnsupportedError, match=rf"method='{method}'\).*Use one of dopri8, dopri5.*adjoint_method='aca'"
    ):
        solve(method=method)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"graph": "stage"}, "unknown option.*'checkpoints', 'checkpoint_device', 'lean', 'nodes' and 'method'"),
        ({"first_step": 0.1}, "unknown option"),
        ({"nodes": 0}, "must be a positive number of Gauss–Legendre nodes"),
        ({"checkpoints": 0}, "must be a positive number of states"),
        ({"method": "dopri"}, "no solver of torchdiffeq"),
    ],
    ids=repr,
)
def test_a_wrong_option(option, reason):
    call = re.escape(f"adjoint_options={option}")
    with pytest.raises(OptionError, match=f"adjoint_method='quadrature', {call}.*{reason}"):
        solve(adjoint_options=option)


def test_second_derivatives_are_refused():
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    loss = quadrature(lambda t, y: y.sin(), y0, torch.tensor([0.0, 1.0]), adjoint_params=()).sum()
    with pytest.raises(UnsupportedError, match=r"second derivatives.*Use adjoint_method='aca'"):
        torch.autograd.grad(loss, y0, create_graph=True)


def test_transforms_are_refused():
    y0, t = torch.ones(2), torch.tensor([0.0, 1.0])
    with pytest.raises(UnsupportedError, match=r"torch.func.*Use adjoint_method='aca'"):
        torch.func.grad(lambda y0: quadrature(lambda t, y: -y, y0, t, adjoint_params=()).sum())(y0)


@pytest.mark.parametrize("name", ["step_t", "jump_t"])
def test_points_that_require_a_gradient(name):
    with pytest.raises(UnsupportedError, match=r"step_t or jump_t require a gradient.*Detach them"):
        solve(options={name: torch.tensor([0.5], dtype=torch.float64, requires_grad=True)})


def test_random_numbers_in_func():
    loss = solve(lambda y: torch.nn.functional.dropout(y, 0.5), rtol=1e6, atol=1e6)
    with pytest.raises(GradientError, match=r"random numbers \(dropout\?\).*Use adjoint_method='aca'"):
        loss.backward()


@pytest.mark.parametrize("checkpoints", [None, 2, 1000])
def test_a_func_that_changes_its_mind(checkpoints):
    out_of_sight = [[[[[[[1.0]]]]]]]
    loss = solve(lambda y: out_of_sight[0][0][0][0][0][0][0] * y, adjoint_options={"checkpoints": checkpoints})
    out_of_sight[0][0][0][0][0][0][0] = -1.0
    with pytest.raises(GradientError, match="in the backward pass than in the forward"):
        loss.backward()


def test_a_tensor_that_func_first_uses_later_on():
    # Out of sight.
    deep, y0 = [[[[[[torch.ones(2, dtype=torch.float64, requires_grad=True)]]]]]], torch.ones(2, dtype=torch.float64)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    ys = quadrature(lambda t, y: deep[0][0][0][0][0][0] * y if t > 0.5 else y, y0.requires_grad_(), t)
    with pytest.raises(GradientError, match=r"adjoint_method='quadrature'.*first evaluation did not use.*\(2,\)"):
        ys[-1].sum().backward()


def test_what_a_solve_did():
    with record_solves() as solves:
        func, y0 = Module(PROBLEMS["pendulum"]), torch.tensor(PROBLEMS["pendulum"].y0, dtype=torch.float64)
        y0.requires_grad_()
        ys = quadrature(func, y0, torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=1e-6, atol=1e-6)
        forward, func.evaluations = func.evaluations, 0
        ys[-1].sum().backward()
    (stats,) = solves
    assert (stats.evaluations_forward, stats.evaluations_backward) == (forward, func.evaluations)
    assert stats.states_kept == 1 + 5 * stats.accepted_steps
    assert stats.bytes_held >= 5 * stats.accepted_steps * y0.nbytes


def test_back_propagation_is_near_by_luck_where_a_promise_says_so():
    for (name, rtol), (factor, _) in LUCKY.items():
        exact = torch.tensor(load_references()[name]["gradient"]["y0"], dtype=torch.float64)

        def tolerances_off(rtol, name=name, exact=exact):
            found = differentiate(torchdiffeq.odeint, PROBLEMS[name], rtol=rtol, atol=rtol).gradients[0]
            return euclidean(found, exact) / rtol

        assert tolerances_off(rtol) < 10 < 0.9 * factor < tolerances_off(3 * rtol)


@pytest.mark.parametrize("is_tuple", [False, True])
@pytest.mark.parametrize("norm", ["seminorm", "mixed", "joint", "integrals"])
def test_a_norm_for_the_host_s_adjoint_is_one_for_the_cotangent(norm, is_tuple):
    """There are no integrals in it to leave out, but for those of the state itself."""
    w = torch.linspace(-1, 1, 9, dtype=torch.float64).view(3, 3).requires_grad_()
    y0, t = torch.ones(3, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    state = (y0, torch.zeros((), dtype=torch.float64)) if is_tuple else y0

    def func(t, y):
        return (w @ y[0], y[0].square().sum()) if is_tuple else w @ y

    def loss(odeint, **call):
        ys = odeint(func, state, t, rtol=1e-9, atol=1e-9, options={"first_step": 0.01}, **call)
        return ys[1][-1] + ys[0][-1].sum() if is_tuple else ys[-1].sum()

    if norm == "integrals":
        norm = seminorm(state, integrals=[1] if is_tuple else ())
    elif norm != "seminorm":
        norm = seminorm(state, reduction=norm)
    (expected,) = torch.autograd.grad(loss(torchdiffeq.odeint), w)
    (found,) = torch.autograd.grad(loss(quadrature, adjoint_params=(w,), adjoint_options={"norm": norm}), w)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("checkpoints", [None, 3])
def test_noise_that_is_drawn_once(checkpoints):
    """As flows do that estimate a divergence."""

    class Flow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(3, 3, dtype=torch.float64)
            self.noise = None

        def forward(self, t, y):
            if self.noise is None:
                self.noise = torch.randn_like(y)
            return self.net(y).tanh() * self.noise

    def gradient(odeint, **call):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            func = Flow()
            ys = odeint(func, torch.ones(2, 3).double(), torch.tensor([0.0, 1.0]).double(), **TIGHT, **call)
            return torch.autograd.grad(ys[-1].sum(), func.net.weight)[0]

    found = gradient(quadrature, adjoint_options={"checkpoints": checkpoints})
    torch.testing.assert_close(found, gradient(torchdiffeq.odeint), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_states_of_less_precision(dtype):
    """y' = -ay: dy(1)/dy0 = exp(-a), dy(1)/da = -exp(-a)."""
    a, y0 = (torch.ones((), dtype=dtype, requires_grad=True) for _ in range(2))
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    call = {"rtol": 1e-2, "atol": 1e-2, "options": {"min_step": 0.02}, "adjoint_params": (a,)}
    ys = quadrature(lambda t, y: -a * y, y0[None], t, **call)
    found = torch.autograd.grad(ys[-1].sum(), (y0, a))
    allowed = max(0.06, 8 * torch.finfo(dtype).eps)
    for got, sign in zip(found, (1, -1), strict=True):
        assert got.item() == pytest.approx(sign * math.exp(-1), rel=allowed)


@pytest.mark.parametrize("is_tuple", [False, True])
@pytest.mark.parametrize("direction", [1, -1], ids=["forward", "backward"])
def test_the_callbacks_of_the_backward_solve(direction, is_tuple):
    """They are told the time, the cotangent of the state and the size of the step: here a(t) = exp(t - t1) a(t1)."""

    class Told(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = {name: [] for name in ("step", "accept_step", "reject_step")}

        def forward(self, t, y):
            return tuple(direction * x for x in y) if is_tuple else direction * y

        def callback_step_adjoint(self, t, a, dt):
            self.seen["step"].append((t, a, dt))

        def callback_accept_step_adjoint(self, t, a, dt):
            self.seen["accept_step"].append((t, a, dt))

        def callback_reject_step_adjoint(self, t, a, dt):
            self.seen["reject_step"].append((t, a, dt))

    func, y0 = Told(), torch.ones(2, dtype=torch.float64, requires_grad=True)
    t = 3 + direction * torch.tensor([0.0, 2.0], dtype=torch.float64)
    ys = quadrature(func, (y0, y0.sum()[None]) if is_tuple else y0, t, **TIGHT)
    (ys[0] if is_tuple else ys)[-1].sum().mul(5).backward()
    tries, accepted = func.seen["step"], func.seen["accept_step"]
    assert len(tries) == len(accepted) + len(func.seen["reject_step"])
    assert len(accepted) > 3
    for time, a, _ in accepted:
        a, other = a if is_tuple else (a, None)
        torch.testing.assert_close(a, 5 * torch.exp(direction * (t[1] - time)).expand(2), rtol=1e-8, atol=0)
        assert other is None or other.shape == (1,)
    ends = torch.tensor([[float(time - direction * dt), float(time)] for time, _, dt in accepted])
    assert ends[0, 1] == t[1]
    torch.testing.assert_close(ends[:-1, 0], ends[1:, 1])


@pytest.mark.parametrize("nodes", [None, 4])
@pytest.mark.parametrize(("start", "omega"), [(300.0, 6.2832), (10.0, 20.0), (0.0, 100.0)])
def test_what_drives_the_state_and_not_the_cotangent(start, omega, nodes):
    """y' = w cos(ωt) - y/10: a(t) is smooth, so its error says nothing of the integral of a cos(ωt)."""
    w, t = torch.ones(1, dtype=torch.float64, requires_grad=True), start + torch.tensor([0.0, 1.0]).double()

    def gradient(tolerance, **call):
        call |= {"rtol": tolerance, "atol": tolerance}
        ys = quadrature(lambda t, y: w * torch.cos(omega * t) - y / 10, w.detach(), t, **call)
        return torch.autograd.grad(ys[-1].sum(), w)[0].item()

    # ∫ exp(-(t1 - t)/10) cos(ωt) dt over the interval
    (t0, t1), decay = t.tolist(), 0.1
    primitive = [(decay * math.cos(omega * s) + omega * math.sin(omega * s)) / (decay**2 + omega**2) for s in (t0, t1)]
    expected = primitive[1] - math.exp(-decay) * primitive[0]
    call = {"adjoint_params": (w,), "adjoint_options": {"nodes": nodes}}
    for tolerance in (1e-6, 1e-8):
        assert abs(gradient(tolerance, **call) - expected) <= 20 * tolerance
