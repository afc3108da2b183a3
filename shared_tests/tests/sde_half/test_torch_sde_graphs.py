"""``adjoint_options={"memory": "graphs"}`` of SDEs: the graph of each accepted step is that of the solve."""

import pytest
import torch
import torchsde

from steptape import GradientError, UnsupportedError
from steptape.shared_tests.oracles.distance import distance
from steptape.torch import record_solves, sdeint_adjoint
from steptape_helpers.sde_problems import LEVY, Sde, cases, differentiate, initial, interval
from steptape_helpers.torch_solves import TakesNoBatch

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
    assert assert_exact(case).evaluations_backward == 0


ONE_OF_EACH = [case for case in cases() if case[:3] in (("ito", "diagonal", "milstein"), ("ito", "general", "euler"))]


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: "-".join(map(str, case)))
def test_adaptive_steps_and_dropout_are_exact(case):
    assert_exact(case, dropout=0.3)
    assert assert_exact(case, adaptive=True, rtol=1e-2, atol=1e-2, dt_min=1e-3).evaluations_backward == 0


class NoisyLater(Sde):
    """Draws random numbers, but not in its first half."""

    def __init__(self):
        super().__init__("ito", "diagonal")

    def f(self, t, y):
        out = super().f(t, y)
        return out * torch.rand_like(y) if t > 0.5 else out


def test_random_numbers_that_are_drawn_later_on_are_those_of_the_solve():
    found = []
    for sdeint, ours in ((torchsde.sdeint, {}), (sdeint_adjoint, GRAPHS)):
        torch.manual_seed(3)
        call = {"bm": interval("diagonal"), "dt": 0.05, "method": "euler"}
        found.append(differentiate(sdeint, NoisyLater(), initial(), **call, **ours).gradients)
    assert distance(found[1], found[0]) <= 1e-12


@pytest.mark.parametrize("keep", [{"memory": "graphs"}, {}])
def test_parameters_given_other_data_have_the_gradient_of_the_solve_or_are_refused(keep):
    """Graphs of a leaf end elsewhere once its dtype has been another one."""
    found = []
    for sdeint, ours in ((torchsde.sdeint, {}), (sdeint_adjoint, {"adjoint_method": "aca", "adjoint_options": keep})):
        sde, y0 = Sde("ito", "diagonal"), initial()
        ys = sdeint(sde, y0, [0.0, 1.0], bm=interval("diagonal"), dt=0.1, method="euler", **ours)
        sde.half().double()
        if ours and not keep:
            with pytest.raises(GradientError, match="or given other data"):
                ys.sum().backward()
            return
        ys.sum().backward()
        found.append([y0.grad, *(p.grad for p in sde.parameters() if p.grad is not None)])
    assert distance(found[1], found[0]) <= 1e-12


class InPlace(Sde):
    """Changes a state, or an increment, from its third step on."""

    def __init__(self, what):
        super().__init__("ito", "diagonal")
        self.what = what

    def f(self, t, y):
        if self.what == "state" and t > 0.15:
            y.mul_(1.0)
        return super().f(t, y)

    def g_prod(self, t, y, v):
        if self.what == "increment" and t > 0.15:
            v.mul_(1.0)
        return super().g(t, y) * v


@pytest.mark.parametrize(("what", "params"), [("state", ()), ("increment", ()), ("increment", None)])
def test_what_is_changed_in_place_is_refused(what, params):
    """The host would find an increment as it was left."""
    call = {"bm": interval("diagonal"), "dt": 0.1, "method": "euler", "adjoint_params": params, **GRAPHS}
    with pytest.raises(UnsupportedError, match=f"{what}.* in place"):
        sdeint_adjoint(InPlace(what), initial(), [0.0, 1.0], **call)


class Late(Sde):
    """Uses one more tensor in its later steps, or from then on the state of the step before."""

    def __init__(self, before):
        super().__init__("ito", "diagonal")
        self.slots, self.before = [torch.ones((), dtype=torch.float64, requires_grad=True)], before

    def f(self, t, y):
        out = super().f(t, y)
        if self.before:
            out = out + 0.1 * self.slots[0]
            if t > 0.3:
                self.slots[0] = y
            return out
        return out * self.slots[0] if t > 0.3 else out


def test_what_a_later_step_alone_uses_has_its_gradient():
    found = []
    for sdeint, ours in ((torchsde.sdeint, {}), (sdeint_adjoint, GRAPHS)):
        sde, y0 = Late(before=False), initial()
        ys = sdeint(sde, y0, [0.0, 1.0], bm=interval("diagonal"), dt=0.1, method="euler", **ours)
        found.append(torch.autograd.grad(ys.sum(), (y0, *sde.slots)))
    assert distance(found[1], found[0]) <= 1e-12


def test_the_state_of_the_step_before_is_the_host_s_affair():
    found = []
    for sdeint, ours in ((torchsde.sdeint, {}), (sdeint_adjoint, GRAPHS)):
        sde, y0 = Late(before=True), initial()
        ys = sdeint(sde, y0, [0.0, 1.0], bm=interval("diagonal"), dt=0.1, method="euler", **ours)
        found.append(torch.autograd.grad(ys.sum(), y0))
    assert distance(found[1], found[0]) <= 1e-12


def test_a_second_pass_and_second_derivatives_take_the_steps_again():
    case = ONE_OF_EACH[0]
    found = []
    for sdeint, ours in ((torchsde.sdeint, {}), (sdeint_adjoint, GRAPHS)):
        sde, y0 = Sde(case.sde_type, case.noise_type), initial()
        ys = sdeint(sde, y0, [0.0, 0.3, 1.0], bm=interval(case.noise_type), dt=0.05, method=case.method, **ours)
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


def test_where_an_operation_takes_no_batch_steps_are_taken_again_from_the_states_that_are_held():
    class Plain(Sde):
        def f(self, t, y):
            return TakesNoBatch.apply(super().f(t, y))

    sde, y0, found = Plain("stratonovich", "diagonal"), initial(), []
    batch = torch.randn(2, 3, *y0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for method in ("euler_heun", "reversible_heun"):
        call = {"bm": interval("diagonal"), "dt": 0.02, "method": method}
        with record_solves() as solves:
            ys = sdeint_adjoint(sde, y0, [0.0, 0.33, 1.0], **call, **GRAPHS)
        found.append(torch.autograd.grad(ys, y0, batch, is_grads_batched=True)[0])
        assert solves[0].states_kept < 20 < solves[0].accepted_steps < solves[0].evaluations_backward
        ys = torchsde.sdeint(sde, y0, [0.0, 0.33, 1.0], **call)
        each = [torch.autograd.grad(ys, y0, one, retain_graph=True)[0] for one in batch]
        assert distance(found[-1:], [torch.stack(each)]) <= 1e-12


def test_increments_that_change_after_the_solve_are_not_replayed():
    class Held:
        shape, dtype, device, levy_area_approximation = (4, 3), torch.float64, torch.device("cpu"), "none"

        def __init__(self):
            self.made = []

        def __call__(self, ta, tb=None, **_):
            self.made.append(torch.full(self.shape, 0.1, dtype=self.dtype))
            return self.made[-1]

    bm, y0 = Held(), initial()
    ys = sdeint_adjoint(Sde("ito", "diagonal"), y0, [0.0, 1.0], bm=bm, dt=0.1, method="euler", **GRAPHS)
    bm.made[3].mul_(2.0)
    with pytest.raises(UnsupportedError, match="increment in place"):
        torch.autograd.grad(ys.sum(), y0, create_graph=True)
