"""Many cotangents at once: the gradients of as many backward passes, at the evaluations of one."""

import pytest
import torch
from torch.autograd import grad
from torch.autograd.functional import hessian, jacobian

from steptape.shared_tests.oracles.distance import distance
from steptape.torch import odeint_adjoint
from steptape_helpers.torch_solves import ADAMS, ADAPTIVE, FIXED_GRID

ADJOINTS = ("aca", "quadrature")
A = torch.tensor([[0.1, 0.9, -0.3], [-1.1, 0.2, 0.5], [0.4, -0.6, -0.7]], dtype=torch.float64)
T = torch.tensor([0.0, 0.3, 0.5, 1.0], dtype=torch.float64)
ROWS = torch.tensor([[1, 2], [0, -1], [3, 1], [-2, 0.5]], dtype=torch.float64)


class Field(torch.nn.Module):
    """A layer whose result moves with the time, counting its evaluations."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.weight = torch.nn.Parameter(A.to(dtype))
        self.bias = torch.nn.Parameter(torch.ones(3, dtype=dtype))
        self.evaluations = 0

    def forward(self, t, y):
        self.evaluations += 1
        return self.of(y @ self.weight + self.bias * t)

    def of(self, x):
        return x.tanh()


def solve(func, dtype=torch.float64, **call):
    """The outputs, and all that they have a gradient in."""
    y0 = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3).to(dtype).requires_grad_()
    t = T.clone().requires_grad_()
    call = {"rtol": 1e-4, "atol": 1e-4, "adjoint_method": "aca", **call}
    return odeint_adjoint(func, y0, t, **call), (y0, t, *func.parameters())


def cotangents(ys, count=4):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *ys.shape, generator=generator, dtype=torch.float64).to(ys.dtype)


def together(ys, inputs, batch, **how):
    return grad(ys, inputs, batch, is_grads_batched=True, retain_graph=True, **how)


def one_by_one(ys, inputs, batch, **how):
    each = [grad(ys, inputs, cotangent, retain_graph=True, **how) for cotangent in batch]
    return [torch.stack(grads) for grads in zip(*each, strict=True)]


def assert_equal_at_one_pass(func, ys, inputs, bound=1e-12):
    batch = cotangents(ys)
    func.evaluations = 0
    found = together(ys, inputs, batch)
    at_once, func.evaluations = func.evaluations, 0
    expected = one_by_one(ys, inputs, batch)
    assert distance(found, expected) <= bound
    assert len(batch) * at_once == func.evaluations


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_the_jacobian_of_a_linear_ode_is_the_matrix_exponential(adjoint):
    call = {"rtol": 1e-10, "atol": 1e-10, "adjoint_method": adjoint, "adjoint_params": ()}
    end = lambda y0: odeint_adjoint(lambda t, y: A @ y, y0, T, **call)[-1]  # noqa: E731
    found = jacobian(end, torch.ones(3, dtype=torch.float64), vectorize=True)
    torch.testing.assert_close(found, torch.linalg.matrix_exp(A), rtol=1e-8, atol=1e-8)


def test_the_hessian_of_its_squared_end():
    call = {"rtol": 1e-10, "atol": 1e-10, "adjoint_method": "aca", "adjoint_params": ()}
    square = lambda y0: odeint_adjoint(lambda t, y: A @ y, y0, T, **call)[-1].square().sum()  # noqa: E731
    found, end = hessian(square, torch.ones(3, dtype=torch.float64), vectorize=True), torch.linalg.matrix_exp(A)
    torch.testing.assert_close(found, 2 * end.T @ end, rtol=1e-8, atol=1e-8)


KEEPS = ({}, {"checkpoints": 2}, {"graph": "stage"})
# A step of a multistep solver is replayed as a whole.
KEPT = [(method, keep) for method in (*ADAPTIVE, *FIXED_GRID, *ADAMS) for keep in KEEPS[: 2 if method in ADAMS else 3]]


@pytest.mark.parametrize(("method", "keep"), KEPT, ids=str)
def test_every_method(method, keep):
    options = {} if method in ADAPTIVE else {"step_size": 0.07}
    func = Field()
    assert_equal_at_one_pass(func, *solve(func, method=method, options=options, adjoint_options=keep))


@pytest.mark.parametrize(
    "call",
    [
        {"method": "rk4", "options": {"step_size": 0.07, "interp": "cubic"}},
        {"method": "dopri5", "options": {"jump_t": torch.tensor([0.4], dtype=torch.float64, requires_grad=True)}},
        {"method": "fehlberg2", "options": {"jump_t": torch.tensor([0.4], dtype=torch.float64, requires_grad=True)}},
    ],
    ids=["cubic", "jump", "jump, with a slope handed on"],
)
def test_times_in_and_between_steps(call):
    func = Field()
    ys, inputs = solve(func, **call)
    points = [x for x in call["options"].values() if isinstance(x, torch.Tensor)]
    assert_equal_at_one_pass(func, ys, (*inputs, *points))


@pytest.mark.parametrize("options", [{}, {"checkpoints": 2}, {"nodes": 3}], ids=str)
def test_by_quadrature_each_member_keeps_to_the_tolerance(options):
    func = Field()
    call = {"adjoint_method": "quadrature", "adjoint_options": options, "rtol": 1e-8, "atol": 1e-8}
    ys, inputs = solve(func, **call)
    # Members are solved for at a scale of their own, and one that is zero asks for nothing.
    scale = torch.tensor([1.0, 1e-9, 1e9, 0.0], dtype=torch.float64)
    batch = cotangents(ys) * scale.view(4, 1, 1, 1)
    func.evaluations = 0
    found = together(ys, inputs, batch)
    at_once, func.evaluations = func.evaluations, 0
    expected = one_by_one(ys, inputs, batch)
    for member in range(3):
        assert distance([x[member] for x in found], [x[member] for x in expected]) <= 1e-6
    assert all((x[3] == 0).all() for x in found)
    assert 2 * at_once < func.evaluations


def test_a_norm_of_the_user_s_sees_one_member_at_a_time():
    shapes = set()
    norm = lambda a: shapes.add(a.shape) or a.abs().max()  # noqa: E731
    ys, inputs = solve(Field(), adjoint_method="quadrature", adjoint_options={"norm": norm})
    together(ys, inputs, cotangents(ys))
    assert shapes == {(2, 3)}


def test_a_callback_of_the_backward_solve_sees_one_member_at_a_time():
    seen = []
    func = Field()
    func.callback_accept_step_adjoint = lambda t, a, h: seen.append(a.shape)
    ys, inputs = solve(func, adjoint_method="quadrature")
    together(ys, inputs, cotangents(ys))
    assert len(seen) % 4 == 0
    assert set(seen) == {(2, 3)}


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_a_member_that_is_not_finite_is_alone(adjoint):
    ys, inputs = solve(Field(), adjoint_method=adjoint)
    batch = cotangents(ys)
    batch[1, -1] = torch.nan
    found, others = together(ys, inputs, batch), [0, 2, 3]
    assert all(not x[1].isfinite().all() for x in found)
    assert distance([x[others] for x in found], together(ys, inputs, batch[others])) <= 1e-12


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("dtype", [torch.complex128, torch.float32, torch.complex64])
def test_every_dtype(dtype, adjoint):
    func = Field(dtype)
    tolerance = 1e-5 if dtype in (torch.float32, torch.complex64) else 1e-8
    ys, inputs = solve(func, dtype, adjoint_method=adjoint, rtol=tolerance, atol=tolerance)
    batch = cotangents(ys)
    exact = 1e-12 if dtype == torch.complex128 else 1e-5
    bound = exact if adjoint == "aca" else 1e3 * tolerance
    assert distance(together(ys, inputs, batch), one_by_one(ys, inputs, batch)) <= bound


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_tuple_states_of_which_one_has_a_batch(adjoint):
    rate = torch.tensor([0.5, 1.5], dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True), torch.ones(3, dtype=torch.float64)
    call = {"rtol": 1e-10, "atol": 1e-10, "adjoint_method": adjoint, "adjoint_params": (rate,)}
    ys = odeint_adjoint(lambda t, y: (-rate * y[0], y[1] * y[0].sum()), y0, T, **call)
    found = grad(ys[0][-1], (y0[0], rate), ROWS, is_grads_batched=True)
    decay = torch.exp(-rate.detach())
    torch.testing.assert_close(found[0], ROWS * decay, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found[1], -ROWS * decay, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_events(adjoint):
    func = Field()
    y0 = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    call = {"rtol": 1e-8, "atol": 1e-8, "adjoint_method": adjoint}
    _, ys = odeint_adjoint(func, y0, T[:2], event_fn=lambda t, y: y[0, 0] - 0.1, **call)
    inputs, batch = (y0, *func.parameters()), cotangents(ys)
    bound = 1e-12 if adjoint == "aca" else 1e-6
    assert distance(together(ys, inputs, batch), one_by_one(ys, inputs, batch)) <= bound


def test_second_derivatives_of_a_batch():
    func = Field()
    ys, inputs = solve(func, method="rk4", options={"step_size": 0.25})
    second = []
    for pull in (together, one_by_one):
        first = pull(ys, inputs, cotangents(ys), create_graph=True)
        second.append(grad(sum(g.square().sum() for g in first), inputs, retain_graph=True))
    assert distance(*second) <= 1e-12


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_gradcheck_of_a_batch(adjoint):
    call = {"adjoint_method": adjoint, "adjoint_params": (), "rtol": 1e-9, "atol": 1e-9}
    end = lambda y0: odeint_adjoint(lambda t, y: y.sin(), y0, T[:2], **call)[-1]  # noqa: E731
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(end, y0, check_batched_grad=True)
    if adjoint == "aca":
        assert torch.autograd.gradgradcheck(end, y0, check_batched_grad=True)


@pytest.mark.parametrize(("method", "adjoint"), [("dopri5", "aca"), ("fixed_adams", "aca"), ("dopri5", "quadrature")])
def test_hooks_on_parameters_see_the_whole_batch_once(method, adjoint):
    func, calls = Field(), []
    ys, inputs = solve(func, method=method, adjoint_method=adjoint)
    plain = together(ys, inputs, cotangents(ys))
    func.weight.register_hook(lambda g: calls.append(g.shape) or 2 * g)
    (found,) = together(ys, func.weight, cotangents(ys))
    assert calls == [(3, 3)]
    assert torch.equal(found, 2 * plain[2])


class Unbatchable(torch.autograd.Function):
    """The sine, with a backward pass that reads the value of its cotangent."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent * ctx.saved_tensors[0].cos() if cotangent.abs().max().item() else cotangent


