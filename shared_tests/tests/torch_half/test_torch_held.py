"""What func refers to may change between the passes: the gradient is that of the solve, as by back-propagation."""

import collections
import dataclasses
import gc
import types

import numpy as np
import pytest
import torch
import torchdiffeq

from steptape.shared_tests.oracles.distance import distance
from steptape.torch import odeint_adjoint
from steptape.torch._autograd.graph import tensors_of

T = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
Y0 = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
OPTIONS = [{}, {"checkpoints": 2}, {"graph": "stage"}]
CALL = {"method": "dopri5", "options": {"first_step": 0.1}}


def net(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Linear(3, 3, dtype=torch.float64)


def loop_variable(solve):
    layers, x = [net(seed) for seed in range(3)], Y0
    for layer in layers:
        x = solve(lambda t, y: layer(y).tanh(), x, T)[-1]  # noqa: B023
    return x, [p for layer in layers for p in layer.parameters()]


def closed_loop_of_a_late_name(solve):
    plant, policy, x = net(0), net(1), Y0
    for _ in range(3):
        u = policy(x).tanh()
        x = solve(lambda t, y: plant(y).tanh() + u, x, T)[-1]  # noqa: B023
    return x, [*plant.parameters(), *policy.parameters()]


def attribute_of_each_solve(solve):
    class Conditioned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, t, y):
            return self.net(y).tanh() + self.context

    func, encoder, total = Conditioned(), net(1), 0
    for part in (Y0, 2 * Y0):
        func.context = encoder(part)
        total = total + solve(func, part, T)[-1]
    return total, [*func.parameters(), *encoder.parameters()]


def context_detached_after_the_solve(solve):
    class Recurrent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, t, y):
            return (self.net(y) * self.h).tanh()

    func, encoder = Recurrent(), net(1)
    func.h = encoder(Y0)
    x = solve(func, Y0, T)[-1]
    func.h = func.h.detach()
    return x, [*func.parameters(), *encoder.parameters()]


def cache_cleared_after_the_solve(solve):
    class Cached:
        A, W = None, net().weight

        def __call__(self, t, y):
            if self.A is None:
                self.A = torch.matrix_exp(self.W)
            return (y @ self.A).tanh()

    func = Cached()
    x = solve(func, Y0, T)[-1]
    func.A = None
    return x, [func.W]


def slot_that_is_refilled(solve):
    @dataclasses.dataclass(slots=True)
    class Context:
        h: torch.Tensor

    model, encoder = net(), net(1)
    context = Context(encoder(Y0))
    x = solve(lambda t, y: (model(y) * context.h).tanh(), Y0, T)[-1]
    context.h = context.h.detach()
    return x, [*model.parameters(), *encoder.parameters()]


def attribute_of_the_class(solve):
    class Conditioned:
        h = None

        def __init__(self):
            self.net = net()

        def __call__(self, t, y):
            return (self.net(y) * self.h).tanh()

    func, encoder = Conditioned(), net(1)
    Conditioned.h = encoder(Y0)
    x = solve(func, Y0, T)[-1]
    Conditioned.h = Conditioned.h.detach()
    return x, [*func.net.parameters(), *encoder.parameters()]


def layer_that_is_replaced(solve):
    model = torch.nn.Sequential(net(), torch.nn.Tanh(), net(1))
    params = [*model.parameters()]
    x = solve(lambda t, y: model(y), Y0, T)[-1]
    model[1] = torch.nn.Identity()
    del model[2]
    return x, params


def hook_that_is_removed(solve):
    model = net()
    hook = model.register_forward_hook(lambda module, args, out: out.tanh())
    x = solve(lambda t, y: model(y), Y0, T)[-1]
    hook.remove()
    model.register_forward_hook(lambda module, args, out: out * 0)
    return x, [*model.parameters()]


def backward_hook_that_is_removed(solve):
    def scaled(factor):
        return lambda module, grads, _: tuple(None if g is None else factor * g for g in grads)

    model = net()
    hook = model.register_full_backward_hook(scaled(2))
    x = solve(lambda t, y: model(y).tanh(), Y0.clone().requires_grad_(), T)[-1]
    hook.remove()
    model.register_full_backward_hook(scaled(0))
    return x, [*model.parameters()]


