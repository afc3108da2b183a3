"""The seminorm for torchdiffeq's adjoint: the norm of y and its cotangent, and nothing else."""

import pytest
import torch
import torchdiffeq

from steptape import OptionError
from steptape.shared_tests.oracles.distance import distance
from steptape.torch import odeint_adjoint, seminorm

T = torch.linspace(0, 2, 3, dtype=torch.float64)


class Network(torch.nn.Module):
    """A field with many parameters, which counts its evaluations."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 200), torch.nn.Tanh(), torch.nn.Linear(200, 3)).double()
        self.evaluations = 0

    def forward(self, t, y):
        self.evaluations += 1
        return self.layers(y) - y


def backward(solve=odeint_adjoint, **kwargs):
    """Evaluations of the backward pass, and the gradients."""
    func, y0 = Network(), torch.linspace(-2, 2, 12, dtype=torch.float64).view(4, 3).requires_grad_()
    ys = solve(func, y0, T, rtol=1e-5, atol=1e-5, **kwargs)
    func.evaluations = 0
    gradients = torch.autograd.grad(100 * ys.square().sum(), (y0, *func.parameters()))
    return func.evaluations, gradients


def with_running_cost(**kwargs):
    """The same where a tuple state carries a cost that grows fast, as an integral."""
    func, y0 = Network(), torch.linspace(-2, 2, 12, dtype=torch.float64).view(4, 3).requires_grad_()

    def field(t, state):
        y, _ = state
        return func(t, y), 1e4 * (50 * t).sin() * y.sum(1)

    zero = torch.zeros(4, dtype=torch.float64)
    params = tuple(func.parameters())
    ys, costs = odeint_adjoint(field, (y0, zero), T, rtol=1e-5, atol=1e-5, adjoint_params=params, **kwargs)
    forward, func.evaluations = func.evaluations, 0
    (ys.square().sum() + 1e-4 * costs.sum()).backward()
    return forward, func.evaluations


def test_the_mixed_one_is_the_hosts_own():
    host = backward(torchdiffeq.odeint_adjoint, adjoint_options={"norm": "seminorm"})
    ours = backward(adjoint_options={"norm": seminorm(torch.zeros(4, 3))})
    assert ours[0] == host[0]
    assert all(torch.equal(a, b) for a, b in zip(ours[1], host[1], strict=True))


@pytest.mark.parametrize("reduction", ["mixed", "joint"])
def test_fewer_evaluations_for_the_same_gradient(reduction):
    default, exact = backward(), backward(adjoint_method="aca")
    ours = backward(adjoint_options={"norm": seminorm(torch.zeros(4, 3), reduction=reduction)})
    assert ours[0] <= 0.8 * default[0]
    assert distance(ours[1], exact[1]) <= 1e-3


def test_integrals_in_the_state_gate_no_step_forward_or_backward():
    state = torch.zeros(4, 3), torch.zeros(4)
    all_channels = with_running_cost(adjoint_options={"norm": seminorm(state)})
    norm = seminorm(state, integrals=[1])
    assert norm.forward((torch.ones(4, 3), torch.full((4,), 1e9))) == 1
    fewer = with_running_cost(options={"norm": norm.forward}, adjoint_options={"norm": norm})
    assert fewer[0] < 0.5 * all_channels[0]
    assert fewer[1] < 0.6 * all_channels[1]


def test_what_the_norms_are():
    y, a, t, p = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 12.0]), torch.tensor(1e9), torch.full((5,), 1e9)
    rms = (25 / 2) ** 0.5, (144 / 2) ** 0.5
    assert seminorm(y)((t, y, a, p)) == pytest.approx(rms[1])
    assert seminorm(y, reduction="joint")((t, y, a, p)) == pytest.approx((169 / 4) ** 0.5)
    assert seminorm(y, norm=lambda y: y.abs().max())((t, y, a, p)) == 12
    assert seminorm((y, y))((t, y, y, a, a)) == pytest.approx(rms[1])
    assert seminorm((y, y), norm=lambda state: state[0].sum() + state[1].sum())((t, y, y, a, y)) == 19
    assert seminorm((p, y), integrals={0}, reduction="joint")((t, p, y, p, a)) == pytest.approx((169 / 4) ** 0.5)
    assert seminorm(y).forward(y) == pytest.approx(rms[0])


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"reduction": "max"}, r"reduction='max'\): must be 'mixed' or 'joint'"),
        ({"reduction": "joint", "norm": max}, "root mean square alone. Pass reduction='mixed'"),
        ({"integrals": [2]}, r"integrals=\[2\]\): must be some, and not all, of the places 0 to 1"),
        ({"integrals": [0, 1]}, "not all, of the places 0 to 1"),
    ],
    ids=repr,
)
def test_wrong_arguments(kwargs, reason):
    with pytest.raises(OptionError, match=reason):
        seminorm((torch.zeros(2), torch.zeros(3)), **kwargs)


def test_the_norm_of_another_state():
    with pytest.raises(OptionError, match=r"made for a state of shapes \[\(4, 2\)\].*Pass the y0 of the solve"):
        backward(adjoint_options={"norm": seminorm(torch.zeros(4, 2))})