class Sine(Field):
    def of(self, x):
        return Unbatchable.apply(x)


class Dropping(Field):
    def of(self, x):
        return torch.nn.functional.dropout(x.tanh(), 0.3)


class Checkpointed(Field):
    def of(self, x):
        return torch.utils.checkpoint.checkpoint(torch.tanh, x, use_reentrant=False)


class Compiled(Field):
    def of(self, x):
        return torch.compile(torch.tanh, backend="aot_eager")(x)


class Nested(Field):
    def of(self, x):
        return odeint_adjoint(lambda t, y: -y, x, T[:2], method="rk4", adjoint_method="aca", adjoint_params=())[-1]


@pytest.mark.parametrize("kind", [Sine, Dropping, Checkpointed, Compiled, Nested])
@pytest.mark.parametrize("method", ["rk4", "implicit_adams"])
def test_what_func_may_be(method, kind):
    """Also where an operation of it takes no batch, which makes as many passes as there are cotangents."""
    ys, inputs = solve(kind(), method=method, options={"step_size": 0.25})
    batch = cotangents(ys)
    assert distance(together(ys, inputs, batch), one_by_one(ys, inputs, batch)) <= 1e-12


def test_an_error_of_func_s_backward_pass_is_func_s():
    class Failing(Field):
        def of(self, x):
            if x.requires_grad:
                x.register_hook(lambda g: 1 / 0)
            return x

    ys, inputs = solve(Failing())
    with pytest.raises(ZeroDivisionError):
        together(ys, inputs, cotangents(ys))


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_vmap_around_the_backward_pass(adjoint):
    ys, inputs = solve(Field(), adjoint_method=adjoint)
    batch = cotangents(ys, 6).view(2, 3, *ys.shape)
    pull = lambda cotangent: grad(ys, inputs, cotangent, retain_graph=True)  # noqa: E731
    found = torch.vmap(torch.vmap(pull, in_dims=-1), in_dims=1)(batch.movedim(1, -1).movedim(0, 1))
    expected = together(ys, inputs, batch.flatten(0, 1))
    assert distance([x.flatten(0, 1) for x in found], expected) <= (1e-12 if adjoint == "aca" else 1e-3)


def test_batches_in_batches():
    ys, inputs = solve(Field())

    class Rows(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.expand(ys.shape).clone()

        @staticmethod
        def backward(ctx, cotangent):
            return together(ys, inputs[0], torch.stack([cotangent, 2 * cotangent]))[0].sum(0)

    x = torch.zeros_like(ys[0], requires_grad=True)
    (found,) = grad(Rows.apply(x), x, cotangents(ys), is_grads_batched=True)
    (expected,) = together(ys, inputs[:1], cotangents(ys))
    assert distance([found], [3 * expected]) <= 1e-12