def number_of_a_loop(solve):
    model, x = net(), Y0
    for k in range(3):
        c = 0.5 * k
        bump = lambda t: c * torch.exp(-100 * (t - 0.5) ** 2)  # noqa: B023, E731
        x = solve(lambda t, y: model(y).tanh() * (1 + bump(t)), x, T)[-1]  # noqa: B023
    return x, [*model.parameters()]


def knots_of_one_operation(solve):
    model, w = net(), torch.linspace(0, 1, 33, dtype=torch.float64).view(11, 3).requires_grad_()
    knots = w.tanh().unbind(0)

    def func(t, y):
        i = min(int(t * 10), 9)
        return model(y).tanh() * (knots[i] + (t * 10 - i) * (knots[i + 1] - knots[i]))

    return solve(func, Y0, T)[-1], [w, *model.parameters()]


def layers_chosen_by_time(solve):
    layers = torch.nn.ModuleList([net(seed) for seed in range(12)])
    return solve(lambda t, y: layers[min(int(t * 11), 11)](y).tanh(), Y0, T)[-1], [*layers.parameters()]


class Reversed(torch.autograd.Function):
    """Passes a cotangent on as -λ of it; no value tells λ."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return -ctx.factor * g, None


def gradients_reversed_by_a_number_in_a_list(solve):
    model, factors, x = net(), [0.5], Y0
    for i in range(3):
        factors[0] = 0.5 + i
        x = solve(lambda t, y: model(Reversed.apply(y, factors[0])).tanh(), x, T)[-1]
    return x, [*model.parameters()]


def gradients_reversed_by_a_schedule(solve):
    class Scheduled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.schedule = net(), types.SimpleNamespace(factor=0.0)

        def forward(self, t, y):
            return self.net(Reversed.apply(y, self.schedule.factor)).tanh()

    func, x = Scheduled(), Y0
    for i in range(3):
        func.schedule.factor = 0.5 + i
        x = solve(func, x, T)[-1]
    return x, [*func.parameters()]


SETTINGS = {"factor": 0.0, "deep": types.SimpleNamespace(inner=types.SimpleNamespace(factor=0.0))}


def helper(y):
    return Reversed.apply(y, SETTINGS["factor"])


class ReadsItself(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, t, y):
        return self.net(Reversed.apply(y, SETTINGS["factor"])).tanh()


class ReadsByAnother(ReadsItself):
    def forward(self, t, y):
        return self._reversed(y).tanh()

    def _reversed(self, y):
        return self.net(helper(y))


class ReadsDeep(ReadsItself):
    def forward(self, t, y):
        return self.net(Reversed.apply(y, SETTINGS["deep"].inner.factor)).tanh()


class Setting:
    factor = 0.0


class Slots:
    __slots__ = ("factor",)


SLOTS, PROGRAM = Slots(), types.ModuleType("program")
PROGRAM.__file__, PROGRAM.Setting = __file__, Setting


def by_default(y, factor=0.0):
    return Reversed.apply(y, factor)


class ReadsSlots(ReadsItself):
    setting = SLOTS

    def __init__(self):
        super().__init__()
        self.own = self.setting

    def forward(self, t, y):
        return self.net(Reversed.apply(y, self.own.factor)).tanh()


class ReadsAClass(ReadsSlots):
    setting = Setting


class ReadsAModule(ReadsItself):
    def forward(self, t, y):
        return self.net(Reversed.apply(y, PROGRAM.factor)).tanh()


class ReadsAClassOfAModule(ReadsItself):
    def forward(self, t, y):
        return self.net(Reversed.apply(y, PROGRAM.Setting.factor)).tanh()


class ReadsADefault(ReadsItself):
    def forward(self, t, y):
        return self.net(by_default(y)).tanh()


def set_all(factor):
    SETTINGS["factor"] = SETTINGS["deep"].inner.factor = factor
    Setting.factor = SLOTS.factor = PROGRAM.factor = factor
    by_default.__defaults__ = (factor,)


def gradients_reversed_by_a_setting_of_the_program(kind):
    def case(solve):
        func, x = kind(), Y0
        for i in range(3):
            set_all(0.5 + i)
            x = solve(func, x, T)[-1]
        return x, [*func.parameters()]

    case.__name__ = f"gradients reversed by a setting that {kind.__name__}"
    return case


def program_that_imports_in_a_function(solve):
    import torch as imported

    def func(t, y):
        # Less than steps are chosen by.
        noise = 1e-9 * imported.rand(4, 1, dtype=imported.float64)
        return model(y).tanh() + noise * y

    model = net()
    return solve(func, Y0, T)[-1], [*model.parameters()]


def weights_that_follow_others(solve):
    model, teacher = net(), net(1)

    def func(t, y):
        with torch.no_grad():
            aim = teacher(y)
        return model(y).tanh() + 0.1 * aim

    x = solve(func, Y0, T)[-1]
    with torch.no_grad():
        for own, other in zip(teacher.parameters(), model.parameters(), strict=True):
            own.lerp_(other, 0.1)
    return x, [*model.parameters()]


def gradients_reversed_by_a_buffer(solve):
    class Scheduled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()
            self.register_buffer("factor", torch.zeros(()))

        def forward(self, t, y):
            return self.net(Reversed.apply(y, self.factor.item())).tanh()

    func, x = Scheduled(), Y0
    for i in range(3):
        func.factor.fill_(0.5 + i)
        x = solve(func, x, T)[-1]
    return x, [*func.parameters()]


def gradients_reversed_by_what_is_written_to(factor):
    def case(solve):
        model, x = net(), Y0
        for i in range(3):
            factor[...] = 0.5 + i
            x = solve(lambda t, y: model(Reversed.apply(y, float(factor))).tanh(), x, T)[-1]
        return x, [*model.parameters()]

    case.__name__ = f"gradients reversed by a {type(factor).__name__} that is written to"
    return case


def shift_that_a_view_writes_to(solve):
    model, shift = net(), np.ones(3)
    shared = torch.from_numpy(shift)
    x = solve(lambda t, y: (model(y) + shared).tanh(), Y0, T)[-1]
    shift[:] = 0
    return x, [*model.parameters()]


def weights_of_a_frozen_layer(solve):
    model, target = net(), net(1).requires_grad_(False)
    x = solve(lambda t, y: target(model(y)).tanh() + target.bias, Y0, T)[-1]
    target.bias.mul_(2)
    return x, [*model.parameters()]


def list_that_is_cleared(solve):
    model, numbers = net(), [0.7, 0.2]
    x = solve(lambda t, y: numbers[0] * model(y).tanh() + numbers[1] * y, Y0, T)[-1]
    numbers.clear()
    return x, [*model.parameters()]


def frozen_in_the_solve(solve):
    model, critic = net(), net(1).requires_grad_(False)
    x = solve(lambda t, y: critic(model(y).tanh()), Y0, T)[-1]
    critic.requires_grad_(True)
    return x, [*model.parameters()]


def grown(add, of):
    """A gate without a gradient until there are two entries ``of`` solves, which are added to a container."""

    def case(solve):
        layer, x, total, entries = net(), Y0, 0, add.__objclass__()
        for n in range(3):

            def func(t, y):
                gate = torch.sigmoid(layer(y))
                return (gate if len(entries) >= 2 else gate.detach()) * y.sin() + layer(y)

            x = solve(func, x, T)[-1]
            total = total + x.square().sum()
            add(entries, *((n, of(x)) if isinstance(entries, dict) else (of(x),)))
        return total, [*layer.parameters()]

    case.__name__ = f"grown_{add.__name__}_{of.__name__}"
    return case


def as_it_is(x):
    return x


def as_a_number(x):
    return float(x.detach().sum())


GROWN = [
    *(grown(add, of) for add in (list.append, dict.setdefault) for of in (as_it_is, as_a_number, torch.Tensor.detach)),
    *(grown(add, as_a_number) for add in (collections.deque.append, set.add)),
]


CASES = (
    gradients_reversed_by_what_is_written_to(torch.zeros(())),
    gradients_reversed_by_what_is_written_to(np.zeros(())),
    shift_that_a_view_writes_to,
    weights_of_a_frozen_layer,
    gradients_reversed_by_a_number_in_a_list,
    gradients_reversed_by_a_schedule,
    *map(gradients_reversed_by_a_setting_of_the_program, [ReadsItself, ReadsByAnother, ReadsDeep]),
    *map(gradients_reversed_by_a_setting_of_the_program, [ReadsSlots, ReadsAClass, ReadsADefault]),
    *map(gradients_reversed_by_a_setting_of_the_program, [ReadsAModule, ReadsAClassOfAModule]),
    program_that_imports_in_a_function,
    weights_that_follow_others,
    gradients_reversed_by_a_buffer,
    list_that_is_cleared,
    frozen_in_the_solve,
    loop_variable,
    closed_loop_of_a_late_name,
    attribute_of_each_solve,
    context_detached_after_the_solve,
    cache_cleared_after_the_solve,
    slot_that_is_refilled,
    attribute_of_the_class,
    layer_that_is_replaced,
    hook_that_is_removed,
    number_of_a_loop,
    knots_of_one_operation,
    layers_chosen_by_time,
)


@pytest.mark.parametrize("adjoint_options", OPTIONS, ids=str)
@pytest.mark.parametrize("case", [*CASES, *GROWN, backward_hook_that_is_removed])
def test_equal_to_back_propagation(case, adjoint_options):
    def gradient(odeint, **adjoint):
        torch.manual_seed(3)
        x, params = case(lambda func, y0, t: odeint(func, y0, t, **CALL, **adjoint))
        return torch.autograd.grad(x.square().sum(), params)

    found = gradient(odeint_adjoint, adjoint_method="aca", adjoint_options=adjoint_options)
    assert distance(found, gradient(torchdiffeq.odeint)) <= 1e-12


@pytest.mark.parametrize("named", [True, False])
def test_what_a_call_leaves_out_is_as_it_was_too(named):
    class Controlled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, t, y):
            return self.net(y).tanh() + self.control

    def gradient(odeint, named=(), **adjoint):
        func, encoder, y0 = Controlled(), net(1), Y0.clone().requires_grad_()
        call = {"adjoint_params": (func.net.weight,) * named} if adjoint else {}
        x = y0
        for scale in (1.0, 2.0):
            func.control = encoder(scale * Y0).tanh()
            x = odeint(func, x, T, **CALL, **adjoint, **call)[-1]
        inputs = [y0, func.net.weight, encoder.weight]
        return torch.autograd.grad(x.square().sum(), inputs, allow_unused=True)

    expected = gradient(torchdiffeq.odeint)[: 1 + named]
    found = gradient(odeint_adjoint, named, adjoint_method="aca")
    assert distance(found[: 1 + named], expected) <= 1e-12
    assert found[1 + named :] == (None,) * (2 - named)


@pytest.mark.parametrize("case", CASES)
def test_second_derivatives(case):
    def gradient(odeint, **adjoint):
        torch.manual_seed(3)
        x, params = case(lambda func, y0, t: odeint(func, y0, t, **CALL, **adjoint))
        first = torch.autograd.grad(x.square().sum(), params, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), params)

    assert distance(gradient(odeint_adjoint, adjoint_method="aca"), gradient(torchdiffeq.odeint)) <= 1e-11


def test_the_mode_of_a_module():
    def gradient(odeint, **adjoint):
        torch.manual_seed(3)
        model = torch.nn.Sequential(net(), torch.nn.Dropout(0.4))
        x = odeint(lambda t, y: model(y).tanh(), Y0, T, method="rk4", **adjoint)[-1]
        model.eval()
        found = torch.autograd.grad(x.square().sum(), [*model.parameters()])
        assert not model.training
        return found

    assert distance(gradient(odeint_adjoint, adjoint_method="aca"), gradient(torchdiffeq.odeint)) <= 1e-12


def test_counters_go_on():
    """As the hosts' example scripts count evaluations, of the forward pass and of the backward one."""

    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.nfe = net(), 0

        def forward(self, t, y):
            self.nfe += 1
            return self.net(y)

    func = Counting()
    ys = odeint_adjoint(func, Y0, T, adjoint_method="aca", method="rk4")
    forward, func.nfe = func.nfe, 0
    ys[-1].sum().backward()
    assert forward == 4 * 2
    assert func.nfe == 4 * 2


