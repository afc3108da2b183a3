"""Where a call names no parameters, it is differentiated in every tensor that func uses, as by back-propagation."""

import collections
import contextlib
import functools
import threading

import pytest
import torch
import torch.nn.utils.parametrize as parametrize
import torchdiffeq

from steptape import GradientError
from steptape.torch import install, odeint_adjoint
from steptape_helpers.torch_solves import assert_same, gradients_of

T = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
Y0 = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3)
# How the host solves, and then how steptape differentiates.
SOLVES = {
    "dopri5": ({"method": "dopri5", "options": {"first_step": 0.1}}, {}),
    "bosh3, checkpoints": ({"method": "bosh3", "options": {"first_step": 0.1}}, {"checkpoints": 2}),
    "stages": ({"method": "dopri5", "options": {"first_step": 0.1}}, {"graph": "stage"}),
    "rk4": ({"method": "rk4", "options": {"step_size": 0.25}}, {}),
    "rk4, checkpoints": ({"method": "rk4", "options": {"step_size": 0.25}}, {"checkpoints": 2}),
    "implicit_adams": ({"method": "implicit_adams", "options": {"step_size": 0.1}}, {}),
}


def weights(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


class Model:
    """What a func may refer to: leaves, some of them in a module, and tensors computed from leaves."""

    def __init__(self):
        self.scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        self.W = weights(3, 3).requires_grad_()
        self.net = torch.nn.Linear(3, 3, dtype=torch.float64)
        with torch.no_grad():
            self.net.weight.copy_(weights(3, 3).T)
            self.net.bias.copy_(weights(3))
        self.leaves = (self.scale, self.W, *self.net.parameters())


def closure(model):
    return lambda t, y: model.scale * model.net(y).tanh() + t * y @ model.W


def bound_method(model):
    class Holder:
        def field(self, t, y):
            return model.scale * model.net(y).tanh() @ model.W

    return Holder().field


def partial(model):
    def field(net, W, t, y):
        return net(y).tanh() @ W * model.scale

    return functools.partial(field, model.net, model.W)


def module_with_a_context(model):
    class Conditioned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model.net
            self.context = (model.W * model.scale).sin()

        def forward(self, t, y):
            return self.net(y).tanh() @ self.context

    return Conditioned()


def context_of_a_parameter_used_too(model):
    context = (model.W @ model.net.weight).tanh() * model.scale
    return lambda t, y: model.net(y).tanh() @ context


def two_contexts_one_of_the_other(model):
    first = model.net(model.W)
    second = first.sin() * model.scale
    return lambda t, y: (y @ first).tanh() @ second


def hypernetwork(model):
    W, b = model.net(model.W).tanh(), model.net(weights(3)) * model.scale
    return lambda t, y: torch.nn.functional.linear(y, W, b).tanh()


def kept_weight(model):
    kept = []

    def field(t, y):
        if not kept:
            kept.append((model.W - model.W.T).tanh() * model.scale)
        return model.net(y) @ kept[0]

    return field


def parametrized(model):
    class Scaled(torch.nn.Module):
        def forward(self, x):
            return model.scale * (x @ model.W).tanh()

    net = torch.nn.Linear(3, 3, dtype=torch.float64)
    net.weight, net.bias = model.net.weight, model.net.bias
    parametrize.register_parametrization(net, "weight", Scaled())
    return lambda t, y: net(y).tanh()


def sparse(model):
    matrix = (model.W * torch.eye(3)).to_sparse()
    return lambda t, y: torch.sparse.mm(matrix, model.net(y).T).T.tanh()


def controls_of_intervals(model):
    controls = [(model.W * k).tanh() for k in range(4)]

    def field(t, y):
        i = min(int(3 * t), 2)
        x = 3 * t - i
        return model.net(y).tanh() @ (controls[i] + x * x * (3 - 2 * x) * (controls[i + 1] - controls[i]))

    return field


def used_later_on(model):
    both = model.W.exp()
    return lambda t, y: model.net(y).tanh() @ (model.W if t < 0.5 else both)


def scripted(model):
    net = torch.jit.script(model.net)
    return lambda t, y: net(y).tanh() @ model.W * model.scale


def gradient_of_a_potential(model):
    def field(t, y):
        if not y.requires_grad:
            y = y.detach().requires_grad_()
        energy = (model.scale * model.net(y @ model.W).tanh()).sum()
        return -torch.autograd.grad(energy, y, create_graph=True)[0]

    return field


def gradient_in_the_state_itself(model):
    def field(t, y):
        with torch.enable_grad():
            if not y.requires_grad:
                y = y.requires_grad_(True)
            return -torch.autograd.grad((model.scale * model.net(y @ model.W).tanh()).sum(), y, create_graph=True)[0]

    return field


def hook_on_an_activation(model):
    def field(t, y):
        h = model.net(y)
        h.register_hook(lambda g: 0.5 * g)
        return model.scale * h.tanh() @ model.W

    return field


FUNCS = (
    closure,
    bound_method,
    partial,
    module_with_a_context,
    context_of_a_parameter_used_too,
    two_contexts_one_of_the_other,
    hypernetwork,
    kept_weight,
    parametrized,
    sparse,
    controls_of_intervals,
    used_later_on,
    scripted,
    gradient_of_a_potential,
    gradient_in_the_state_itself,
    hook_on_an_activation,
)


def gradients(make, odeint, second=False, t=T, **call):
    """In y0 and all leaves; of the sum of squares, or of the gradient's own sum of squares."""
    model, y0 = Model(), Y0.clone().requires_grad_()
    # Its count of blocks is not made for threads.
    with parametrize.cached() if make is parametrized else contextlib.nullcontext():
        ys = odeint(make(model), y0, t, **call)
        return gradients_of(ys[1:].square().sum(), (y0, *model.leaves), second)


@pytest.mark.parametrize("solve", SOLVES)
@pytest.mark.parametrize("make", FUNCS)
def test_equal_to_back_propagation(make, solve):
    call, adjoint_options = SOLVES[solve]
    found = gradients(make, odeint_adjoint, **call, adjoint_method="aca", adjoint_options=adjoint_options)
    assert_same(found, gradients(make, torchdiffeq.odeint, **call))


@pytest.mark.parametrize("make", FUNCS)
def test_second_derivatives(make):
    call, _ = SOLVES["dopri5"]
    found = gradients(make, odeint_adjoint, second=True, **call, adjoint_method="aca")
    assert_same(found, gradients(make, torchdiffeq.odeint, second=True, **call), 1e-11)


@pytest.mark.parametrize("make", FUNCS)
def test_of_the_quadrature_to_its_tolerance(make):
    call = {"method": "dopri5", "rtol": 1e-9, "atol": 1e-9, "options": {"first_step": 0.05}}
    found = gradients(make, odeint_adjoint, **call, adjoint_method="quadrature")
    assert_same(found, gradients(make, torchdiffeq.odeint, **call), 1e-6)


def test_of_a_method_under_install():
    with install():
        found = gradients(closure, torchdiffeq.odeint, method="aca", options={"first_step": 0.1})
    assert_same(found, gradients(closure, torchdiffeq.odeint, options={"first_step": 0.1}))


@pytest.mark.parametrize("make", [closure, context_of_a_parameter_used_too, kept_weight])
def test_in_threads(make):
    """Each with tensors of its own, and all with tensors computed by another thread."""
    call, _ = SOLVES["rk4"]
    expected, found = gradients(make, torchdiffeq.odeint, **call), {}
    model, y0 = Model(), Y0.clone().requires_grad_()
    func = context_of_a_parameter_used_too(model)

    def work(i):
        shared = odeint_adjoint(func, y0, T, **call, adjoint_method="aca")[1:].square().sum()
        found[i] = shared.detach(), gradients(make, odeint_adjoint, **call, adjoint_method="aca")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for value, own in found.values():
        assert torch.equal(value, found[0][0])
        assert_same(own, expected)


def test_a_tensor_of_another_thread():
    call, _ = SOLVES["rk4"]

    def solved(odeint, **adjoint):
        model, results = Model(), []
        context = (model.W * model.scale).sin()
        for _ in range(100):
            context = context + 0.01 * context.sin()

        def work():
            ys = odeint(lambda t, y: model.net(y).tanh() @ context, Y0, T, **call, **adjoint)
            results.append(torch.autograd.grad(ys[1:].square().sum(), model.leaves))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return results[0]

    assert_same(solved(odeint_adjoint, adjoint_method="aca"), solved(torchdiffeq.odeint))


def test_solves_in_a_closed_loop():
    """The control of each comes from the result of the one before."""

    def solved(odeint, **adjoint):
        model, x = Model(), Y0
        for _ in range(3):
            u = model.scale * (x @ model.W).tanh()
            func = lambda t, x, u=u: model.net(x + u).tanh()  # noqa: E731
            x = odeint(func, x, T, method="dopri5", options={"first_step": 0.1}, **adjoint)[-1]
        return torch.autograd.grad(x.square().sum(), model.leaves)

    assert_same(solved(odeint_adjoint, adjoint_method="aca"), solved(torchdiffeq.odeint))


def test_the_initial_state_used_by_func():
    def solved(odeint, **adjoint):
        model, z = Model(), Y0.clone().requires_grad_()
        y0 = z.sin()
        ys = odeint(lambda t, y: model.net(y - y0).tanh(), y0, T, method="rk4", **adjoint)
        return torch.autograd.grad(ys[1:].square().sum(), (z, *model.net.parameters()))

    assert_same(solved(odeint_adjoint, adjoint_method="aca"), solved(torchdiffeq.odeint))


def test_what_is_unused_has_no_gradient():
    func = torch.nn.Sequential(torch.nn.Linear(3, 3, dtype=torch.float64), torch.nn.Tanh())
    func.unused = torch.nn.Linear(3, 3, dtype=torch.float64)
    odeint_adjoint(lambda t, y: func[:2](y), Y0, T, method="rk4", adjoint_method="aca")[-1].sum().backward()
    assert func[0].weight.grad is not None
    assert func.unused.weight.grad is None


def test_of_slopes_without_a_graph():
    """What func computes with w, but detaches: back-propagation goes no further, and so has nothing to say of w."""
    w, y0 = torch.ones(3, dtype=torch.float64, requires_grad=True), Y0.clone().requires_grad_()
    ys = odeint_adjoint(lambda t, y: (w * y).detach(), y0, T, adjoint_method="aca", adjoint_params=(w,))
    found = torch.autograd.grad(ys[-1].sum(), (y0, w), allow_unused=True)
    assert torch.equal(found[0], torch.ones_like(Y0))
    assert found[1] is None


@pytest.mark.parametrize("solve", SOLVES.values(), ids=SOLVES)
@pytest.mark.parametrize("also_dense", [False, True])
def test_of_a_sparse_embedding(also_dense, solve):
    """Its gradient is sparse, as torch.optim.SparseAdam has it, unless it has a dense part too."""
    call, keep = solve

    def gradient(odeint, **adjoint):
        torch.manual_seed(0)
        table, y0 = torch.nn.Embedding(50, 3, sparse=True, dtype=torch.float64), Y0.clone().requires_grad_()
        at = torch.tensor([7, 30])

        def func(t, y):
            slope = torch.tanh(y * table(at))
            return slope * table.weight.mean() if also_dense else slope

        ys = odeint(func, y0, T, **call, **adjoint)
        return torch.autograd.grad(ys.square().sum(), (y0, table.weight))

    expected = gradient(torchdiffeq.odeint)
    found = gradient(odeint_adjoint, adjoint_method="aca", adjoint_options=keep)
    assert [x.is_sparse for x in found] == [x.is_sparse for x in expected] == [False, not also_dense]
    assert_same([x.to_dense() for x in found], [x.to_dense() for x in expected])


PRODUCTS = {
    "mm": lambda S, y, t: torch.sparse.mm(S, y),
    "@": lambda S, y, t: S @ y,
    "both": lambda S, y, t: S @ y + torch.sparse.mm(S, y),
    "@ after mm": lambda S, y, t: torch.sparse.mm(S, y) if t < 0.3 else S @ y,
    "mm after @": lambda S, y, t: S @ y if t < 0.3 else torch.sparse.mm(S, y),
}


def sparse_gradients(odeint, layout, product, dtype=torch.float64, pull=None, **call):
    """In y0, a scale and a sparse matrix, or what ``pull`` makes of the solution and these.

    Torch's own formulas give a dense gradient in the matrix or a sparse one: by its products.
    """
    matrix = torch.tensor([[0.0, 0.3, 0.0], [-0.5, 0.1, 0.2], [0.0, 0.0, 0.7]], dtype=dtype)
    S = (matrix.to_sparse_csr() if layout == "csr" else matrix.to_sparse()).requires_grad_()
    scale = torch.tensor(0.7, dtype=dtype, requires_grad=True)
    y0 = torch.linspace(-1, 1, 6, dtype=torch.float64).view(3, 2).to(dtype).requires_grad_()
    ys = odeint(lambda t, y: (scale * PRODUCTS[product](S, y, t)).tanh(), y0, T.to(y0.real.dtype), **call)
    return (pull or pull_sum)(ys, (y0, scale, S))


def pull_sum(ys, leaves):
    return torch.autograd.grad(ys.abs().square().sum(), leaves)


def assert_same_layouts(found, expected, bound=1e-12):
    assert [x.layout for x in found] == [x.layout for x in expected]
    assert_same([x.to_dense() for x in found], [x.to_dense() for x in expected], bound)


@pytest.mark.parametrize("layout", ["coo", "csr"])
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("solve", [*SOLVES, "graphs", "size"])
def test_of_a_sparse_tensor(solve, product, layout):
    """Its gradient is as dense as the host's."""
    call, keep = SOLVES.get(solve) or (SOLVES["rk4"][0], {"memory": "graphs" if solve == "graphs" else "1 MB"})
    found = sparse_gradients(odeint_adjoint, layout, product, **call, adjoint_method="aca", adjoint_options=keep)
    assert_same_layouts(found, sparse_gradients(torchdiffeq.odeint, layout, product, **call))


@pytest.mark.parametrize("layout", ["coo", "csr"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_of_a_sparse_tensor_in_other_dtypes_and_plain_calls(dtype, layout):
    call, _ = SOLVES["dopri5"]
    expected = sparse_gradients(torchdiffeq.odeint, layout, "@", dtype, **call)
    with install(default="aca", override=True):
        found = sparse_gradients(torchdiffeq.odeint, layout, "@", dtype, **call)
    assert_same_layouts(found, expected, 2e-6 if dtype == torch.float32 else 1e-12)


def second_of_sparse(ys, leaves):
    found = torch.autograd.grad(ys.square().sum(), leaves, create_graph=True)
    return torch.autograd.grad(sum(x.square().sum() for x in found), leaves)


def batch_of_sparse(ys, leaves):
    """In all but the sparse matrix, in which torch's own formulas take none."""
    batch = torch.randn(3, *ys.shape, dtype=ys.dtype, generator=torch.Generator().manual_seed(0))
    return torch.autograd.grad(ys, leaves[:2], batch, is_grads_batched=True)


@pytest.mark.parametrize("keep", [{}, {"memory": "graphs"}, {"checkpoints": 2}])
@pytest.mark.parametrize(
    ("pull", "layout", "product"),
    [
        (second_of_sparse, "coo", "@"),
        (second_of_sparse, "csr", "@"),
        (batch_of_sparse, "coo", "mm"),
        (batch_of_sparse, "csr", "mm"),
        (batch_of_sparse, "coo", "@"),
        (batch_of_sparse, "csr", "@"),
    ],
)
def test_second_derivatives_and_batches_beside_a_sparse_tensor(pull, layout, product, keep):
    matrix, call = (
        (layout, product),
        {
            "method": "rk4",
            "options": {"step_size": 0.25},
        },
    )
    found = sparse_gradients(odeint_adjoint, *matrix, pull=pull, **call, adjoint_method="aca", adjoint_options=keep)
    assert_same_layouts(found, sparse_gradients(torchdiffeq.odeint, *matrix, pull=pull, **call), 1e-11)


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_of_a_sparse_tensor_by_quadrature(layout):
    call = {"method": "dopri5", "rtol": 1e-9, "atol": 1e-9, "options": {"first_step": 0.05}}
    for nodes in (None, 4):
        ours = {"adjoint_method": "quadrature", "adjoint_options": {"nodes": nodes}}
        found = sparse_gradients(odeint_adjoint, layout, "both", **call, **ours)
        assert_same_layouts(found, sparse_gradients(torchdiffeq.odeint, layout, "both", **call), 1e-6)


def test_no_dense_tensor_is_made_of_a_large_sparse_one():
    """Of 80 GB."""
    n = 10**5
    S = torch.sparse_coo_tensor([[0, n - 1], [1, 0]], [1.0, 2.0], (n, n), dtype=torch.float64, requires_grad=True)
    ys = odeint_adjoint(lambda t, y: y * torch.sparse.sum(S), Y0, T, method="rk4", adjoint_method="aca")
    assert torch.autograd.grad(ys[-1].sum(), S)[0].is_sparse


def test_finding_evaluates_func_once():
    calls = collections.deque()

    def func(t, y):
        calls.append(t)
        return -y

    torchdiffeq.odeint(func, Y0, T, method="rk4")
    host = len(calls)
    odeint_adjoint(func, Y0.clone().requires_grad_(), T, method="rk4", adjoint_method="aca")
    assert len(calls) - host == host + 1


def test_random_numbers_are_those_of_the_host():
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(3)).double()

    def solved(odeint, **adjoint):
        torch.manual_seed(0)
        net[2].reset_running_stats()
        ys = odeint(lambda t, y: net(y).tanh(), Y0, T, method="rk4", options={"step_size": 0.25}, **adjoint)
        return ys, torch.rand(2), net[2].running_mean.clone()

    for x, y in zip(solved(odeint_adjoint, adjoint_method="aca"), solved(torchdiffeq.odeint), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("whole", [False, True], ids=["func", "fullgraph"])
@pytest.mark.parametrize("make", [closure, context_of_a_parameter_used_too])
def test_of_a_compiled_func(make, whole):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    def make_compiled(model):
        return torch.compile(make(model), backend=backend, fullgraph=whole)

    call, _ = SOLVES["rk4"]
    torch._dynamo.reset()
    found = gradients(make_compiled, odeint_adjoint, **call, adjoint_method="aca")
    assert_same(found, gradients(make, torchdiffeq.odeint, **call))
    assert compiled


def test_of_a_scripted_func_that_uses_what_was_computed_before():
    def product(y: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
        return (y @ W).tanh().chunk(2)[0].repeat(2, 1)

    def make(model):
        W, call = (model.W * model.scale).sin(), torch.jit.script(product)
        return lambda t, y: call(y, W).chunk(2)[0].repeat(2, 1)

    call, _ = SOLVES["rk4"]
    found = gradients(make, odeint_adjoint, **call, adjoint_method="aca")
    assert_same(found, gradients(make, torchdiffeq.odeint, **call))


@pytest.mark.parametrize("memory", ["states", "graphs"])
def test_a_slope_that_is_a_parameter_itself(memory):
    slope = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
    y0, t = torch.zeros(2, dtype=torch.float64), torch.tensor([0.0, 2.0], dtype=torch.float64)
    keep = {"adjoint_method": "aca", "adjoint_options": {"memory": memory}}
    ys = odeint_adjoint(lambda t, y: slope, y0, t, method="rk4", **keep)
    torch.testing.assert_close(torch.autograd.grad(ys[-1].sum(), slope)[0], torch.full_like(slope, 2.0))


class Dose:
    """Held by an object in a list of an object."""

    def __init__(self, at, amount):
        self.at, self.amount = at, amount


class Schedule:
    def __init__(self, doses):
        self.doses = doses

    def __call__(self, t):
        return sum(dose.amount for dose in self.doses if dose.at <= float(t) < dose.at + 0.03)


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
@pytest.mark.parametrize("keep", [{}, {"graph": "stage"}, {"checkpoints": 3}, {"memory": "graphs"}], ids=str)
@pytest.mark.parametrize("create_graph", [False, True])
def test_what_is_used_for_a_few_steps_out_of_sight_is_not_lost(method, keep, create_graph):
    rate, amount = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.5, 4.0))
    out_of_sight = functools.reduce(lambda inner, _: [inner], range(6), Schedule([Dose(0.37, amount)]))
    ys = odeint_adjoint(
        functools.partial(lambda schedule, t, y: schedule[0][0][0][0][0][0](t) - rate * y, out_of_sight),
        Y0,
        T,
        method=method,
        options={"step_size": 0.01},
        adjoint_method="aca",
        adjoint_options=keep,
    )
    with pytest.raises(GradientError, match="its first evaluation did not use"):
        torch.autograd.grad(ys.square().sum(), rate, create_graph=create_graph)


@pytest.mark.parametrize("keep", [{}, {"graph": "stage"}, {"checkpoints": 3}, {"memory": "graphs"}], ids=str)
def test_what_is_used_for_a_few_steps(keep):
    rate, amount = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.5, 4.0))
    doses = Schedule([Dose(0.37, amount)])

    def gradient(odeint, **kwargs):
        ys = odeint(lambda t, y: doses(t) - rate * y, Y0, T, method="rk4", options={"step_size": 0.01}, **kwargs)
        return torch.autograd.grad(ys.square().sum(), (rate, amount))

    found = gradient(odeint_adjoint, adjoint_method="aca", adjoint_options=keep)
    assert_same(found, gradient(torchdiffeq.odeint), 1e-12)


