"""``adjoint_options={"memory": ...}``: graphs kept from the forward pass, and what fits into a size."""

import gc
import weakref

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
import torchdiffeq
from torch.autograd import grad

from steptape import GradientError, UnsupportedError
from steptape.shared_tests.oracles.distance import distance
from steptape.torch import install, odeint_adjoint, record_solves
from steptape_helpers.torch_solves import ADAMS, ADAPTIVE, FIXED_GRID, TakesNoBatch

GRAPHS = {"adjoint_method": "aca", "adjoint_options": {"memory": "graphs"}}
WAYS = ((torchdiffeq.odeint, {}), (odeint_adjoint, GRAPHS))
T = torch.linspace(0, 1, 5, dtype=torch.float64)


class Field(torch.nn.Module):
    """A layer that moves with the time, counting its evaluations; ``between``: what it does to its result."""

    def __init__(self, between=None):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(3, 3, generator=generator, dtype=torch.float64))
        self.bias = torch.nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64))
        self.between = between
        self.evaluations = 0

    def forward(self, t, y):
        self.evaluations += 1
        x = (y @ self.weight + self.bias * t).tanh()
        return x if self.between is None else self.between(x)


def state(rows=4):
    return torch.linspace(-1, 1, 3 * rows, dtype=torch.float64).view(rows, 3).requires_grad_()


def solve(func, odeint=odeint_adjoint, memory="graphs", lean=True, t=T, rows=4, **call):
    """The solution, and all that it has a gradient in."""
    options = {"memory": memory, "lean": lean}
    ours = {"adjoint_method": "aca", "adjoint_options": options} if odeint is odeint_adjoint else {}
    call = {"rtol": 1e-5, "atol": 1e-6, "options": {"first_step": 0.1}, **ours, **call}
    if call.get("method") in (*FIXED_GRID, *ADAMS):
        call["options"] = {"step_size": 0.11, **{k: v for k, v in call["options"].items() if k != "first_step"}}
    y0, t = state(rows), t.clone().requires_grad_()
    params = func.parameters() if isinstance(func, torch.nn.Module) else ()
    return odeint(func, y0, t, **call), (y0, t, *params)


def both(make=Field, seed=0, **call):
    """Solution and gradients by back-propagation, and by ours."""
    solved = []
    for odeint in (torchdiffeq.odeint, odeint_adjoint):
        torch.manual_seed(seed)
        ys, inputs = solve(make(), odeint, **call)
        solved.append((ys, grad((ys + 0.3).square().sum(), inputs)))
    return solved


def assert_exact(bound=1e-12, **call):
    (expected, by), (found, ours) = both(**call)
    assert torch.equal(found, expected)
    for x, y in zip(ours, by, strict=True):
        assert distance([x], [y]) <= bound


@pytest.mark.parametrize("interp", ["linear", "cubic"])
@pytest.mark.parametrize("method", FIXED_GRID)
def test_graphs_give_the_gradients_of_back_propagation_on_a_fixed_grid(method, interp):
    assert_exact(method=method, options={"interp": interp})


@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_graphs_give_the_gradients_of_back_propagation(method, lean):
    options = {"first_step": 0.1, "step_t": torch.tensor([0.33]).double(), "jump_t": torch.tensor([0.71]).double()}
    # Where they take hundreds of steps, rounding adds up.
    bound = 2e-11 if method in ("adaptive_heun", "fehlberg2") else 1e-12
    assert_exact(bound, method=method, lean=lean, options=options)


def test_decreasing_times_tuples_scalars_and_complex_states_are_exact():
    assert_exact(t=T.flip(0))
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    first = {"first_step": 0.1}
    scalars = [grad(odeint(lambda t, y: -a * y * y, a, T, options=first, **ours)[-1], a)[0] for odeint, ours in WAYS]
    assert distance(scalars[1:], scalars[:1]) <= 1e-12
    y0 = torch.tensor([0.3 + 1j, -1.0]).to(torch.complex128).requires_grad_()
    w = torch.tensor(0.7 - 0.2j, dtype=torch.complex128, requires_grad=True)

    def pair(t, y):
        return w * y[0] * y[1].abs(), -y[1]

    found = []
    for odeint, ours in WAYS:
        a, b = odeint(pair, (y0, y0 * 2), T, options={"first_step": 0.1}, **ours)
        found.append(torch.cat([g.reshape(-1) for g in grad((a + b).abs().sum(), (y0, w))]))
    assert distance(found[1:], found[:1]) <= 1e-12


