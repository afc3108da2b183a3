"""Training a model around a solve, in the ways people train: ACA changes nothing but the memory."""

import copy
import datetime
import json
import pickle
import subprocess
import sys
import traceback

import pytest
import torch
import torchdiffeq
from torch import nn

from steptape.shared_tests.oracles.distance import distance
from steptape.torch import odeint_adjoint

OPTIONS = {
    "dopri5": {"first_step": 0.05},
    "adaptive_heun": {"first_step": 0.05},
    "rk4": {"step_size": 0.1},
    "implicit_adams": {"step_size": 0.05, "max_order": 5},
}


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, t, y):
        return self.net(y) * torch.cos(t)


class Model(nn.Module):
    """An encoder, a solve whose func is a submodule, and a decoder."""

    def __init__(self, adjoint, method="dopri5", **kwargs):
        super().__init__()
        self.encoder, self.func, self.decoder = nn.Linear(2, 3), Field(), nn.Linear(3, 1)
        self.adjoint, self.method, self.kwargs = adjoint, method, kwargs

    def forward(self, x):
        t = torch.tensor([0.0, 0.4, 1.0], dtype=x.dtype)
        settings = {"method": self.method, "rtol": 1e-4, "atol": 1e-4, "options": OPTIONS[self.method], **self.kwargs}
        if self.adjoint == "aca":
            ys = odeint_adjoint(self.func, self.encoder(x), t, adjoint_method="aca", **settings)
        else:
            ys = torchdiffeq.odeint(self.func, self.encoder(x), t, **settings)
        return self.decoder(ys[1:].sum(0))


def build(adjoint, method="dopri5", **kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(adjoint, method, **kwargs).double()


def data():
    x = torch.linspace(-1, 1, 16, dtype=torch.float64).view(8, 2)
    return x, x.sin().sum(1, keepdim=True)


def loss_of(model, x, y):
    return (model(x) - y).square().mean()


def gradients(model):
    model.zero_grad()
    loss_of(model, *data()).backward()
    return [p.grad for p in model.parameters()]


def train(model, optimizer, steps):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, *data())
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.02)


@pytest.mark.parametrize("method", OPTIONS)
def test_the_loss_curve_is_that_of_back_propagation(method):
    models = [build(adjoint, method) for adjoint in ("host", "aca")]
    host, ours = (train(model, adam(model), 40) for model in models)
    assert host[-1] < 0.1 * host[0]
    assert distance([ours], [host]) <= 1e-9
    assert distance(*([p.detach() for p in model.parameters()] for model in reversed(models))) <= 1e-9


def test_batches_whose_gradients_add_up():
    def summed(adjoint):
        model = build(adjoint)
        for x, y in zip(*(part.split(3) for part in data()), strict=True):
            (loss_of(model, x, y) * len(x) / 8).backward()
        return [p.grad for p in model.parameters()]

    assert distance(summed("aca"), summed("host")) <= 1e-12


def reloaded(model, optimizer):
    states = pickle.loads(pickle.dumps((model.state_dict(), optimizer.state_dict())))
    model = build("aca", model.method)
    optimizer = adam(model)
    model.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    return model, optimizer


def deep_copied(model, optimizer):
    return copy.deepcopy((model, optimizer))


def pickled(model, optimizer):
    return pickle.loads(pickle.dumps((model, optimizer)))


@pytest.mark.parametrize("copied", [reloaded, deep_copied, pickled])
@pytest.mark.parametrize("method", OPTIONS)
def test_a_copy_goes_on_to_the_same_numbers(method, copied):
    model = build("aca", method)
    optimizer = adam(model)
    train(model, optimizer, 3)
    other, its_optimizer = copied(model, optimizer)
    assert torch.equal(train(model, optimizer, 5), train(other, its_optimizer, 5))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert not any(p is q for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_activation_checkpointing_around_the_solve(reentrant):
    def checkpointed(model):
        x, y = data()
        ys = torch.utils.checkpoint.checkpoint(model, x.requires_grad_(), use_reentrant=reentrant)
        (ys - y).square().mean().backward()
        return [p.grad for p in model.parameters()]

    assert distance(checkpointed(build("aca")), gradients(build("host"))) <= 1e-12


def test_a_parametrized_weight():
    def of(adjoint):
        model = build(adjoint)
        nn.utils.parametrizations.weight_norm(model.func.net[0])
        return gradients(model)

    assert distance(of("aca"), of("host")) <= 1e-12


@pytest.fixture
def _compiler():
    dynamo = pytest.importorskip("torch._dynamo")
    if not dynamo.is_dynamo_supported():
        pytest.skip("torch.compile does not support this platform")
    dynamo.reset()
    yield
    dynamo.reset()


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("method", ["dopri5", "implicit_adams"])
def test_a_compiled_func(method, backend):
    model = build("aca", method)
    model.func = torch.compile(model.func, backend=backend)
    assert distance(gradients(model), gradients(build("host", method))) <= 1e-12


@pytest.mark.usefixtures("_compiler")
def test_a_func_compiled_in_place():
    model = build("aca")
    model.func.compile(backend="aot_eager")
    assert distance(gradients(model), gradients(build("host"))) <= 1e-12


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_around_the_solve(backend):
    model = build("aca")
    compiled = torch.compile(model, backend=backend)
    host = gradients(build("host"))
    for _ in range(2):
        assert distance(gradients(compiled), host) <= 1e-12


def distributed(model, **kwargs):
    return nn.parallel.DistributedDataParallel(model, **kwargs)


def fsdp(model, **kwargs):
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **kwargs)


