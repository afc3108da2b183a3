"""flow-matching: ``ODESolver`` calls plain ``torchdiffeq.odeint`` with a closure over the model and its extras."""

import pytest
import torch
import torchdiffeq

from steptape_helpers.clients import installed
from steptape_helpers.torch_clients import assert_trains_as_by_back_propagation, first_step

solver, utils = installed("flow_matching.solver"), installed("flow_matching.utils")

STEPS = {"euler": {"method": "euler", "step_size": 0.05}, "midpoint": {"method": "midpoint", "step_size": 0.1}}


class Velocity(utils.ModelWrapper):
    """Conditioned on a label, whose embedding is computed before the solve."""

    def __init__(self):
        super().__init__(torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)))
        self.label = torch.nn.Linear(3, 1)

    def forward(self, x, t, label):
        return self.model(torch.cat([x, t.expand(len(x), 1), label], dim=1))


@pytest.mark.parametrize("method", ["euler", "midpoint"])
def test_sample_with_gradients(method):
    def make():
        model, labels = Velocity(), torch.eye(3).repeat(2, 1)

        def loss():
            sampled = solver.ODESolver(velocity_model=model).sample(
                x_init=torch.randn(6, 2),
                time_grid=torch.tensor([0.0, 1.0]),
                enable_grad=True,
                label=model.label(labels),
                **STEPS[method],
            )
            return sampled.square().mean()

        return model, loss

    assert_trains_as_by_back_propagation(f"flow-matching, sample, {method}", make, override=True)


@pytest.mark.parametrize("guess_held", [True, False])
def test_sample_by_an_adaptive_method(guess_held):
    """The package names no first step. torchdiffeq's guess is held by a replay, and by a call that names the same."""
    call, times = {"method": "dopri5", "atol": 1e-5, "rtol": 1e-5}, torch.tensor([0.0, 1.0])

    def make(held=None):
        model = Velocity()

        def loss():
            x, label = torch.randn(6, 2), model.label(torch.eye(3).repeat(2, 1))
            if not held:
                return solver.ODESolver(model).sample(x, None, time_grid=times, enable_grad=True, label=label, **call)

            def field(t, x):
                return model(x, t, label)

            options = {"first_step": first_step(field, x, times, **call)}
            return torchdiffeq.odeint(field, x, times, options=options, **call)[-1]

        return model, lambda: loss().square().mean()

    name = "flow-matching, sample, dopri5"
    if guess_held:
        assert_trains_as_by_back_propagation(name, make, {"held": True}, override=True)
    else:
        name += ", beside the derivative of the guess"
        assert_trains_as_by_back_propagation(name, make, at_most=1e-2, override=True)


@pytest.mark.parametrize("exact_divergence", [False, True])
def test_compute_likelihood(exact_divergence):
    """The package detaches what it evaluates: no parameter has a gradient, and x_1 that of the identity."""

    def make():
        model = torch.nn.ParameterList([torch.nn.Parameter(torch.randn(6, 2)), *(velocity := Velocity()).parameters()])

        def loss():
            _, likelihood = solver.ODESolver(velocity_model=velocity).compute_likelihood(
                x_1=2 * model[0],
                log_p0=lambda x: -0.5 * x.square().sum(1),
                time_grid=torch.tensor([1.0, 0.0]),
                exact_divergence=exact_divergence,
                enable_grad=True,
                label=velocity.label(torch.eye(3).repeat(2, 1)),
                **STEPS["midpoint"],
            )
            return -likelihood.mean()

        return model, loss

    name = f"flow-matching, compute_likelihood, {'exact' if exact_divergence else 'estimated'} divergence"
    assert_trains_as_by_back_propagation(name, make, override=True)