def test_nothing_is_evaluated_twice():
    host, ours = Field(), Field()
    solve(host, torchdiffeq.odeint)
    with record_solves() as solves:
        ys, inputs = solve(ours)
        # One more shows what func uses.
        assert ours.evaluations == host.evaluations
        grad(ys.sum(), inputs)
    assert ours.evaluations == host.evaluations
    assert (solves[0].evaluations_forward, solves[0].evaluations_backward) == (host.evaluations, 0)


def test_dropout_and_batch_norm_are_those_of_the_solve():
    assert_exact(make=lambda: Field(torch.nn.Dropout(0.4)), method="rk4")
    norm = both(lambda: Field(torch.nn.BatchNorm1d(3).double()))
    assert torch.equal(norm[0][0], norm[1][0])
    assert distance(norm[1][1], norm[0][1]) <= 1e-11


def test_a_gradient_taken_inside_func_is_differentiated():
    class Potential(Field):
        def forward(self, t, y):
            with torch.enable_grad():
                y = y if y.requires_grad else y.detach().requires_grad_()
                return -grad(super().forward(t, y).square().sum(), y, create_graph=True)[0]

    assert_exact(make=Potential)


def test_events_have_their_gradients():
    found = []
    for memory in ("states", "graphs"):
        func, y0 = Field(), state()
        end, ys = odeint_adjoint(
            func, y0, T[:2], event_fn=lambda t, y: t - 0.4 + 0.1 * y.sum(), adjoint_method="aca",
            options={"first_step": 0.1}, adjoint_options={"memory": memory},
        )  # fmt: skip
        found.append(grad(end + ys[-1].square().sum(), (y0, *func.parameters())))
    assert distance(found[1], found[0]) <= 1e-12


@pytest.mark.parametrize(("memory", "cache"), [("states", False), ("graphs", True)])
def test_under_autocast_the_gradient_is_back_propagation_s_to_the_bit(memory, cache):
    """Graphs share the cast of a weight, as the host's do; a replay casts it anew, as the host does without the cache.

    Also where weights were cast without a graph before, in the same block.
    """
    func = torch.nn.Linear(3, 3)
    y0 = state().detach().float().requires_grad_()

    def found(odeint, cache, **way):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            if way:
                with torch.no_grad():
                    func(y0)
            ys = odeint(lambda t, y: func(y), y0, T.float(), method="rk4", **way)
        return (ys, *grad(ys.float().square().sum(), (y0, *func.parameters())))

    of_host = found(torchdiffeq.odeint, cache)
    ours = found(odeint_adjoint, True, adjoint_method="aca", adjoint_options={"memory": memory})
    assert all(map(torch.equal, ours, of_host))
    assert all(g.abs().sum() > 0 for g in ours)


def test_hooks_on_parameters_see_the_whole_gradient_once():
    func, seen = Field(), []
    func.weight.register_hook(seen.append)
    ys, _ = solve(func)
    ys.sum().backward()
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], func.weight.grad)


def test_a_second_pass_over_the_retained_graph_is_as_good_as_the_first():
    func = Field()
    ys, inputs = solve(func)
    first = grad(ys.square().sum(), inputs, retain_graph=True)
    second = grad(ys.square().sum(), inputs)
    assert distance(second, first) <= 1e-12


@pytest.mark.skipif(torch.__version__.startswith("2.4"), reason="it does not tell whether a pass keeps its graph")
def test_a_pass_that_retains_its_graph_leaves_those_of_the_evaluations_to_the_next():
    func = Field()
    ys, inputs = solve(func)
    batch = torch.randn(2, *ys.shape, dtype=torch.float64)
    evaluations = func.evaluations
    one, again = (grad(ys.square().sum(), inputs, retain_graph=True) for _ in range(2))
    grad(ys, inputs, batch, is_grads_batched=True)
    assert func.evaluations == evaluations
    assert all(map(torch.equal, one, again))
    with pytest.raises(RuntimeError, match="a second time"):
        grad(ys.sum(), inputs)


