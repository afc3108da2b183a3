"""``adjoint_options={"compile": ...}``: a step and its vector-Jacobian product as one compiled function.

By torch's "eager" backend, which runs what was traced as it is: what is compiled of it is torch's own. What needs a C++
compiler is ``full``.
"""

import gc
import weakref

import pytest
import torch
import torchdiffeq
from torch.autograd import grad

from steptape import SteptapeWarning, UnsupportedError
from steptape.shared_tests.oracles.distance import distance
from steptape.torch import install, odeint_adjoint, record_solves
from steptape.torch._replay import programs
from steptape_helpers.torch_solves import ADAPTIVE, FIXED_GRID

T = torch.linspace(0, 1, 4, dtype=torch.float64)
FULL = pytest.mark.full
STEP = {"method": "midpoint", "options": {"step_size": 0.21}}


class Field(torch.nn.Module):
    """A layer that moves with the time; ``between``: what it does to its result."""

    def __init__(self, between=None, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(3, 3, generator=generator, dtype=torch.float64).to(dtype))
        self.bias = torch.nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64).to(dtype))
        self.between = between

    def forward(self, t, y):
        x = (y @ self.weight + self.bias * t).tanh()
        return x if self.between is None else self.between(x)


def state(dtype=torch.float64):
    return torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3).to(dtype).requires_grad_()


