"""stribor: a continuous flow keeps ``odeint_adjoint`` in itself; it passes a tuple and options, and no adjoint."""

import pytest
import torch

from steptape_helpers.clients import installed
from steptape_helpers.torch_clients import assert_trains_as_by_back_propagation

stribor = installed("stribor")

SOLVERS = {"dopri5": {"first_step": 0.1}, "rk4": {"step_size": 0.1}}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("divergence", ["approximate", "compute"])
def test_a_continuous_flow(solver, divergence):
    def make(**how):
        net = stribor.net.DiffeqMLP(2 + 3 + 1, [16], 2)
        settings = {"solver": solver, "solver_options": SOLVERS[solver], "divergence": divergence, "has_latent": True}
        flow = stribor.ContinuousTransform(2, net=net, **settings, **how)
        encoder = torch.nn.Linear(4, 3)

        def loss():
            x, log_det = flow.inverse_and_log_det_jacobian(torch.randn(6, 2), latent=encoder(torch.randn(6, 4)))
            return x.square().mean() - log_det.mean()

        return torch.nn.ModuleList([flow, encoder]), loss

    name = f"stribor, ContinuousTransform, {solver}, {divergence} divergence"
    assert_trains_as_by_back_propagation(name, make, {"use_adjoint": False})