def test_second_derivatives_are_those_of_back_propagation():
    found = []
    for odeint in (torchdiffeq.odeint, odeint_adjoint):
        ys, (y0, _, weight, _) = solve(Field(), odeint)
        (g,) = grad(ys[-1].square().sum(), y0, create_graph=True)
        found.append(grad(g.square().sum(), (y0, weight)))
    assert distance(found[1], found[0]) <= 1e-11


@pytest.mark.parametrize("takes_batch", [True, False])
def test_batched_cotangents_are_pulled_together_or_replayed(takes_batch):
    ys, inputs = solve(Field(None if takes_batch else TakesNoBatch.apply))
    batch = torch.randn(3, *ys.shape, dtype=torch.float64)
    found = grad(ys, inputs, batch, is_grads_batched=True, retain_graph=True)
    each = [grad(ys, inputs, one, retain_graph=True) for one in batch]
    expected = [torch.stack(grads) for grads in zip(*each, strict=True)]
    assert distance(found, expected) <= 1e-12


def test_transforms_of_torch_func_are_as_ever():
    def loss(memory):
        return lambda y0: odeint_adjoint(
            Field(), y0, T, adjoint_method="aca", options={"first_step": 0.1}, adjoint_options={"memory": memory}
        ).square().sum()  # fmt: skip

    y0 = state().detach()
    assert torch.equal(torch.func.grad(loss("graphs"))(y0), torch.func.grad(loss("states"))(y0))


def test_parameters_computed_from_others_and_hooked_tensors_are_replayed():
    """These have stand-ins in a replay, and hooks are to act on the states."""
    base = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    found = []
    for odeint, ours in WAYS:
        twice = base * 2
        ys = odeint(lambda t, y: -base * twice * y, state(), T, options={"first_step": 0.1}, **ours)  # noqa: B023
        found.append(grad(ys.square().sum(), base))
    assert distance(found[1], found[0]) <= 1e-12
    func = Field()
    with torch.autograd.graph.save_on_cpu():
        ys, inputs = solve(func)
    evaluations = func.evaluations
    grad(ys.sum(), inputs)
    assert func.evaluations > evaluations


def delayed(func):
    past = []

    def field(t, y):
        past.append((float(t.detach()), y))
        lag = [x for s, x in past if s <= float(t.detach()) - 0.3]
        return func(t, y) - 0.5 * (lag[-1] if lag else y)

    return field


def hooked(func):
    def field(t, y):
        if y.requires_grad:
            y.register_hook(lambda g: 0.5 * g)
        return func(t, y)

    return field


def checkpointed(func):
    return lambda t, y: torch.utils.checkpoint.checkpoint(func, t, y, use_reentrant=True)


@pytest.mark.parametrize("made", [delayed, hooked, checkpointed])
@pytest.mark.parametrize("method", ["dopri5", "rk4", "implicit_adams"])
def test_what_is_refused_by_states_is_back_propagated_through(made, method):
    """The host keeps graphs too, and takes over what a replay cannot."""
    found = []
    for odeint in (torchdiffeq.odeint, odeint_adjoint):
        func = Field()
        ys, (y0, t) = solve(made(func), odeint, method=method)
        ys.square().sum().backward()
        found.append((ys, [x.grad for x in (y0, t, *func.parameters())]))
    (ys, expected), (ours, gradients) = found
    assert torch.equal(ours, ys)
    assert distance(gradients, expected) <= 1e-12


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("method", ["dopri5", "rk4", "euler"])
def test_a_state_that_broadcasting_gives_another_shape(method, named):
    """With some parameters named, and by states, that is refused."""
    weight, y0 = torch.eye(2, dtype=torch.float64, requires_grad=True), torch.ones(2, dtype=torch.float64)
    options = {"first_step": 0.1} if method == "dopri5" else {"step_size": 0.1}
    field = lambda t, y: (y.view(1, 2) @ weight).tanh()  # noqa: E731
    if named:
        for call in ({**GRAPHS, "adjoint_params": (weight,)}, {"adjoint_method": "aca"}):
            with pytest.raises(UnsupportedError, match="turned into another dtype or shape"):
                odeint_adjoint(field, y0, T, method=method, options=options, **call)
        return
    solved = [odeint(field, y0, T, method=method, options=options, **ours) for odeint, ours in WAYS]
    assert torch.equal(*solved)
    assert distance(*(grad(ys.square().sum(), (weight,)) for ys in solved)) <= 1e-12


