"""A replay evaluates func at the very times of the solve: below float64 they are rounded as the host rounds them."""

import pytest
import torch
import torchdiffeq

from steptape.compat._torchdiffeq import SOLVERS
from steptape.torch import odeint_adjoint
from steptape.torch._hosts.scheme import scheme_of
from steptape_helpers.torch_solves import ADAPTIVE

METHODS = [name for name, solver in SOLVERS.items() if scheme_of(solver) is not None]
pytestmark = pytest.mark.filterwarnings("ignore:Functional iteration did not converge")


class Driven(torch.nn.Module):
    """dy/dt = w cos(ωt) - y/10; notes when it is evaluated, with a gradient and without."""

    def __init__(self, omega, dtype=torch.float32):
        super().__init__()
        self.omega = omega
        self.w = torch.nn.Parameter(torch.ones(3, dtype=dtype))
        self.times = {True: [], False: []}

    def forward(self, t, y):
        self.times[y.requires_grad and torch.is_grad_enabled()].append(t.item())
        return (self.w * torch.cos(self.omega * t).to(self.w.dtype) - y.real / 10).to(y.dtype)


def gradient(odeint, func, t, dtype=torch.float32, **call):
    ys = odeint(func, torch.ones(3, dtype=dtype), t, rtol=1e-3, atol=1e-3, **call)
    return torch.autograd.grad(ys[-1].real.sum(), func.w)[0]


def options(method, **more):
    if method in ADAPTIVE:
        points = {"step_t": torch.tensor([0.3]), "jump_t": torch.tensor([0.5])}
        return {"first_step": 0.05, "min_step": 0.01, **({} if more else points)}
    return {"step_size": 0.07, **more}


@pytest.mark.by_default(every=2)
@pytest.mark.parametrize("t_dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.complex64], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_times_are_those_of_the_solve(method, dtype, t_dtype):
    real = torch.empty(0, dtype=dtype).real.dtype
    func = Driven(20.0, real)
    for start in (0.0, 300.0):
        t = start + torch.tensor([0.0, 0.4, 0.8], dtype=t_dtype)
        more = {"interp": "cubic", "perturb": True} if start and method not in ADAPTIVE else {}
        keep = {} if scheme_of(SOLVERS[method]).tableau is None else {"graph": "stage"}
        for adjoint_options in ({}, {"checkpoints": 2}, keep):
            func.times = {True: [], False: []}
            call = {"method": method, "adjoint_method": "aca", "adjoint_options": adjoint_options}
            call["options"] = options(method, **more)
            for name in ("step_t", "jump_t"):
                if name in call["options"]:
                    call["options"][name] = start + call["options"][name]
            gradient(odeint_adjoint, func, t, dtype, **call)
            # The first one finds what func uses.
            assert func.times[True][1:]
            assert set(func.times[True][1:]) <= set(func.times[False])


@pytest.mark.parametrize(("start", "omega"), [(300.0, 6.2832), (1000.0, 300.0), (-10.0, 20.0)])
@pytest.mark.parametrize("method", METHODS)
def test_a_daily_cycle_in_float32(method, start, omega):
    """t in days. The sums of cosines cancel: what is rounding counts by the weight w has without them."""
    t = start + torch.tensor([0.0, 1.0])
    call = {"method": method, "options": {"first_step": 0.01} if method in ADAPTIVE else {"step_size": 0.07}}
    expected = gradient(torchdiffeq.odeint, Driven(omega), t, **call)
    found = gradient(odeint_adjoint, Driven(omega), t, adjoint_method="aca", **call)
    assert (found - expected).abs().max() <= 1e-6


LOW = (torch.float32, torch.float16, torch.bfloat16)
# Whose products the host makes in the order of its table; of the others with a size that is not rounded to y's dtype.
ORDERED = [(method, dtype) for method in ADAPTIVE for dtype in LOW]
ORDERED += [(method, torch.float32) for method in ("euler", "midpoint", "heun2") if method in METHODS]


@pytest.mark.parametrize(("method", "dtype"), ORDERED)
def test_sums_are_made_in_the_order_of_back_propagation(method, dtype):
    """To the bit: a sum that cancels is another one in another order, by more than the rounding of its terms."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).to(dtype)
    y0, w = torch.linspace(-1, 1, 15, dtype=dtype).view(5, 3), torch.ones(3, dtype=dtype, requires_grad=True)
    points, more = torch.tensor([0.0, 0.3, 0.33, 1.0]), {"min_step": 0.01} if method in ADAPTIVE else {}
    cotangent = torch.linspace(-1, 1, 60, dtype=dtype).view(4, 5, 3)

    def gradients(odeint, func, params, start, **call):
        rest = {"method": method, "rtol": 1e-2, "atol": 1e-2, "options": options(method, **more), **call}
        y = y0.clone().requires_grad_()
        return torch.autograd.grad(odeint(func, y, start + points, **rest), (y, *params), cotangent)

    def linear(t, y):
        return w * torch.cos(20 * t) - 0.1 * y

    def nonlinear(t, y):
        return net(y) * torch.cos(20 * t)

    cases = [(linear, (w,), {}), (linear, (w,), {"graph": "stage"}), (linear, (w,), {"memory": "graphs"})]
    # Where states are kept alone, a replay computes the places of stages anew, and rounds them in its own way.
    for func, params, keep in [*cases, (nonlinear, tuple(net.parameters()), {"memory": "graphs"})]:
        start = 0.0 if dtype is not torch.float32 else 10.0
        expected = gradients(torchdiffeq.odeint, func, params, start)
        found = gradients(odeint_adjoint, func, params, start, adjoint_method="aca", adjoint_options=keep)
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("event", [False, True])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_second_derivatives_and_events_at_the_same_times(method, create_graph, event):
    func = Driven(20.0)

    def event_fn(t, y):
        return t - 300.71 + y.sum() * 1e-3

    call = {"method": method, "adjoint_method": "aca", "event_fn": event_fn if event else None}
    call["options"] = {"first_step": 0.05} if method in ADAPTIVE else {"step_size": 0.07}
    ys = odeint_adjoint(func, torch.ones(3), torch.tensor([300.0, 301.0]), rtol=1e-3, atol=1e-3, **call)
    ys = ys[1] if event else ys
    torch.autograd.grad(ys[-1].sum(), func.w, create_graph=create_graph)
    assert func.times[True]
    assert set(func.times[True]) <= set(func.times[False])


@pytest.mark.parametrize("interp", ["linear", "cubic"])
@pytest.mark.parametrize("method", ["euler", "rk4", "explicit_adams"])
def test_outputs_at_times_in_less_precision_than_the_state(method, interp):
    """The host interpolates with weights in the dtype of t."""
    t = torch.tensor([300.0, 300.33, 300.61, 301.0])
    call = {"method": method, "options": {"step_size": 0.2, "interp": interp}}

    def gradients(odeint, **adjoint):
        func, y0 = Driven(1.0, torch.float64), torch.ones(3, dtype=torch.float64, requires_grad=True)
        ys = odeint(func, y0, t, **call, **adjoint)
        loss = (ys * torch.linspace(1, 2, 4, dtype=torch.float64)[:, None]).sum()
        return torch.cat(torch.autograd.grad(loss, (y0, func.w)))

    expected, found = gradients(torchdiffeq.odeint), gradients(odeint_adjoint, adjoint_method="aca")
    assert (found - expected).abs().max() <= 1e-13 * expected.abs().max()
