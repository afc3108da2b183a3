"""Many cotangents of an SDE's solution at once: the gradients of as many backward passes, at the evaluations of one."""

import pytest
import torch
from torch.autograd import grad

torchsde = pytest.importorskip("torchsde")

from steptape.shared_tests.oracles.distance import distance  # noqa: E402
from steptape.torch import record_solves, sdeint_adjoint  # noqa: E402
from steptape_helpers.sde_problems import LEVY, Sde, initial, interval  # noqa: E402

CASES = [
    ("ito", "diagonal", "euler"),
    ("ito", "diagonal", "srk"),
    ("stratonovich", "general", "heun"),
    ("stratonovich", "general", "reversible_heun"),
]
COUNT = 3


def rows(outputs):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(COUNT, *x.shape, generator=generator, dtype=x.dtype) for x in outputs]


@pytest.mark.parametrize("create_graph", [False, True], ids=["first", "and second derivatives"])
@pytest.mark.parametrize("steps", [{}, {"adjoint_options": {"checkpoints": 3}}, {"adaptive": True}], ids=str)
@pytest.mark.parametrize(("sde_type", "noise_type", "method"), CASES)
@pytest.mark.filterwarnings("ignore:Numerical solution is not guaranteed to converge")
def test_equal_at_the_evaluations_of_one_pass(sde_type, noise_type, method, steps, create_graph):
    sde, y0 = Sde(sde_type, noise_type), initial().requires_grad_()
    bm = interval(noise_type, LEVY.get(method, "none"))
    call = {"method": method, "dt": 0.1, "rtol": 1e-2, "atol": 1e-2, "adjoint_method": "aca", "extra": True}
    with record_solves() as solves:
        ys, extra = sdeint_adjoint(
            sde, y0, [0.0, 0.25, 0.5], bm=bm, adjoint_params=tuple(sde.parameters()), **call, **steps
        )
    outputs, used = (ys, *extra), [*grad(ys.sum(), [*sde.parameters()], retain_graph=True, allow_unused=True)]
    inputs = (y0, *(p for p, g in zip(sde.parameters(), used, strict=True) if g is not None))
    once = solves[0].evaluations_backward
    how = {"retain_graph": True, "create_graph": create_graph}
    found = grad(outputs, inputs, rows(outputs), is_grads_batched=True, **how)
    at_once = solves[0].evaluations_backward - once
    each = [grad(outputs, inputs, one, **how) for one in zip(*rows(outputs), strict=True)]
    expected = [torch.stack(grads) for grads in zip(*each, strict=True)]
    assert distance([x.detach() for x in found], [x.detach() for x in expected]) <= 1e-12
    assert solves[0].evaluations_backward == once + (1 + COUNT) * at_once
    if create_graph:
        second = [grad(sum(g.square().sum() for g in first), y0, retain_graph=True) for first in (found, expected)]
        assert distance(*second) <= 1e-12


def test_a_batch_of_one_result_alone():
    sde, y0 = Sde("stratonovich", "general"), initial().requires_grad_()
    call = {"method": "reversible_heun", "dt": 0.1, "adjoint_method": "aca", "extra": True}
    ys, (extra, *_) = sdeint_adjoint(
        sde, y0, [0.0, 0.5], bm=interval("general"), adjoint_params=tuple(sde.parameters()), **call
    )
    (batch,), plain = rows([ys]), torch.ones_like(extra)
    pull = lambda one, other: grad((ys, extra), y0, (one, other), retain_graph=True)[0]  # noqa: E731
    found = torch.vmap(pull, in_dims=(0, None))(batch, plain)
    assert distance([found], [torch.stack([pull(one, plain) for one in batch])]) <= 1e-12
    (alone,) = grad(ys, y0, batch, is_grads_batched=True, retain_graph=True)
    assert distance([alone], [torch.stack([grad(ys, y0, one, retain_graph=True)[0] for one in batch])]) <= 1e-12


def test_the_jacobian_of_geometric_brownian_motion():
    """dY = μY dt + σY dW of each channel alone: Y(T) is linear in y0, so the Jacobian is Y(T) / y0."""
    y0 = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    bm = torchsde.BrownianInterval(0.0, 0.5, size=(1, 3), dtype=torch.float64, entropy=0)

    class Growth(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t, y):
            return 0.5 * y

        def g(self, t, y):
            return 0.3 * y

    end = lambda y: sdeint_adjoint(Growth(), y, [0.0, 0.5], bm=bm, dt=0.05, method="milstein", adjoint_method="aca")[-1]  # noqa: E731
    found = torch.autograd.functional.jacobian(end, y0, vectorize=True)[0, :, 0]
    torch.testing.assert_close(found, (end(y0) / y0)[0].diag(), rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(end, y0.requires_grad_(), check_batched_grad=True)
