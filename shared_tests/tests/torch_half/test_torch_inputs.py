"""The states, times, parameters and surroundings that torchdiffeq's users bring."""

import warnings
from contextlib import nullcontext

import pytest
import torch
import torchdiffeq

from steptape import GradientError
from steptape.shared_tests.oracles.distance import distance
from steptape.torch import odeint_adjoint
from steptape.torch._hosts.scheme import scheme_of

TIMES = {"two": [0.0, 1.5], "many": [0.0, 0.1, 0.35, 0.4, 1.2, 1.21], "decreasing": [1.0, 0.4, -0.3]}


class Net(torch.nn.Module):
    """A field of any state shape (..., 3), non-autonomous."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(3, 3, generator=generator, dtype=torch.float64).to(dtype))
        self.bias = torch.nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64).to(dtype))

    def forward(self, t, y):
        return torch.tanh(y @ self.weight + self.bias * torch.sin(3 * t))


class Pair(Net):
    """The same field on a tuple state."""

    def forward(self, t, state):
        y, z = state
        return super().forward(t, y), z * y.mean() - t


def state(*shape, dtype=torch.float64):
    return torch.linspace(-1, 1, max(1, torch.Size(shape).numel()), dtype=dtype).reshape(shape).requires_grad_()


def both(solve):
    """Run ``solve(odeint, extra)`` with the host's back-propagation and with ours."""
    return solve(torchdiffeq.odeint, {}), solve(odeint_adjoint, {"adjoint_method": "aca"})


@pytest.mark.parametrize("method", ["dopri5", "adaptive_heun", "rk4"])
@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 1, 3)], ids=str)
def test_tensor_states_and_times(shape, times, method):
    def solve(odeint, extra):
        func, y0 = Net(), state(*shape)
        t = torch.tensor(TIMES[times], dtype=torch.float64, requires_grad=True)
        options = {"first_step": 0.05} if method != "rk4" else {"step_size": 0.07}
        ys = odeint(func, y0, t, method=method, rtol=1e-4, atol=1e-4, options=options, **extra)
        return ys, torch.autograd.grad(ys.square().sum(), (y0, t, func.weight, func.bias))

    (host, expected), (ours, found) = both(solve)
    assert torch.equal(host, ours)
    assert distance(found, expected) <= 1e-12


@pytest.mark.parametrize("memory", ["states", "graphs"])
@pytest.mark.parametrize("shape", [(), (1,), (3,)], ids=str)
@pytest.mark.parametrize("method", ["euler", "rk4", "explicit_adams"])
def test_on_a_fixed_grid_a_slope_may_broadcast_to_the_state(method, shape, memory):
    if method == "explicit_adams" and memory == "graphs":
        pytest.skip("its steps keep no graphs")

    def solve(odeint, extra):
        rate, y0 = (
            torch.linspace(0.5, 1.5, 3, dtype=torch.float64)[: torch.Size(shape).numel()].reshape(shape),
            state(2, 3),
        )
        rate.requires_grad_()
        ys = odeint(
            lambda t, y: rate * torch.cos(3 * t * rate), y0, torch.linspace(0, 1, 9).double(), method=method, **extra
        )
        (first,) = torch.autograd.grad(ys.sin().sum(), rate, create_graph=True)
        return ys, torch.autograd.grad(first.sum(), (y0, rate))

    host, expected = solve(torchdiffeq.odeint, {})
    ours, found = solve(odeint_adjoint, {"adjoint_method": "aca", "adjoint_options": {"memory": memory}})
    assert torch.equal(host, ours)
    assert distance(found, expected) <= 1e-12


def test_a_single_time_returns_the_initial_state():
    func, y0 = Net(), state(3)
    ys = odeint_adjoint(func, y0, torch.tensor([0.3]).double(), adjoint_method="aca")
    gradients = torch.autograd.grad(ys.sum(), (y0, func.weight))
    assert torch.equal(gradients[0], torch.ones_like(y0))
    assert not gradients[1].any()