@pytest.mark.parametrize("adjoint_method", ["aca", "quadrature"])
@pytest.mark.parametrize("each", [False, True], ids=["kept for a solve", "of each evaluation"])
def test_noise_is_that_of_the_host(adjoint_method, each):
    """Drawn once a solve, as Hutchinson's is, and as often as there: in the next solve and after it too."""

    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.e = net(), None

        def forward(self, t, y):
            if self.e is None or each:
                self.e = torch.randn_like(y)
            return self.net(y).tanh() * self.e

    def run(odeint, **adjoint):
        torch.manual_seed(5)
        func, out = Noisy(), []
        for _ in range(2):
            func.e = None
            ys = odeint(func, Y0, T, **(CALL if not each else {"method": "rk4"}), **adjoint)
            out += [ys.detach(), func.e]
        return [*out, torch.rand(2)]

    if each and adjoint_method == "quadrature":
        pytest.skip("refused")
    for found, expected in zip(
        run(odeint_adjoint, adjoint_method=adjoint_method), run(torchdiffeq.odeint), strict=True
    ):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4", "explicit_adams"])
def test_buffers_are_those_of_each_evaluation(method):
    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor([0.7, 1.1, 0.4], dtype=torch.float64))
            self.register_buffer("n", torch.zeros((), dtype=torch.float64))

        def forward(self, t, y):
            self.n += 1
            return (y * self.w).sin() + 0.1 * self.w * self.n.clone()

    def gradient(odeint, **adjoint):
        func = Counting()
        ys = odeint(func, Y0, T, method=method, options={"step_size": 0.25}, **adjoint)
        return [ys.detach(), *torch.autograd.grad(ys[-1].sum(), func.parameters()), func.n]

    assert distance(gradient(odeint_adjoint, adjoint_method="aca"), gradient(torchdiffeq.odeint)) <= 1e-12


