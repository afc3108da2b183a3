"""install() and torchsde: its own sdeint_adjoint understands "aca", and is given back."""

import pytest
import torch
import torchsde

from steptape import HostChangedError
from steptape.shared_tests.oracles.distance import distance
from steptape.torch import install
from steptape.torch import sdeint_adjoint as ours

held_before = torchsde.sdeint_adjoint


class Sde(torch.nn.Module):
    """Geometric Brownian motion."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def f(self, t, y):
        return self.rate * y

    def g(self, t, y):
        return 0.2 * y


def gradients(sdeint, **kwargs):
    sde, y0 = Sde(), torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    bm = torchsde.BrownianInterval(0.0, 1.0, size=(2, 1), dtype=torch.float64, entropy=1)
    ys = sdeint(sde, y0, torch.tensor([0.0, 1.0], dtype=torch.float64), bm=bm, method="euler", dt=0.1, **kwargs)
    return torch.autograd.grad(ys[-1].sum(), (y0, sde.rate))


def test_calls_through_the_package_and_through_names_taken_before():
    expected = gradients(torchsde.sdeint)
    with install():
        for function in (torchsde.sdeint_adjoint, held_before):
            assert distance(gradients(function, adjoint_method="aca"), expected) <= 1e-12
    assert torchsde.sdeint_adjoint is held_before


def test_our_own_name_survives_an_installation():
    with install():
        pass
    assert distance(gradients(ours, adjoint_method="aca"), gradients(torchsde.sdeint)) <= 1e-12


def test_the_hosts_own_adjoints_stay_theirs():
    expected = gradients(torchsde.sdeint_adjoint)
    with install():
        found = gradients(torchsde.sdeint_adjoint)
    assert all(map(torch.equal, found, expected))


def test_a_host_that_someone_else_has_changed(monkeypatch):
    monkeypatch.setattr(torchsde, "sdeint_adjoint", lambda *args: None)
    with pytest.raises(HostChangedError, match=r"torchsde.sdeint_adjoint is .* someone else has replaced it"):
        install()
