"""ACA equals back-propagation through the host's solver over a generated grid of what a call can say.

For every solver, any two values of two factors (options, state, times, memory, what is differentiated) meet in a call.
By default half of the calls are made, with each value in one of them; ``nox -s full`` makes the others.
"""

import itertools
import random

import pytest
import torch
import torchdiffeq

from steptape.compat._torchdiffeq import SOLVERS, option_names
from steptape.shared_tests.oracles.distance import distance
from steptape.torch import odeint_adjoint
from steptape.torch._hosts.scheme import scheme_of
from steptape_helpers.torch_solves import ADAMS, ADAPTIVE

SUPPORTED = [name for name, solver in SOLVERS.items() if scheme_of(solver) is not None]
JUMP = 0.75
POINTS = ("step_t", "jump_t")


def largest(state):
    return max(part.abs().max() for part in (state if isinstance(state, tuple) else (state,)))


def uneven_grid(func, y0, t):
    ends = torch.cat([t[:1], torch.full_like(t[:1], JUMP), t[-1:]])
    inner = [ends[:-1] + x * ends.diff() for x in (0.31, 0.6)]
    return torch.cat([ends, *inner]).sort(descending=bool(t[0] > t[-1])).values


# The alternatives for each option. The host differentiates its own guess of a first step, so that one is always given.
OPTIONS = [
    [{"first_step": 0.03}, {"first_step": 0.8}],
    [{}, {"step_t": [1.4123, 0.3314, -2.0]}],
    [{}, {"jump_t": [1.1371, JUMP, 5.0]}],
    [{}, {"min_step": 0.041}],
    [{}, {"max_step": 0.157}],
    [{}, {"max_num_steps": 1000}],
    [{}, {"norm": largest}],
    [{}, {"dtype": torch.float32}],
    [{}, {"safety": 0.7}],
    [{}, {"ifactor": 1.5}],
    [{}, {"dfactor": 0.9}],
    [{}, {"step_size": 0.125}, {"grid_constructor": uneven_grid}],
    [{"interp": "linear"}, {"interp": "cubic"}],
    [{}, {"perturb": True}],
    [{}, {"max_order": 4}],
    [{}, {"max_iters": 1}],
]
SHAPES = [[()], [(3,)], [(2, 3)], [(3,), (2, 2), ()]]
# Of the state, and of the times.
DTYPES = [
    (torch.float64, torch.float64),
    (torch.float64, torch.float32),
    (torch.float32, torch.float64),
    (torch.float32, torch.float32),
    (torch.complex128, torch.float64),
    (torch.complex64, torch.float32),
]
TIMES = [[0.125, 1.9], [0.125, 0.7, 1.2, 1.9], [0.125 + 0.09 * i for i in range(21)]]
MEMORY = [
    {},
    {"checkpoints": 2},
    {"checkpoint_device": "cpu"},
    {"graph": "stage"},
    {"checkpoints": 3, "graph": "stage"},
]
WANTED = [["y0", "params", "times"], ["y0", "params"], ["y0"], ["params"], ["times"]]


def iterates(method):
    """Whether a solver of the host solves for all stages of an implicit Runge-Kutta method."""
    return scheme_of(SOLVERS[method]).tableau is None and method not in ADAMS


def factors(method):
    """What varies in calls with a solver: for each factor, its values."""
    solver = SOLVERS[method]
    return {
        "shapes": SHAPES,
        # The host's iteration for the stages of an implicit method seldom converges on a complex state.
        "dtypes": [dtypes for dtypes in DTYPES if not (iterates(method) and dtypes[0].is_complex)],
        "times": TIMES,
        "reverse": [False, True],
        "tolerances": ["one", "each"],
        "memory": [m for m in MEMORY if not (scheme_of(solver).tableau is None and "graph" in m)],
        "wanted": WANTED,
        **{f"options {i}": values for i, values in enumerate(OPTIONS) if set().union(*values) <= option_names(solver)},
    }


def all_pairs(values):
    """All pairs of values of two different factors, a value as (factor, its index)."""
    indexed = [[(name, i) for i in range(len(values[name]))] for name in values]
    return [frozenset(pair) for a, b in itertools.combinations(indexed, 2) for pair in itertools.product(a, b)]


def left_out(method):
    """The pairs of no call: on a fixed grid, a scalar state is refused if the times are of higher precision."""
    if method in ADAPTIVE:
        return set()
    dtypes = factors(method)["dtypes"]
    wide = [i for i, (state, times) in enumerate(dtypes) if times.itemsize > state.to_real().itemsize]
    return {frozenset({("shapes", SHAPES.index([()])), ("dtypes", i)}) for i in wide}


