"""``adjoint_options={"memory": "graphs"}`` of SDEs: the graph of each accepted step is that of the solve."""

import pytest
import torch
import torchsde

from steptape.shared_tests.oracles.distance import distance
from steptape.torch import record_solves, sdeint_adjoint
from steptape_helpers.sde_problems import LEVY, Sde, cases, differentiate, initial, interval

GRAPHS = {"adjoint_method": "aca", "adjoint_options": {"memory": "graphs"}}


def solved(sdeint, case, dropout=0.0, **call):
    torch.manual_seed(3)
    sde = Sde(case.sde_type, case.noise_type, dropout=dropout)
    bm = interval(case.noise_type, LEVY.get(case.method, "none"))
    call = {"bm": bm, "dt": 0.05, "method": case.method, "options": case.options, **call}
    return differentiate(sdeint, sde, initial(), **call)


def assert_exact(case, **call):
    expected = solved(torchsde.sdeint, case, **call)
    with record_solves() as solves:
        found = solved(sdeint_adjoint, case, **GRAPHS, **call)
    assert all(map(torch.equal, found.outputs, expected.outputs))
    assert distance(found.gradients, expected.gradients) <= 1e-12
    return solves[0]


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: "-".join(map(str, case)))
def test_every_step_is_evaluated_once(case):
    stats = assert_exact(case)
    # The state that reversible_heun starts with is a function of y0.
    assert stats.evaluations_backward == (2 if case.method == "reversible_heun" else 0)


ONE_OF_EACH = [case for case in cases() if case[:3] in (("ito", "diagonal", "milstein"), ("ito", "general", "euler"))]


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: "-".join(map(str, case)))
def test_adaptive_steps_and_dropout_are_exact(case):
    assert_exact(case, dropout=0.3)
    assert assert_exact(case, adaptive=True, rtol=1e-2, atol=1e-2, dt_min=1e-3).evaluations_backward == 0


def test_a_second_pass_and_second_derivatives_take_the_steps_again():
    case = ONE_OF_EACH[0]
    found = []
    for sdeint, ours in ((torchsde.sdeint, {}), (sdeint_adjoint, GRAPHS)):
        sde, y0 = Sde(case.sde_type, case.noise_type), initial()
        ys = sdeint(sde, y0, [0.0, 0.3], bm=interval(case.noise_type), dt=0.1, method=case.method, **ours)
        wanted = (y0, *(p for p in sde.parameters() if p is not None))
        loss = ys[-1].square().sum()
        (first,) = torch.autograd.grad(loss, y0, retain_graph=True)
        (second,) = torch.autograd.grad(loss, y0, create_graph=True)
        of_second = torch.autograd.grad(second.square().sum(), wanted, allow_unused=True, materialize_grads=True)
        found.append((first, second, *of_second))
    assert distance(found[1], found[0]) <= 1e-12


def test_batched_cotangents_are_pulled_through_the_same_graphs():
    case = ONE_OF_EACH[0]
    sde, y0 = Sde(case.sde_type, case.noise_type), initial()
    call = {"bm": interval(case.noise_type), "dt": 0.1, "method": case.method, **GRAPHS}
    ys = sdeint_adjoint(sde, y0, [0.0, 0.17, 0.3], **call)
    batch = torch.randn(3, *ys.shape, dtype=torch.float64)
    found = torch.autograd.grad(ys, y0, batch, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(ys, y0, one, retain_graph=True)[0] for one in batch]
    assert distance(found, [torch.stack(each)]) <= 1e-12
