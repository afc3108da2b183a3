"""What callers say of a backward solve, where there is none: told once, and the gradient is right."""

import warnings

import pytest
import torch
import torchdiffeq

from steptape import OptionError, SteptapeWarning
from steptape.torch import _options, odeint_adjoint

T = torch.tensor([0.0, 1.0], dtype=torch.float64)
ABOUT = "have no effect, since a replay solves nothing backward"


@pytest.fixture(autouse=True)
def _nothing_told_yet(monkeypatch):
    monkeypatch.setattr(_options, "_told", set())


class Decay(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

    def forward(self, t, y):
        return -self.rate * y


class Told(Decay):
    """With callbacks for the steps of a backward solve."""

    def callback_step_adjoint(self, t, y, dt):
        raise AssertionError("there is no such step")

    callback_accept_step_adjoint = callback_reject_step_adjoint = callback_step_adjoint


def gradient(odeint, func, **call):
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    ys = odeint(func, y0, T, options={"first_step": 0.1}, **call)
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(ys.sum(), (y0, func.rate))])


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ({"adjoint_rtol": 0.01}, "adjoint_rtol"),
        ({"adjoint_atol": 1e-3}, "adjoint_atol"),
        ({"adjoint_options": {"norm": "seminorm"}}, r"adjoint_options=\{'norm': 'seminorm'\}"),
        ({"adjoint_options": {"step_size": 0.1, "checkpoints": 2}}, r"adjoint_options=\{'step_size': 0.1\}"),
        ({"adjoint_options": {"max_iters": 100}}, r"adjoint_options=\{'max_iters': 100\}"),
    ],
    ids=repr,
)
def test_settings_of_the_host_s_adjoint(call, named):
    expected = gradient(torchdiffeq.odeint, Decay())
    with pytest.warns(SteptapeWarning, match=rf"^odeint_adjoint.*{named}.*{ABOUT}") as told:
        found = [gradient(odeint_adjoint, Decay(), adjoint_method="aca", **call) for _ in range(3)]
    assert len(told) == 1
    for one in found:
        torch.testing.assert_close(one, expected, rtol=1e-12, atol=0)


def test_an_option_of_nobody_s():
    with pytest.raises(OptionError, match=r"'step_sizes': 0.1.*unknown option"):
        gradient(odeint_adjoint, Decay(), adjoint_method="aca", adjoint_options={"step_sizes": 0.1})


def test_the_default_of_a_tolerance_is_nothing_to_tell():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call = {"rtol": 1e-6, "atol": 1e-6, "adjoint_rtol": 1e-6, "adjoint_atol": 1e-6}
        gradient(odeint_adjoint, Decay(), adjoint_method="aca", **call)


def test_callbacks_of_the_backward_solve():
    with pytest.warns(SteptapeWarning, match=rf"func.callback_accept_step_adjoint, .*{ABOUT}") as told:
        [gradient(odeint_adjoint, Told(), adjoint_method="aca") for _ in range(2)]
    assert len(told) == 1


def test_the_warning_points_at_the_call():
    with pytest.warns(SteptapeWarning) as told:
        gradient(odeint_adjoint, Decay(), adjoint_method="aca", adjoint_rtol=0.1)
    assert told[0].filename == __file__


@pytest.mark.parametrize(
    "call",
    [{"adjoint_rtol": 0.01}, {"adjoint_adaptive": True}, {"adjoint_options": {"norm": "seminorm"}}],
    ids=repr,
)
def test_settings_of_torchsde_s_adjoint(call):
    torchsde = pytest.importorskip("torchsde")
    from steptape.shared_tests.oracles.distance import distance
    from steptape.torch import sdeint_adjoint
    from steptape_helpers.sde_problems import Sde, differentiate, initial, interval

    settings = {"method": "euler", "dt": 0.25}
    expected = differentiate(torchsde.sdeint, Sde("ito", "diagonal"), initial(), bm=interval("diagonal"), **settings)
    settings |= {"bm": interval("diagonal"), "adjoint_method": "aca", **call}
    with pytest.warns(SteptapeWarning, match=rf"^sdeint_adjoint.*{next(iter(call))}.*{ABOUT}") as told:
        found = [differentiate(sdeint_adjoint, Sde("ito", "diagonal"), initial(), **settings) for _ in range(2)]
    assert len(told) == 1
    assert distance(found[1].gradients, expected.gradients) <= 1e-12


@pytest.mark.parametrize(
    "call",
    [
        {"method": "scipy_solver", "options": {"solver": "RK45"}},
        {"method": "rk4", "adjoint_method": "quadrature"},
        {"method": "implicit_adams", "adjoint_options": {"graph": "stage"}},
    ],
    ids=str,
)
def test_without_gradients_nothing_of_a_backward_pass_is_refused(call):
    y0, t = torch.ones(2, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    forward = {name: call[name] for name in call if not name.startswith("adjoint_")}
    with torch.no_grad():
        found = odeint_adjoint(lambda t, y: -y, y0, t, **{"adjoint_method": "aca", **call})
        assert torch.equal(found, torchdiffeq.odeint(lambda t, y: -y, y0, t, **forward))