@pytest.mark.parametrize("memory", ["graphs", "64 KB"])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_parameters_may_be_frozen_after_the_solve(method, memory):
    found = []
    for odeint in (torchdiffeq.odeint, odeint_adjoint):
        func = Field()
        ys, (y0, *_) = solve(func, odeint, memory, method=method)
        func.requires_grad_(False)
        found.append(grad(ys.square().sum(), y0))
    assert distance(found[1], found[0]) <= 1e-12


def test_what_draws_from_a_generator_of_its_own_is_exact():
    """No replay would find its numbers again."""
    found = []
    for odeint, ours in WAYS:
        func, generator, y0 = Field(), torch.Generator().manual_seed(0), state()
        func.between = lambda x, generator=generator: x * torch.rand((), generator=generator)
        ys = odeint(func, y0, T, method="rk4", options={"step_size": 0.1}, **ours)
        found.append(grad(ys.sum(), (y0, *func.parameters())))
    assert distance(found[1], found[0]) <= 1e-12


def test_what_func_keeps_of_earlier_evaluations_is_a_constant_where_it_is_detached():
    """With what leads to it, it is refused: see the ways out."""
    found = []
    for odeint, ours in WAYS:
        func, before, y0 = Field(), {}, state()

        def average(x, before=before):
            out = x + 0.1 * before.get("x", 0.0)
            before["x"] = out.detach()
            return out

        func.between = average
        ys = odeint(func, y0, T, method="midpoint", options={"step_size": 0.1}, **ours)
        found.append(grad(ys.sum(), (y0, func.weight)))
    assert distance(found[1], found[0]) <= 1e-12


def test_a_tensor_that_only_a_later_evaluation_uses_is_refused_as_ever():
    late = [[[[[[torch.ones(3, dtype=torch.float64, requires_grad=True)]]]]]]
    func = Field()
    func.between = lambda x: x * late[0][0][0][0][0][0] if func.evaluations > 3 else x
    ys, inputs = solve(func)
    with pytest.raises(GradientError, match="its first evaluation did not use"):
        grad(ys.sum(), inputs)


def test_parameters_changed_before_the_backward_pass_are_noticed():
    func = Field()
    ys, inputs = solve(func)
    with torch.no_grad():
        func.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        grad(ys.sum(), inputs)


class Layer(Field):
    """Of what a graph saves a leaf is the leaf itself, and a view of it that of what it was."""

    def forward(self, t, y):
        return torch.nn.functional.linear(y, self.weight, self.bias).tanh()


def exchanged(module, *dtypes):
    for dtype in dtypes:
        module.to(dtype)


# What is done to parameters of a dtype between the solve and the backward pass.
EXCHANGES = {
    "narrower and back": (torch.float64, (torch.float32, torch.float64)),
    "wider and back": (torch.float32, (torch.float64, torch.float32)),
    "wider": (torch.float32, (torch.float64,)),
    "narrower": (torch.float64, (torch.float16,)),
}


def gradients_after(exchange, odeint, at=state, **call):
    """Of y0 and the parameters, whose data are exchanged for those of other dtypes after the solve."""
    dtype, others = EXCHANGES[exchange]
    func, y0 = Layer().to(dtype), at().detach().to(dtype).requires_grad_()
    ys = odeint(func, y0, T.to(dtype), **call)
    exchanged(func, *others)
    ys.square().sum().backward()
    return [y0.grad, *(p.grad for p in func.parameters())]


