"""Back-propagation through torchdiffeq that is wrong where a field reads t as a number. Needs torch and torchdiffeq."""

import math

import torch
from torchdiffeq import odeint


class Field(torch.nn.Module):
    """dy/dt = w t y: from t = 1 to 2, y = exp(3 w / 2), and dy/dw = 3 y / 2."""

    def __init__(self, read):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.read = read

    def forward(self, t, y):
        """Read t by the function given."""
        return self.w * self.read(t) * y


def gradient(read, tolerance, solve=odeint, **options):
    """dy/dw by back-propagation."""
    field, y0 = Field(read), torch.ones(1, dtype=torch.float64)
    t = torch.tensor([1.0, 2.0], dtype=torch.float64)
    end = solve(field, y0, t, rtol=tolerance, atol=tolerance, method="dopri5", options=options)[-1]
    return torch.autograd.grad(end, field.w)[0].item()


def main():
    """Print the errors; fail where back-propagation is worse for a t that is read as a number."""
    right = 1.5 * math.exp(0.75)
    wrong = []
    for tolerance in (1e-4, 1e-6, 1e-8, 1e-10):
        as_tensor = gradient(lambda t: t, tolerance)
        as_number = gradient(lambda t: torch.tensor([t.item()], dtype=torch.float64), tolerance)
        held = gradient(lambda t: torch.tensor([t.item()], dtype=torch.float64), tolerance, first_step=1e-3)
        errors = [abs(got / right - 1) for got in (as_tensor, as_number, held)]
        print(
            f"tolerance {tolerance:.0e}, errors: t as a tensor {errors[0]:.1e}, t as a number {errors[1]:.1e}, "
            f"t as a number and first_step given {errors[2]:.1e}"
        )
        wrong.append(errors[1] / max(errors[0], errors[2]))
    assert max(wrong) < 10, "gradients are wrong"


if __name__ == "__main__":
    main()