def covering(values, left_out, seed):
    """Choices of a value for each factor that together hold all pairs, each grown from one that was missing."""
    generator = random.Random(seed)
    pairs = all_pairs(values)
    generator.shuffle(pairs)
    missing = set(pairs) - left_out
    choices = []
    for pair in pairs:
        if pair in missing:
            choice = dict(sorted(pair))
            for name in generator.sample(sorted(values.keys() - choice), len(values) - 2):
                gains = {}
                for i in range(len(values[name])):
                    new = {frozenset([(name, i), other]) for other in choice.items()}
                    if not new & left_out:
                        gains[i] = len(new & missing), generator.random()
                choice[name] = max(gains, key=gains.get)
            missing -= pairs_in(choice)
            choices.append(choice)
    return choices


def pairs_in(choice):
    return {frozenset(pair) for pair in itertools.combinations(choice.items(), 2)}


CHOICES = {method: covering(factors(method), left_out(method), seed=method) for method in SUPPORTED}


def by_default(method):
    """Every other choice, and those with a value that none of these has."""
    part = CHOICES[method][::2]
    for choice in CHOICES[method][1::2]:
        if choice.items() - set().union(*(other.items() for other in part)):
            part.append(choice)
    return part


def cases(method, choices):
    """The calls with a solver: the value of each factor, the options as one."""
    values = factors(method)
    for choice in choices:
        case = {name: values[name][choice[name]] for name in values}
        options = [case.pop(name) for name in values if name.startswith("options")]
        yield {**case, "options": {name: value for option in options for name, value in option.items()}}


class Field(torch.nn.Module):
    """A field on a state of any shape or a tuple of them, real or complex; if it ``jumps``, at the time JUMP."""

    def __init__(self, dtype, jumps=False):
        super().__init__()
        rate = -0.6 + 1.1j if dtype.is_complex else -0.6
        self.rate = torch.nn.Parameter(torch.tensor(rate, dtype=dtype))
        self.drive = torch.nn.Parameter(torch.tensor([0.8, 0.3], dtype=dtype.to_real()))
        self.jumps = jumps

    def forward(self, t, state):
        parts = state if isinstance(state, tuple) else (state,)
        mean = sum(part.mean() for part in parts)
        wave = torch.sin(2 * t) * (t < JUMP) if self.jumps else torch.sin(2 * t)
        drive = (self.drive[0] * wave + self.drive[1]) * mean
        slopes = tuple(self.rate * part + drive / (1 + (part * part.conj()).real) for part in parts)
        return slopes if isinstance(state, tuple) else slopes[0]