@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("is_used", [False, True])
def test_a_size_of_steps(computed, is_used):
    w, size = weights(3, 3).requires_grad_(), torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    step_size = size * size * 10 if computed else size

    def func(t, y):
        return torch.tanh(y @ w) * (t + size if is_used else t)

    def gradient(odeint, **kwargs):
        ys = odeint(func, Y0, T, method="rk4", options={"step_size": step_size}, **kwargs)
        return torch.autograd.grad(ys.square().sum(), (size, w), retain_graph=True)

    assert_same(gradient(odeint_adjoint, adjoint_method="aca"), gradient(torchdiffeq.odeint), 1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["attention", "recurrent"])
def test_layers_that_compute_in_another_way_without_a_graph(kind, dtype):
    torch.manual_seed(0)
    if kind == "attention":
        layer = torch.nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dtype=dtype).eval()
    else:
        layer = torch.nn.LSTM(4, 4, batch_first=True, dtype=dtype)
    y0 = torch.linspace(-1, 1, 24, dtype=dtype).view(2, 3, 4)

    def solved(odeint, **kwargs):
        def func(t, y):
            out = layer(y)
            return (out[0] if isinstance(out, tuple) else out).tanh()

        ys = odeint(func, y0, T.to(dtype), rtol=1e-3, atol=1e-3, options={"first_step": 0.1}, **kwargs)
        return ys, torch.autograd.grad(ys.square().sum(), (*layer.parameters(),))

    (expected, host), (ys, ours) = solved(torchdiffeq.odeint), solved(odeint_adjoint, adjoint_method="aca")
    assert torch.equal(ys, expected)
    assert_same(ours, host, 1e-12 if dtype == torch.float64 else 1e-5)


def test_features_of_a_time_that_are_kept_out_of_sight_under_override():
    """The host solves, before steptape's solve has kept features without a history."""

    def solved():
        torch.manual_seed(0)
        features = torch.nn.Linear(1, 3, dtype=torch.float64)

        @functools.lru_cache(None)
        def at(t):
            return features(torch.tensor([t], dtype=torch.float64))

        ys = torchdiffeq.odeint(lambda t, y: at(float(t)) - y, Y0, T, method="rk4")
        return ys, torch.autograd.grad(ys.square().sum(), (*features.parameters(),))

    expected, host = solved()
    with install(default="aca", override=True):
        ys, ours = solved()
    assert torch.equal(ys, expected)
    assert_same(ours, host)
