"""torchdiffeq's adjoint on the stiff van der Pol equation, which explodes in reverse. Needs torch and torchdiffeq."""

import torch
from torchdiffeq import odeint, odeint_adjoint


class Oscillator(torch.nn.Module):
    """y1' = y2, y2' = μ (1 - y1²) y2 - y1 with μ = 5."""

    def __init__(self):
        super().__init__()
        self.mu = torch.nn.Parameter(torch.tensor(5.0, dtype=torch.float64))

    def forward(self, t, y):
        """The slope."""
        return torch.stack([y[1], self.mu * (1 - y[0] ** 2) * y[1] - y[0]])


def gradient(solve, rtol, method="dopri5", **how):
    """That of |y(20)|² in μ, from (2, 0); the absolute tolerance is a thousandth of the relative one."""
    field, y0 = Oscillator(), torch.tensor([2.0, 0.0], dtype=torch.float64)
    t = torch.tensor([0.0, 20.0], dtype=torch.float64)
    last = solve(field, y0, t, rtol=rtol, atol=rtol / 1000, method=method, **how)[-1]
    return torch.autograd.grad(last.square().sum(), field.mu)[0].item()


def main():
    """Print the errors; fail where the adjoint is wrong by more than the gradient itself."""
    right = gradient(odeint, 1e-11, "dopri8")
    wrong = []
    for rtol in (1e-5, 1e-9):
        errors = []
        for solve in (odeint, odeint_adjoint):
            try:
                errors.append(abs(gradient(solve, rtol) / right - 1))
            except AssertionError:
                errors.append(float("inf"))
        print(f"rtol {rtol:.0e}, errors: back-propagation {errors[0]:.1e}, adjoint {errors[1]:.1e}")
        wrong.append(errors[1])
    assert max(wrong) < 1, "gradients are wrong"


if __name__ == "__main__":
    main()