class Counting:
    """A backend that counts what it compiles."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward


def aca(backend="eager", **options):
    return {"adjoint_method": "aca", "adjoint_options": {"compile": {"backend": backend}, **options}}


def gradients(func, odeint=odeint_adjoint, y0=None, t=T, params=None, **call):
    """The solution, and its gradients in y0 and in the parameters."""
    y0 = state() if y0 is None else y0
    ys = odeint(func, y0, t, **call)
    inputs = (y0, *(func.parameters() if params is None else params))
    return ys, grad((ys + 0.3).abs().square().sum(), inputs, allow_unused=True, materialize_grads=True)


def assert_exact(make=Field, bound=1e-12, ours=None, backend="eager", **call):
    by_host = gradients(make(), torchdiffeq.odeint, **call)
    found = gradients(make(), **call, **aca(backend, **(ours or {})))
    assert torch.equal(found[0], by_host[0])
    for x, y in zip(found[1], by_host[1], strict=True):
        assert distance([x], [y]) <= bound


def some(values, default):
    """All of them, of which those that are not named run in full."""
    return [pytest.param(x, marks=() if x in default else FULL) for x in values]


@pytest.mark.parametrize("interp", some(["linear", "cubic"], ["linear"]))
@pytest.mark.parametrize("method", some(FIXED_GRID, ["rk4"]))
def test_compiled_steps_give_the_gradients_of_back_propagation_on_a_fixed_grid(method, interp):
    assert_exact(method=method, options={"interp": interp, "step_size": 0.11})


@pytest.mark.parametrize("method", some(ADAPTIVE, ["bosh3", "adaptive_heun"]))
def test_compiled_steps_give_the_gradients_of_back_propagation(method):
    """adaptive_heun starts its steps from a slope that they cannot compute."""
    points = {"step_t": torch.tensor([0.33]).double(), "jump_t": torch.tensor([0.71]).double()}
    assert_exact(method=method, rtol=1e-4, atol=1e-5, options={"first_step": 0.1, **points})


@FULL
@pytest.mark.parametrize("compile", [{"backend": "aot_eager"}, True, {"options": {"cpp.simdlen": 1}}], ids=repr)
def test_with_code_that_torch_makes(compile):
    by_host = gradients(Field(), torchdiffeq.odeint, **STEP)
    found = gradients(Field(), **STEP, adjoint_method="aca", adjoint_options={"compile": compile})
    assert torch.equal(found[0], by_host[0])
    assert distance(found[1], by_host[1]) <= 1e-12


def test_decreasing_times_and_checkpoints():
    assert_exact(t=T.flip(0), **STEP, ours={"checkpoints": 2})


def test_tuples_of_states():
    w = torch.tensor([0.7, -0.2], dtype=torch.float64, requires_grad=True)
    found = []
    for odeint, ours in ((torchdiffeq.odeint, {}), (odeint_adjoint, aca())):
        y0 = state()
        a, b = odeint(lambda t, y: (w[0] * y[0] * y[1], -w[1] * y[1]), (y0[:, 0], y0[:, 1]), T, **STEP, **ours)
        found.append(grad((a * b).sum(), (y0, w)))
    assert distance(found[1], found[0]) <= 1e-12


def test_complex_states():
    w = torch.tensor(0.7 - 0.2j, dtype=torch.complex128, requires_grad=True)
    found = []
    for odeint, ours in ((torchdiffeq.odeint, {}), (odeint_adjoint, aca())):
        y0 = torch.tensor([0.3 + 1j, -1.0], dtype=torch.complex128, requires_grad=True)
        ys = odeint(lambda t, y: w * y * y.abs(), y0, T, **STEP, **ours)
        found.append(grad(ys.abs().sum(), (y0, w)))
    assert distance(found[1], found[0]) <= 1e-12


def test_float32_and_autocast_to_their_rounding():
    single = {"y0": state(torch.float32), "t": T.float()}
    assert_exact(lambda: Field(dtype=torch.float32), bound=1e-5, **single, **STEP)
    linear, found = torch.nn.Linear(3, 3), []
    for options in ({}, {"compile": {"backend": "eager"}}):
        with torch.autocast("cpu", torch.bfloat16):
            ys = odeint_adjoint(
                lambda t, y: linear(y), single["y0"], T.float(), adjoint_method="aca", adjoint_options=options, **STEP
            )
        found.append(grad(ys.float().square().sum(), (single["y0"], *linear.parameters())))
    assert distance(found[1], found[0]) <= 1e-2


def test_tensors_of_closures_and_those_computed_from_others():
    """A weight, and a context that was computed from it before the solve."""
    found = []
    for odeint, ours in ((torchdiffeq.odeint, {}), (odeint_adjoint, aca())):
        w = torch.linspace(0.1, 0.9, 9, dtype=torch.float64).view(3, 3).requires_grad_()
        context = w.sin() @ w
        ys = odeint(lambda t, y: (y @ w).tanh() @ context, state(), T, **STEP, **ours)  # noqa: B023
        found.append(grad(ys.square().sum(), w))
    assert distance(found[1], found[0]) <= 1e-12


def test_only_named_parameters_have_a_gradient_and_unused_ones_have_none():
    func = Field()
    func.unused = torch.nn.Parameter(torch.ones(2))
    ys = odeint_adjoint(func, state(), T, **STEP, **aca())
    assert grad(ys.sum(), func.unused, allow_unused=True) == (None,)
    with pytest.warns(SteptapeWarning, match="weight"):
        named = odeint_adjoint(func, state(), T, adjoint_params=(func.bias,), **STEP, **aca())
    expected = gradients(func, torchdiffeq.odeint, params=[func.bias], **STEP)
    (found,) = grad((named + 0.3).square().sum(), func.bias)
    assert distance([found], expected[1][1:]) <= 1e-12


def test_events_have_their_gradients():
    found = []
    for options in ({}, {"compile": {"backend": "eager"}}):
        func, y0 = Field(), state()
        end, ys = odeint_adjoint(
            func, y0, T[:2], event_fn=lambda t, y: t - 0.4 + 0.1 * y.sum(), adjoint_method="aca",
            method="bosh3", options={"first_step": 0.1}, rtol=1e-4, atol=1e-5, adjoint_options=options,
        )  # fmt: skip
        found.append(grad(end + ys[-1].square().sum(), (y0, *func.parameters())))
    assert distance(found[1], found[0]) <= 1e-12


def test_hooks_on_parameters_see_the_whole_gradient_once():
    func, seen = Field(), []
    func.weight.register_hook(seen.append)
    odeint_adjoint(func, state(), T, **STEP, **aca()).sum().backward()
    assert len(seen) == 1
    assert torch.equal(seen[0], func.weight.grad)


def test_derivatives_inside_func_are_differentiated():
    def flow(t, y, layer):
        return -torch.func.grad(lambda x: layer(t, x).square().sum())(y)

    def make():
        layer = Field()
        field = torch.nn.Module()
        field.layer, field.forward = layer, lambda t, y: flow(t, y, layer)
        return field

    assert_exact(make, method="euler", options={"step_size": 0.25})


def test_autograd_inside_func_is_differentiated():
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        pytest.skip("this torch does not trace autograd.grad")

    class Potential(Field):
        def forward(self, t, y):
            with torch.enable_grad():
                y = y if y.requires_grad else y.detach().requires_grad_()
                return -grad(super().forward(t, y).square().sum(), y, create_graph=True)[0]

    assert_exact(Potential, method="euler", options={"step_size": 0.25})


def test_nothing_is_compiled_anew_from_step_to_step_and_from_solve_to_solve():
    """Times, sizes and parameters change, and a closure is another object each time."""
    backend, layer = Counting(), Field()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    counts = []
    for n in range(3):
        ys = odeint_adjoint(
            lambda t, y: layer(t, y) * 2, state(), T * (1 + n), method="bosh3", rtol=1e-3, atol=1e-4, **aca(backend)
        )
        optimizer.zero_grad()
        ys.square().sum().backward()
        optimizer.step()
        counts.append(backend.count)
    assert 1 <= counts[0] <= 2
    assert counts == counts[:1] * 3


def test_what_func_reads_is_looked_at_again_in_each_backward_pass():
    class Switched(Field):
        def forward(self, t, y):
            return super().forward(t, y) if self.training else 2.0 * super().forward(t, y).detach() * y

    func = Switched()
    for training in (True, False, True):
        func.train(training)
        by_host = gradients(func, torchdiffeq.odeint, params=[], **STEP)
        found = gradients(func, params=[], **STEP, **aca())
        assert distance(found[1], by_host[1]) <= 1e-12


def test_compiled_steps_go_with_func():
    def solved():
        func = Field()
        gradients(func, **STEP, **aca())
        return weakref.ref(func), weakref.ref(func.weight)

    module, weight = solved()
    gc.collect()
    assert module() is None
    assert weight() is None


def test_second_derivatives_batches_and_gradients_in_times_are_those_of_the_replay_as_it_is():
    backend, func = Counting(), Field()
    y0, t = state(), T.clone().requires_grad_()
    found = []
    for call in (aca(backend), {"adjoint_method": "aca"}):
        ys = odeint_adjoint(func, y0, t, **STEP, **call)
        (g,) = grad(ys[-1].square().sum(), y0, create_graph=True)
        batch = torch.linspace(-1, 1, 2 * ys.numel(), dtype=torch.float64).view(2, *ys.shape)
        each = grad(ys, (y0, t, func.weight), batch, is_grads_batched=True, retain_graph=True)
        in_times = grad(ys.square().sum(), (y0, t), retain_graph=True)
        found.append([*in_times, *each, *grad(g.square().sum(), (y0, func.weight))])
    assert all(map(torch.equal, *found))
    assert not backend.count


def test_transforms_of_torch_func_are_as_ever():
    def loss(options):
        return lambda y0: odeint_adjoint(
            Field(), y0, T, adjoint_method="aca", adjoint_options=options, **STEP
        ).square().sum()  # fmt: skip

    y0 = state().detach()
    found = [torch.func.grad(loss(options))(y0) for options in ({}, {"compile": {"backend": "eager"}})]
    assert torch.equal(*found)


def test_as_installed_default_and_counted_as_no_evaluations():
    func = Field()
    by_host = gradients(func, torchdiffeq.odeint, **STEP)
    with install(default="aca", override=True, adjoint_options={"compile": {"backend": "eager"}}):
        for _ in range(2):
            with record_solves() as solves:
                found = gradients(func, torchdiffeq.odeint, **STEP)
            assert distance(found[1], by_host[1]) <= 1e-12
        assert solves[0].evaluations_backward == 0
        # The steps of others are replayed as they are.
        with record_solves() as solves:
            gradients(func, torchdiffeq.odeint, method="explicit_adams", options={"step_size": 0.2})
        assert solves[0].evaluations_backward


def test_values_that_changed_before_the_backward_pass_are_those_of_the_solve():
    """Of a tensor that requires no gradient, for which torch does not look."""

    def gradient(change):
        rate, y0 = torch.tensor(-0.7, dtype=torch.float64), state()
        ys = odeint_adjoint(lambda t, y: rate * y, y0, T, **STEP, **aca())
        rate.mul_(change)
        return grad(ys.sum(), y0)

    assert distance(gradient(2.0), gradient(1.0)) == 0


def test_numbers_that_change_in_each_solve_are_refused_after_some(monkeypatch):
    monkeypatch.setattr(programs, "_MOST", 2)
    func = Field()
    func.between = lambda x: x * func.scale
    for func.scale in (1.0, 2.0):
        gradients(func, method="euler", **aca())
    func.scale = 0.5
    with pytest.raises(UnsupportedError, match="Let them be tensors"):
        gradients(func, method="euler", **aca())
    func.scale = 1.0
    gradients(func, method="euler", **aca())


class Two(torch.nn.Module):
    """Two layers, one after the other."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = (torch.nn.Linear(3, 3, dtype=torch.float64) for _ in range(2))

    def forward(self, t, y):
        return self.last(self.first(y).tanh())


def tied(field):
    field.last.weight = field.first.weight


def hooked(field):
    field.first.register_forward_hook(lambda module, given, found: found.detach())


def other_class(field):
    class Other(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).sin()

    field.first.__class__ = Other


@pytest.mark.parametrize("change", [tied, hooked, other_class])
def test_what_changes_in_func_after_it_was_compiled(change):
    field = Two()
    gradients(field, **STEP, **aca())
    change(field)
    by_host, found = gradients(field, torchdiffeq.odeint, **STEP), gradients(field, **STEP, **aca())
    assert torch.equal(found[0], by_host[0])
    assert distance(found[1], by_host[1]) <= 1e-12


def test_on_a_fixed_grid_a_slope_may_broadcast_to_the_state():
    rate = torch.linspace(0.5, 1.5, 3, dtype=torch.float64).requires_grad_()

    def field(t, y):
        return rate * torch.cos(t)

    by_host = gradients(field, torchdiffeq.odeint, params=(rate,), **STEP)
    found = gradients(field, params=(rate,), **STEP, **aca())
    assert distance(found[1], by_host[1]) <= 1e-12