class Storing(torch.nn.Module):
    """Keeps what it solved, in one of several ways."""

    def __init__(self, store):
        super().__init__()
        self.net, self.store = net(), store
        self.kept = None

    def field(self, t, y):
        return self.net(y).tanh()

    def step(self, backward):
        ys = odeint_adjoint(self.field, Y0, T, method="rk4", adjoint_method="aca")
        loss = ys.exp().square().sum()
        self.kept = self.store(loss)
        if backward:
            loss.backward()


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize("store", [lambda x: x, lambda x: [x], lambda x: {"loss": x}], ids=["as it is", "list", "dict"])
def test_an_earlier_solve_that_func_s_object_keeps_is_none_of_the_next_one(store, backward):
    """Neither does its graph run again, nor is it held by the next solve, and so on; and it can be pulled later."""

    def tensors():
        gc.collect()
        return sum(isinstance(x, torch.Tensor) for x in gc.get_objects())

    model, counts = Storing(store), []
    for _ in range(3):
        model.step(backward)
        counts.append(tensors())
    assert counts[1] == counts[2]
    if not backward:
        earlier = model.kept
        model.step(backward=True)
        (earlier if isinstance(earlier, torch.Tensor) else next(iter(tensors_of(earlier)))).backward()


def test_a_property_in_the_place_of_a_slot_is_no_state():
    """As mpmath's constants have it, which sympy holds, which torch.compile does."""

    class Number:
        __slots__ = ("value",)

    class Constant(Number):
        counted = 0

        @property
        def value(self):
            Constant.counted += 1
            return float(Constant.counted)

    constant, y0 = Constant(), torch.ones(2, dtype=torch.float64, requires_grad=True)
    odeint_adjoint(lambda t, y: -y if constant else y, y0, torch.tensor([0.0, 1.0]), adjoint_method="aca")[
        -1
    ].sum().backward()
    assert y0.grad is not None