@pytest.mark.parametrize("memory", ["graphs", "1 MB"])
@pytest.mark.parametrize(
    "call",
    [{"method": "rk4", "options": {"step_size": 0.25}}, {"method": "dopri5", "options": {"first_step": 0.25}}],
    ids=["rk4", "dopri5"],
)
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_parameters_given_other_data_have_the_gradient_of_the_solve(exchange, call, memory):
    """Graphs of a leaf end elsewhere once its dtype has been another one."""
    expected = gradients_after(exchange, torchdiffeq.odeint, **call)
    found = gradients_after(exchange, odeint_adjoint, **call, **{**GRAPHS, "adjoint_options": {"memory": memory}})
    assert [x.dtype for x in found] == [x.dtype for x in expected]
    assert distance(found, expected) <= (2e-6 if "wider" in exchange else 1e-12)


def test_a_batch_and_a_plain_call_have_it_too():
    """Of a batch the gradient in y0: that in a leaf that is in another place has no one."""
    found, (dtype, others) = [], EXCHANGES["narrower and back"]
    for odeint, ours in WAYS:
        func, y0 = Layer(), state()
        ys = odeint(func, y0, T, method="rk4", **ours)
        exchanged(func, *others)
        batch = torch.randn(3, *ys.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
        found += grad(ys, y0, batch, is_grads_batched=True)
    assert distance(found[1:], found[:1]) <= 1e-12
    expected = gradients_after("narrower and back", torchdiffeq.odeint, method="rk4")
    with install(default="aca", override=True, adjoint_options={"memory": "graphs"}):
        assert distance(gradients_after("narrower and back", torchdiffeq.odeint, method="rk4"), expected) <= 1e-12


def test_a_context_that_is_written_to_has_the_gradient_of_the_solve():
    """Its graph goes on from there."""
    found = []
    for odeint, ours in WAYS:
        func, y0 = Field(), state()
        context = func.bias * 2
        ys = odeint(lambda t, y: (y @ func.weight).tanh() + context, y0, T, method="rk4", **ours)  # noqa: B023
        context.add_(1.0)
        found.append(grad(ys.square().sum(), (y0, func.weight, func.bias)))
    assert distance(found[1], found[0]) <= 1e-12


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_steps_that_are_taken_again_are_exact_or_refused(exchange):
    """Of a size that holds the graphs of some steps, whose leaves ended elsewhere."""
    keep = {"adjoint_method": "aca", "adjoint_options": {"memory": "12 KB"}}
    call = {"at": lambda: state(8), "method": "rk4", "options": {"step_size": 0.05}}
    with record_solves() as solves:
        if exchange != "wider and back":
            with pytest.raises(GradientError, match="or given other data"):
                gradients_after(exchange, odeint_adjoint, **keep, **call)
            return
        found = gradients_after(exchange, odeint_adjoint, **keep, **call)
    assert solves[0].evaluations_backward > 0
    assert distance(found, gradients_after(exchange, torchdiffeq.odeint, **call)) <= 2e-6


def watched(alive, counts):
    """The identity, whose nodes are ``alive`` as long as their graphs are; ``counts`` of them, when one is pulled."""

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            alive.add(ctx)
            return x.clone()

        @staticmethod
        def backward(ctx, cotangent):
            counts.append(len(alive))
            return cotangent

    return Watched


def test_graphs_of_rejected_tries_are_let_go_and_the_others_while_the_pass_goes_back():
    alive, counts = weakref.WeakSet(), []
    identity = watched(alive, counts)

    with record_solves() as solves:
        ys, inputs = solve(Field(identity.apply), options={"first_step": 2.0})
    assert solves[0].rejected_steps
    # FSAL: the last evaluation of a step is the first one of the next.
    assert len(alive) == 6 * solves[0].accepted_steps + 1
    grad(ys.sum(), inputs)
    assert counts[-1] <= 7
    gc.collect()
    assert not alive


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "rk4", "adaptive_heun", "explicit_adams"])
def test_a_size_is_kept_and_the_gradient_stays_exact(method):
    call = {"method": method, "rows": 64}
    with record_solves() as solves:
        ys, inputs = solve(Field(), memory="states" if method in ADAMS else "graphs", **call)
    expected = grad(ys.square().sum(), inputs)
    everything = solves[0].bytes_held
    evaluations = []
    for size in (2 * everything + 4096, everything // 2, everything // 4, everything // 8):
        with record_solves() as solves:
            ys, inputs = solve(Field(), memory=size, **call)
            found = grad(ys.square().sum(), inputs)
        assert solves[0].bytes_held <= size
        assert distance(found, expected) <= 1e-11
        evaluations.append(solves[0].evaluations_backward)
    assert evaluations == sorted(evaluations)
    assert evaluations[0] == 0 or method in ADAMS


def test_a_size_holds_while_the_solve_runs():
    """Storages of saved tensors, counted by a meter of our own at each evaluation."""
    size, most, alive = 60_000, [], []

    class Held(torch.autograd.Function):
        """Saves a large tensor, and notes how many bytes of these are alive."""

        @staticmethod
        def forward(ctx, x):
            array = np.zeros(500)
            alive.append(weakref.ref(array))
            ctx.save_for_backward(torch.from_numpy(array))
            most.append(4_000 * sum(ref() is not None for ref in alive))
            return x.clone()

        @staticmethod
        def backward(ctx, cotangent):
            (big,) = ctx.saved_tensors
            return cotangent + big.sum()

    ys, inputs = solve(Field(Held.apply), memory=size)
    # Beside the evaluation at hand.
    assert 8_000 < max(most) <= size + 4_000
    expected, inputs_ = solve(Field(), memory="states")
    assert distance(grad(ys.sum(), inputs), grad(expected.sum(), inputs_)) <= 1e-12


@pytest.mark.parametrize("memory", ["graphs", 20_000])
def test_graphs_that_are_not_kept_are_freed(memory):
    """Also where what they save, which is counted, is their own output."""
    alive = weakref.WeakSet()
    identity = watched(alive, [])

    with record_solves() as solves:
        ys, _ = solve(Field(lambda x: identity.apply(x).tanh()), memory=memory, options={"first_step": 2.0}, rows=16)
    evaluations = 6 * solves[0].accepted_steps + 1
    assert len(alive) == evaluations if memory == "graphs" else 0 < len(alive) < evaluations
    del ys
    assert not alive


def test_bytes_held_count_the_graphs():
    held = {}
    for memory in ("states", "graphs"):
        with record_solves() as solves:
            solve(Field(), memory=memory)
        held[memory] = solves[0].bytes_held
    assert held["graphs"] > 3 * held["states"]


def graph_network(model):
    adjacency = torch.eye(4, dtype=torch.float64).roll(1, 0).to_sparse()
    return lambda t, y: torch.sparse.mm(adjacency, model(y)).tanh()


def compressed_graph_network(model):
    adjacency = torch.eye(4, dtype=torch.float64).roll(1, 0).to_sparse_csr()
    return lambda t, y: torch.sparse.mm(adjacency, model(y)).tanh()


def gradient_by_transform(model):
    return lambda t, y: -torch.func.grad(lambda x: model(x).tanh().sum())(y)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("size", ["20 kB", "1 MB", "graphs"])
@pytest.mark.parametrize("make", [graph_network, compressed_graph_network, gradient_by_transform])
def test_what_saves_other_than_plain_tensors(make, size):
    def gradient(odeint, **adjoint):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 3, dtype=torch.float64)
        y0, t = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3), torch.tensor([0.0, 1.0], dtype=torch.float64)
        ys = odeint(make(model), y0, t, method="rk4", options={"step_size": 0.1}, **adjoint)
        return torch.autograd.grad(ys[-1].square().sum(), tuple(model.parameters()))

    found = gradient(odeint_adjoint, adjoint_method="aca", adjoint_options={"memory": size})
    assert distance(found, gradient(torchdiffeq.odeint)) <= 1e-12