def test_a_scalar_state():
    y0 = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    ys = odeint_adjoint(lambda t, y: -2 * y, y0, t, rtol=1e-11, atol=1e-12, adjoint_method="aca", adjoint_params=())
    assert ys.shape == (2,)
    torch.testing.assert_close(torch.autograd.grad(ys[-1], y0)[0], torch.tensor(-2.0).double().exp(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("times", ["many", "decreasing"])
def test_tuple_states(times):
    def solve(odeint, extra):
        func, y0 = Pair(), (state(4, 3), state(2, 2))
        t = torch.tensor(TIMES[times], dtype=torch.float64, requires_grad=True)
        ys = odeint(func, y0, t, rtol=(1e-4, 1e-5), atol=(1e-4, 1e-5), options={"first_step": 0.05}, **extra)
        assert isinstance(ys, tuple)
        loss = ys[0].square().sum() + ys[1].sin().sum()
        return ys, torch.autograd.grad(loss, (*y0, t, func.weight, func.bias))

    (host, expected), (ours, found) = both(solve)
    assert all(torch.equal(a, b) for a, b in zip(host, ours, strict=True))
    assert distance(found, expected) <= 1e-12


@pytest.mark.parametrize("times_dtype", [torch.float32, torch.float64])
def test_float32_states(times_dtype):
    def solve(odeint, extra):
        func, y0 = Net(torch.float32), state(4, 3, dtype=torch.float32)
        t = torch.tensor([0.0, 0.5, 1.0], dtype=times_dtype, requires_grad=True)
        ys = odeint(func, y0, t, rtol=1e-3, atol=1e-3, options={"first_step": 0.05}, **extra)
        return ys, torch.autograd.grad(ys.square().sum(), (y0, t, func.weight, func.bias))

    (host, expected), (ours, found) = both(solve)
    assert torch.equal(host, ours)
    assert [g.dtype for g in found] == [g.dtype for g in expected]
    assert distance(found, expected) <= 1e-4


def test_complex_states():
    def solve(odeint, extra):
        y0 = torch.tensor([1 + 0.5j, -0.3j], dtype=torch.complex128, requires_grad=True)
        rate = torch.nn.Parameter(torch.tensor([-0.3 + 2j, 1j], dtype=torch.complex128))
        t = torch.tensor([0.0, 0.7, 2.0], dtype=torch.float64, requires_grad=True)
        extra = {**extra, "adjoint_params": (rate,)} if extra else extra
        ys = odeint(lambda t, y: rate * y + t, y0, t, rtol=1e-5, atol=1e-5, options={"first_step": 0.1}, **extra)
        return ys, torch.autograd.grad(ys.abs().square().sum(), (y0, t, rate))

    (host, expected), (ours, found) = both(solve)
    assert torch.equal(host, ours)
    assert distance(found, expected) <= 1e-12


def test_only_what_requires_a_gradient_gets_one():
    func, y0 = Net(), state(3).detach()
    func.bias.requires_grad_(False)
    ys = odeint_adjoint(func, y0, torch.tensor([0.0, 1.0]).double(), adjoint_method="aca")
    ys.sum().backward()
    assert func.weight.grad is not None
    assert func.bias.grad is None
    assert y0.grad is None


def test_without_a_graph_the_solution_is_the_host_s():
    func, y0, t = Net(), state(3), torch.tensor([0.0, 1.0]).double()
    with torch.no_grad():
        ours = odeint_adjoint(func, y0, t, adjoint_method="aca")
    assert not ours.requires_grad
    assert torch.equal(ours, torchdiffeq.odeint(func, y0, t))


def test_any_other_adjoint_is_the_host_s_own():
    def gradients(odeint):
        func, y0, t = Net(), state(3), torch.tensor([0.0, 1.0]).double()
        ys = odeint(func, y0, t, method="bosh3", rtol=1e-4, atol=1e-4, adjoint_options={"norm": "seminorm"})
        return (ys, *torch.autograd.grad(ys.sum(), (y0, func.weight, func.bias)))

    pairs = zip(gradients(odeint_adjoint), gradients(torchdiffeq.odeint_adjoint), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_non_leaf_parameter_and_unused_ones():
    source = torch.tensor([0.4, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    unused = torch.ones(2, dtype=torch.float64, requires_grad=True)

    def gradients(odeint, extra):
        drift, y0 = source.exp(), state(3)
        extra = {**extra, "adjoint_params": (drift, unused)} if extra else extra
        t = torch.tensor([0.0, 1.0]).double()
        ys = odeint(lambda t, y: drift * y.sin(), y0, t, options={"first_step": 0.1}, **extra)
        return torch.autograd.grad(ys.sum() + unused.sum(), (y0, source, unused))

    assert distance(gradients(odeint_adjoint, {"adjoint_method": "aca"}), gradients(torchdiffeq.odeint, {})) <= 1e-12


def test_the_loss_scale_does_not_matter():
    """torchdiffeq's own adjoint dies of underflow in dt here."""
    for scale in (1e-30, 1.0, 1e30):
        y0 = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
        t = torch.tensor([0.0, 20.0], dtype=torch.float64)
        ys = odeint_adjoint(lambda t, y: y, y0, t, rtol=1e-9, atol=1e-9, adjoint_method="aca", adjoint_params=())
        (gradient,) = torch.autograd.grad(scale * ys[-1].sum(), y0)
        assert abs(gradient.item() / scale / torch.tensor(20.0).double().exp().item() - 1) < 1e-6


@pytest.mark.parametrize("method", ["dopri5", "midpoint"])
def test_the_user_s_callbacks_see_what_the_host_shows_them(method):
    class Watched(Pair):
        def __init__(self):
            super().__init__()
            self.seen = []

        def callback_step(self, t, y, h):
            self.seen.append(("try", float(t), [x.shape for x in y], float(h)))

        def callback_accept_step(self, t, y, h):
            self.seen.append(("accept", float(t), [x.shape for x in y], float(h)))

        def callback_reject_step(self, t, y, h):
            self.seen.append(("reject", float(t), [x.shape for x in y], float(h)))

    def seen(odeint, extra):
        func = Watched()
        t = torch.tensor(TIMES["decreasing"], dtype=torch.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the host warns of callbacks a fixed grid does not have
            ys = odeint(func, (state(4, 3), state(2)), t, method=method, rtol=1e-7, **extra)
        if extra:
            ys[0].sum().backward()
        return func.seen

    host, ours = both(seen)
    assert host == ours
    assert host


def test_two_backward_passes_over_one_tape():
    func, y0 = Net(), state(3)
    ys = odeint_adjoint(func, y0, torch.tensor([0.0, 1.0]).double(), adjoint_method="aca")
    first = torch.autograd.grad(ys.sum(), y0, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(ys.sum(), y0)[0])


def test_saved_tensors_kept_on_the_cpu():
    def solve(odeint, extra):
        func, y0 = Net(), state(3)
        with torch.autograd.graph.save_on_cpu():
            ys = odeint(func, y0, torch.tensor([0.0, 1.0]).double(), options={"first_step": 0.1}, **extra)
        return torch.autograd.grad(ys.square().sum(), (y0, func.weight))

    expected, found = both(solve)
    assert distance(found, expected) <= 1e-12


def test_a_parameter_changed_before_the_backward_pass_is_noticed():
    func, y0 = Net(), state(3)
    ys = odeint_adjoint(func, y0, torch.tensor([0.0, 1.0]).double(), adjoint_method="aca")
    with torch.no_grad():
        func.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ys.sum().backward()


@pytest.mark.parametrize("to", [["half"], ["double"], ["half", "float"], ["double", "float"]], ids="-".join)
@pytest.mark.parametrize("keep", [{}, {"checkpoints": 2}, {"graph": "stage"}])
def test_a_parameter_given_other_data_before_the_backward_pass_is_noticed(keep, to):
    """Unless they are equal."""
    found, are_equal = [], to == ["double", "float"]
    for changes in ([], to):
        func, y0 = Net(torch.float32), state(3, dtype=torch.float32)
        ys = odeint_adjoint(func, y0, torch.tensor([0.0, 1.0]), adjoint_method="aca", adjoint_options=keep)
        for name in changes:
            getattr(func, name)()
        with pytest.raises(GradientError, match="given other data") if changes and not are_equal else nullcontext():
            ys.sum().backward()
            found.append([y0.grad, *(p.grad for p in func.parameters())])
    assert distance(found[-1], found[0]) == 0


def test_a_replay_runs_func_under_the_autocast_of_its_solve():
    dtypes = []

    class Mixed(Net):
        def forward(self, t, y):
            slope = torch.nn.functional.linear(y, self.weight)
            dtypes.append(slope.dtype)
            return slope

    def solve(odeint, extra):
        func, y0 = Mixed(torch.float32), state(4, 3, dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ys = odeint(func, y0, torch.tensor([0.0, 0.4, 1.0]), method="rk4", **extra)
        return torch.autograd.grad(ys.square().sum(), (y0, func.weight))

    expected, found = both(solve)
    assert set(dtypes) == {torch.bfloat16}
    assert distance(found, expected) <= 2**-7  # two roundings of bfloat16


def test_autocast_leaves_the_solver_s_arithmetic_alone():
    def solve(odeint, extra):
        rate, y0 = torch.tensor(-0.7, requires_grad=True), state(4, 3, dtype=torch.float32)
        extra = {**extra, "adjoint_params": (rate,)} if extra else extra
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ys = odeint(lambda t, y: rate * y.sin(), y0, torch.tensor([0.0, 0.4, 1.0]), method="rk4", **extra)
            return torch.autograd.grad(ys.square().sum(), (y0, rate))

    expected, found = both(solve)
    assert distance(found, expected) <= 1e-6


@pytest.mark.parametrize("mode", [torch.inference_mode, lambda: torch.device("meta")], ids=["inference_mode", "meta"])
def test_a_first_call_in_a_mode_leaves_nothing_of_it_to_later_ones(mode):
    func, t = Net(), torch.tensor(TIMES["many"], dtype=torch.float64)

    def gradient(odeint, **extra):
        return torch.autograd.grad(odeint(func, state(3), t, method="rk4", **extra).sum(), func.weight)

    y0 = state(3)
    scheme_of.cache_clear()
    with mode():
        odeint_adjoint(func, y0, t, method="rk4", adjoint_method="aca")
    assert distance(gradient(odeint_adjoint, adjoint_method="aca"), gradient(torchdiffeq.odeint)) <= 1e-12
