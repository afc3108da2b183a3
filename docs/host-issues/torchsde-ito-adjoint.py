"""torchsde's adjoint of an Itô SDE whose diagonal noise reads other entries of the state. Needs torch and torchsde."""

import warnings

import numpy as np
import torch
import torchsde


class Sde(torch.nn.Module):
    """dy1 = y1 dW1 / 2 and dy2 = y1 dW2: g_2 reads y1. Linear in y(0), and so is each solution of it."""

    noise_type, sde_type = "diagonal", "ito"

    def f(self, t, y):
        """No drift."""
        return torch.zeros_like(y)

    def g(self, t, y):
        """One entry of the state, one of the noise."""
        return torch.stack([y[:, 0] / 2, y[:, 0]], 1)


def gradient(solve, dt, paths=64, **how):
    """The gradient of the sum of y2(1) in y1(0), by path, and the true one: (y2(1) - y2(0)) / y1(0)."""
    np.random.seed(0)
    bm = torchsde.BrownianInterval(0.0, 1.0, size=(paths, 2), dtype=torch.float64, entropy=7)
    y0 = torch.tensor([[1.5, 0.5]], dtype=torch.float64).repeat(paths, 1).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        end = solve(Sde(), y0, torch.tensor([0.0, 1.0], dtype=torch.float64), bm=bm, dt=dt, method="euler", **how)[-1]
        found = torch.autograd.grad(end[:, 1].sum(), y0)[0][:, 0]
    return found, ((end[:, 1] - y0[:, 1]) / y0[:, 0]).detach()


def main():
    """Print the errors; fail where the adjoint does not come closer to the true gradient in smaller steps."""
    wrong = []
    for dt in (1e-2, 1e-3):
        errors = []
        for solve in (torchsde.sdeint, torchsde.sdeint_adjoint):
            found, right = gradient(solve, dt)
            errors.append(float((found - right).norm() / right.norm()))
        print(f"dt {dt:.0e}, errors: back-propagation {errors[0]:.1e}, adjoint {errors[1]:.1e}")
        wrong.append(errors[1])
    assert wrong[1] < 0.5 * wrong[0], "gradients are wrong"


if __name__ == "__main__":
    main()
