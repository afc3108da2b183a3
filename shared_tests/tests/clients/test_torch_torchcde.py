"""torchcde: ``cdeint`` passes a module around the control and func on, and options of the backward solve with it."""

import pytest
import torch

from steptape_helpers.clients import installed
from steptape_helpers.torch_clients import assert_trains_as_by_back_propagation

torchcde = installed("torchcde")

BACKENDS = {
    "torchdiffeq, dopri5": {"method": "dopri5", "options": {"first_step": 0.1}},
    "torchdiffeq, rk4": {"method": "rk4", "options": {"step_size": 0.25}},
    "torchsde, midpoint": {"backend": "torchsde", "method": "midpoint", "dt": 0.25},
    "torchsde, reversible_heun": {"backend": "torchsde", "method": "reversible_heun", "dt": 0.25},
}


class Field(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 12), torch.nn.Tanh()
        )

    def forward(self, t, z):
        return self.net(z).view(*z.shape[:-1], 4, 3)


class Classifier(torch.nn.Module):
    """The control is a spline through an embedding of the data, so that its coefficients have a gradient too."""

    def __init__(self, **call):
        super().__init__()
        self.embed, self.start, self.field = torch.nn.Linear(3, 3), torch.nn.Linear(3, 4), Field()
        self.call = call

    def forward(self, data):
        coefficients = torchcde.hermite_cubic_coefficients_with_backward_differences(self.embed(data))
        control = torchcde.CubicSpline(coefficients)
        start = self.start(control.evaluate(control.interval[0]))
        return torchcde.cdeint(X=control, func=self.field, z0=start, t=control.interval, **self.call)[:, -1]


@pytest.mark.filterwarnings("ignore:One of the inputs to the control path X")
@pytest.mark.filterwarnings("ignore::steptape.SteptapeWarning")
@pytest.mark.parametrize("backend", BACKENDS)
def test_cdeint(backend):
    def make(**how):
        model = Classifier(**BACKENDS[backend], **how)
        return model, lambda: model(torch.randn(5, 6, 3)).square().mean()

    assert_trains_as_by_back_propagation(f"torchcde, {backend}", make, {"adjoint": False})
