"""The seminorm of torchsde's own adaptive adjoint: the error estimate is that of the states alone."""

import importlib

import pytest
import torch

torchsde = pytest.importorskip("torchsde")

from steptape import OptionError, UnsupportedError  # noqa: E402
from steptape.shared_tests.oracles.distance import distance  # noqa: E402
from steptape.torch import sdeint_adjoint  # noqa: E402
from steptape_helpers.sde_problems import BATCH, STATE, Sde, initial  # noqa: E402

LOOSE = {"adjoint_adaptive": True, "adjoint_rtol": 1e-2, "adjoint_atol": 1e-2}
SEMINORM = {"adjoint_options": {"norm": "seminorm"}}


def gradients(sdeint, sde, logqp=False, **kwargs):
    """By the adjoint, on a path that does not depend on the steps; and the evaluations of the backward solve."""
    y0 = initial()
    # The penalty is one more channel of the state, and of diagonal noise.
    size = (BATCH, STATE + logqp)
    bm = torchsde.BrownianInterval(0.0, 1.0, size=size, entropy=5, dtype=y0.dtype, halfway_tree=True, tol=1e-6)
    settings = {"bm": bm, "method": "midpoint", "dt": 0.05, "logqp": logqp, **LOOSE, **kwargs}
    returned = sdeint(sde, y0, [0.0, 0.5, 1.0], **settings)
    total = sum(x.square().sum() for x in (returned if logqp else [returned]))
    sde.evaluations = 0
    inputs = (y0, *sde.parameters())
    found = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
    return found, sde.evaluations


def only_states(monkeypatch, count):
    """Make the host estimate the error of the first ``count`` channels of its backward solve alone."""
    # Spied on by this test alone, so no name of compat's.
    adaptive_stepping = importlib.import_module("torchsde._core.adaptive_stepping")
    whole = adaptive_stepping.compute_error

    def first(y11, y12, *tolerances):
        return whole(y11[:, :count], y12[:, :count], *tolerances)

    monkeypatch.setattr(adaptive_stepping, "compute_error", first)


@pytest.mark.parametrize("logqp", [False, True])
def test_the_same_steps_as_with_an_error_of_the_states_alone(logqp, monkeypatch):
    sde = Sde("stratonovich", "diagonal")
    found, evaluations = gradients(sdeint_adjoint, sde, logqp, **SEMINORM)
    _, with_parameters = gradients(torchsde.sdeint_adjoint, sde, logqp)
    only_states(monkeypatch, 2 * BATCH * (STATE + logqp))
    expected, same = gradients(torchsde.sdeint_adjoint, sde, logqp)
    assert evaluations == same < with_parameters
    assert distance(found, expected) <= 1e-9


def test_a_norm_that_is_none():
    with pytest.raises(OptionError, match=r"'norm': 'max'.*must be 'seminorm'"):
        gradients(sdeint_adjoint, Sde("stratonovich", "diagonal"), adjoint_options={"norm": "max"})


def test_fixed_steps_have_no_error_to_estimate():
    with pytest.raises(OptionError, match=r"adjoint_adaptive=False.*Pass adjoint_adaptive=True"):
        gradients(sdeint_adjoint, Sde("stratonovich", "diagonal"), adjoint_adaptive=False, **SEMINORM)


def test_a_method_whose_adjoint_has_other_channels():
    with pytest.raises(UnsupportedError, match=r"'reversible_heun'.*adjoint_method='aca'"):
        gradients(sdeint_adjoint, Sde("stratonovich", "diagonal"), **{"method": "reversible_heun", **SEMINORM})