def fully_shard(model, **kwargs):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=init_device_mesh("cpu", (2,)), **kwargs)


def each_part(wrap):
    """Wrap the parts of the model, and not the model."""

    def wrapped(model):
        model.encoder, model.func, model.decoder = map(wrap, (model.encoder, model.func, model.decoder))
        return model

    return wrapped


def func_as_well(wrap, **kwargs):
    """Wrap func too, so that each of its evaluations gathers its parameters and gives them back."""

    def wrapped(model):
        model.func = wrap(model.func, **kwargs)
        return wrap(model, **kwargs)

    return wrapped


def inside(wrap, **kwargs):
    """Wrap the model as a part of a larger one: it gives its parameters back when its forward pass ends."""
    return lambda model: wrap(nn.Sequential(wrap(model, **kwargs)), **kwargs)


WAYS = {
    "DistributedDataParallel": {
        "the model": distributed,
        "with a search for unused parameters": lambda model: distributed(model, find_unused_parameters=True),
        "with a static graph": lambda model: distributed(model, static_graph=True),
        "with gradients in buckets": lambda model: distributed(model, gradient_as_bucket_view=True),
        "each part": each_part(distributed),
    },
    "FullyShardedDataParallel": {
        "the model": lambda model: fsdp(model, use_orig_params=True),
        "inside a larger model": inside(fsdp, use_orig_params=True),
        "flat parameters": lambda model: fsdp(model, use_orig_params=False),
        "func as well": func_as_well(fsdp, use_orig_params=True),
    },
    "fully_shard": {
        "the model": fully_shard,
        "inside a larger model": inside(fully_shard),
        "not given back after the forward pass": lambda model: fully_shard(model, reshard_after_forward=False),
        "func as well": func_as_well(fully_shard),
    },
}
REFUSED = {"func as well"}


def kinds():
    """The wrappers that this torch has."""
    if not torch.distributed.is_available():
        return []
    from torch.distributed import fsdp

    return [kind for kind in WAYS if hasattr(fsdp, kind) or hasattr(nn.parallel, kind)]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What each of two processes finds, by kind and way of wrapping; the same two, for to start them takes longest."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, __file__]
    ranks = [subprocess.Popen([*command, str(rank)], cwd=folder, stderr=subprocess.PIPE) for rank in range(2)]
    try:
        errors = b"".join(rank.communicate(timeout=120)[1] for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    results = [folder / f"{rank}.json" for rank in range(2)]
    assert all(result.exists() for result in results), errors.decode()
    return [json.loads(result.read_text()) for result in results]


@pytest.mark.parametrize("kind", WAYS)
def test_two_processes(kind, request):
    """As one process on the whole batch, or refused: parameters that come and go with every evaluation of func."""
    if kind not in kinds():
        pytest.skip(f"this torch has no {kind}")
    for by_way in request.getfixturevalue("two_processes"):
        assert by_way[kind].keys() == WAYS[kind].keys()
        for way, found in by_way[kind].items():
            if way in REFUSED:
                assert "GradientError: " in found
            else:
                assert isinstance(found, float), found
                assert found <= 1e-12, way


def trained(model, rank=None):
    """The model after three steps on one half of the batch, or on the mean of both."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    halves = list(zip(*(part.chunk(2) for part in data()), strict=True))
    for _ in range(3):
        optimizer.zero_grad()
        if rank is None:
            # As two processes do: each half takes steps of its own.
            sum(loss_of(model, *half) / 2 for half in halves).backward()
        else:
            loss_of(model, *halves[rank]).backward()
        optimizer.step()
    return model


def whole_parameters(model):
    """The parameters of a wrapped model, in the order of the unwrapped one."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    with FullyShardedDataParallel.summon_full_params(model):
        parameters = [p.detach().clone() for p in model.parameters()]
    return [p.full_tensor() if hasattr(p, "full_tensor") else p for p in parameters]


def one_of_two(kind, rank):
    """What one of two processes finds: by way of wrapping, how far it ends from a single one, or what was raised."""
    place = torch.distributed.FileStore(kind, 2)
    timeout = datetime.timedelta(seconds=60)
    torch.distributed.init_process_group("gloo", store=place, rank=rank, world_size=2, timeout=timeout)
    found = {}
    for way, wrap in WAYS[kind].items():
        # As many steps for either process, where evaluations communicate.
        method = "rk4" if way in REFUSED else "dopri5"
        host = list(trained(build("host", method)).parameters())
        try:
            ours = whole_parameters(trained(wrap(build("aca", method)), rank))
            found[way] = distance(ours, host)
        except Exception as error:
            found[way] = "".join(traceback.format_exception(error))
    # A process that leaves closes the connections of the other.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = {kind: one_of_two(kind, int(sys.argv[1])) for kind in kinds()}
    with open(f"{sys.argv[1]}.json", "w") as file:
        json.dump(results, file)