def initial(shape, dtype):
    y = torch.linspace(0.9, -0.5, torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
    return (y * (1 - 0.4j) if dtype.is_complex else y).to(dtype)


def tolerances(method, case):
    # The host's gradient in t divides differences of states by h: good to eps/h, so no tiny steps for low orders.
    rtol = 1e-5 if method in ("dopri5", "dopri8") else 1e-3
    if case["tolerances"] == "one":
        return rtol, rtol / 10
    if len(case["shapes"]) > 1:
        return (rtol, rtol / 2, rtol / 3), (rtol / 10, rtol, rtol / 10)
    each = torch.full(case["shapes"][0], rtol, dtype=case["dtypes"][0].to_real())
    return each, each / 10


def solve(odeint, method, case, **kwargs):
    """The solution as a tuple, and the gradients of its square: by what they are in, all times as one vector."""
    state_dtype, times_dtype = case["dtypes"]
    y0 = tuple(initial(shape, state_dtype) for shape in case["shapes"])
    t = torch.tensor(case["times"][:: -1 if case["reverse"] else 1], dtype=times_dtype)
    given = case["options"]
    points = {name: torch.tensor(given[name], dtype=torch.float64) for name in POINTS if name in given}
    options = {**given, **points}
    func = Field(state_dtype, jumps="jump_t" in options or "perturb" in options)
    leaves = {"y0": y0, "params": tuple(func.parameters()), "times": (t, *points.values())}
    for name, tensors in leaves.items():
        for x in tensors:
            x.requires_grad_(name in case["wanted"])
    rtol, atol = tolerances(method, case)
    ys = odeint(func, y0 if len(y0) > 1 else y0[0], t, rtol=rtol, atol=atol, method=method, options=options, **kwargs)
    ys = ys if isinstance(ys, tuple) else (ys,)
    loss = sum(y.abs().square().sum() for y in ys)
    flat = iter(torch.autograd.grad(loss, [x for name in case["wanted"] for x in leaves[name]]))
    gradients = {name: [next(flat) for _ in leaves[name]] for name in case["wanted"]}
    if "times" in gradients:
        # A single time's share can be a small difference of large ones.
        gradients["times"] = [torch.cat(gradients["times"])]
    return ys, gradients


def precision(name, method, case):
    """How well the gradients in ``name`` must agree: a fixed grid computes with times in the dtype they have."""
    state_dtype, times_dtype = case["dtypes"]
    if state_dtype.to_real() == torch.float64 and (method in ADAPTIVE or times_dtype == torch.float64):
        return 1e-12
    return 1e-3 if name == "times" else 1e-4


EVERY = [(method, case) for method in SUPPORTED for case in cases(method, CHOICES[method])]
ALWAYS = {method: list(cases(method, by_default(method))) for method in SUPPORTED}


@pytest.mark.by_default(where=lambda method, case: case in ALWAYS[method])
@pytest.mark.filterwarnings("ignore:Functional iteration did not converge")
@pytest.mark.parametrize(("method", "case"), EVERY)
def test_equal_to_back_propagation(method, case):
    solution, expected = solve(torchdiffeq.odeint, method, case)
    ours, found = solve(odeint_adjoint, method, case, adjoint_method="aca", adjoint_options=case["memory"])
    assert all(torch.equal(a, b) for a, b in zip(ours, solution, strict=True))
    for name in case["wanted"]:
        assert [x.dtype for x in found[name]] == [x.dtype for x in expected[name]]
        assert distance(found[name], expected[name]) <= precision(name, method, case)


@pytest.mark.parametrize("method", SUPPORTED)
def test_the_grid_holds_every_pair_of_values(method):
    held = set().union(*map(pairs_in, CHOICES[method]))
    assert held == set(all_pairs(factors(method))) - left_out(method)


@pytest.mark.parametrize("method", SUPPORTED)
def test_the_part_that_always_runs_holds_every_value(method):
    held = set().union(*(choice.items() for choice in by_default(method)))
    assert held == {(name, i) for name, values in factors(method).items() for i in range(len(values))}


@pytest.mark.parametrize("method", SUPPORTED)
def test_the_grid_holds_every_option_of_the_host(method):
    given = set().union(*(case["options"] for case in cases(method, CHOICES[method])))
    # "implicit" is what tells explicit_adams from implicit_adams.
    assert given == option_names(SOLVERS[method]) - {"implicit"}


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:t is not on the same device as y0")
@pytest.mark.parametrize("method", SUPPORTED)
def test_a_state_on_the_gpu_between_times_on_the_cpu(method):
    def gradients(odeint, **kwargs):
        func = Field(torch.float64).cuda()
        y0 = initial((2, 3), torch.float64).cuda().requires_grad_()
        t = torch.tensor([0.1, 1.2, 1.9], dtype=torch.float64, requires_grad=True)
        options = {"first_step": 0.1} if method in ADAPTIVE else {"step_size": 0.125}
        ys = odeint(func, y0, t, rtol=1e-3, atol=1e-3, method=method, options=options, **kwargs)
        return torch.autograd.grad(ys.square().sum(), (y0, *func.parameters(), t))

    found, expected = gradients(odeint_adjoint, adjoint_method="aca"), gradients(torchdiffeq.odeint)
    assert [x.device for x in found] == [x.device for x in expected]
    assert distance(found, expected) <= 1e-12


@pytest.mark.cuda
@pytest.mark.parametrize("method", ["dopri5", "rk4", "implicit_adams"])
def test_states_off_the_gpu_come_back_as_they_were(method):
    def gradients(**options):
        func = Field(torch.float64).cuda()
        y0 = initial((2, 3), torch.float64).cuda().requires_grad_()
        t = torch.linspace(0, 1, 4, dtype=torch.float64, device="cuda")
        settings = {"first_step": 0.1} if method in ADAPTIVE else {"step_size": 0.01}
        call = {"rtol": 1e-6, "atol": 1e-6, "method": method, "options": settings, "adjoint_method": "aca"}
        ys = odeint_adjoint(func, y0, t, **call, adjoint_options=options)
        return torch.autograd.grad(ys.square().sum(), (y0, *func.parameters()))

    assert all(map(torch.equal, gradients(checkpoint_device="cpu"), gradients()))
