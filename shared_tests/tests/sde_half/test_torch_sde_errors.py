"""What cannot be right is refused, in words: the call, the reason, the way out."""

import re
import subprocess
import sys

import pytest
import torch

torchsde = pytest.importorskip("torchsde")

from steptape import GradientError, OptionError, UnsupportedError  # noqa: E402
from steptape.shared_tests.oracles.distance import distance  # noqa: E402
from steptape.torch import sdeint_adjoint  # noqa: E402
from steptape_helpers.sde_problems import BATCH, STATE, Sde, initial, interval  # noqa: E402


def solve(sde=None, y0=None, **kwargs):
    sde = Sde("ito", "diagonal") if sde is None else sde
    y0 = initial() if y0 is None else y0
    settings = {"bm": interval("diagonal"), "method": "euler", "dt": 0.25, "adjoint_method": "aca", **kwargs}
    return sdeint_adjoint(sde, y0, [0.0, 1.0], **settings)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"checkpoint": 3}, "unknown option"),
        ({"checkpoints": 0}, "must be a positive number of states, or None"),
        ({"checkpoint_device": "disk"}, "no torch device"),
        ({"graph": "solve"}, "must be 'step' or 'stage'"),
    ],
    ids=repr,
)
def test_a_wrong_adjoint_option(option, reason):
    call = re.escape(f"adjoint_options={option}")
    with pytest.raises(OptionError, match=f"^sdeint_adjoint.*{call}.*{reason}"):
        solve(adjoint_options=option)


def test_the_quadrature_adjoint_is_for_odes():
    with pytest.raises(UnsupportedError, match=r"^sdeint_adjoint.*'quadrature'.*Use adjoint_method='aca'"):
        solve(adjoint_method="quadrature")


def test_a_stage_at_a_time():
    with pytest.raises(UnsupportedError, match=r"^sdeint_adjoint.*'graph': 'stage'.*as a whole. Leave out 'graph'"):
        solve(adjoint_options={"graph": "stage"})


@pytest.mark.parametrize("name", ["ACA", "dopri5"])
def test_an_unknown_adjoint_method(name):
    with pytest.raises(OptionError, match=rf"adjoint_method='{name}'\).*steptape's is 'aca'.*'euler'"):
        solve(adjoint_method=name)


class Plain:
    """An SDE that is no module and uses a tensor of its own, in the drift or in the diffusion."""

    sde_type, noise_type = "ito", "diagonal"

    def __init__(self, where="f", hidden=None):
        self.where = where
        self.hidden = (
            torch.tensor([0.5, 0.1, 0.2], dtype=torch.float64, requires_grad=True) if hidden is None else hidden
        )

    def f(self, t, y):
        return self.hidden.exp() * y if self.where == "f" else -y

    def g(self, t, y):
        return self.hidden.exp() * y.cos() if self.where == "g" else y.cos()


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("method", ["euler", "milstein"])
@pytest.mark.parametrize("where", ["f", "g"])
def test_nothing_named_is_a_statement(where, method, create_graph):
    sde, y0 = Plain(where), initial()
    ys = solve(sde, y0, method=method, adjoint_params=())
    found = torch.autograd.grad(ys.sum(), (y0, sde.hidden), create_graph=create_graph, allow_unused=True)
    settings = {"bm": interval("diagonal"), "method": method, "dt": 0.25}
    expected = torchsde.sdeint(sde, y0, [0.0, 1.0], **settings)
    torch.testing.assert_close(found[0], torch.autograd.grad(expected.sum(), y0)[0], rtol=1e-12, atol=0)
    assert found[1] is None


@pytest.mark.parametrize("named", ["scale", "both", "hidden"])
def test_tensors_that_were_computed_from_each_other(named):
    def gradient(solve, **call):
        scale = torch.tensor([0.5, 0.1, 0.2], dtype=torch.float64, requires_grad=True)
        hidden = scale.exp()
        sde = Plain("g", hidden=hidden)
        params = {"scale": (scale,), "both": (hidden, scale), "hidden": (hidden,)}[named]
        return torch.autograd.grad(solve(sde, adjoint_params=params).sum(), scale)

    def host(sde, adjoint_params):
        return torchsde.sdeint(sde, initial(), [0.0, 1.0], bm=interval("diagonal"), method="euler", dt=0.25)

    torch.testing.assert_close(gradient(solve), gradient(host), rtol=1e-12, atol=0)


class Potential(torch.nn.Module):
    """A drift that makes leaves of its own: the gradient of a potential."""

    sde_type, noise_type = "ito", "diagonal"

    def f(self, t, y):
        with torch.enable_grad():
            x = y.detach().requires_grad_()
            return torch.autograd.grad(x.cos().sum(), x)[0] + x.detach().requires_grad_()

    def g(self, t, y):
        return y.sin()


def test_leaves_that_sde_makes_itself_are_no_parameters():
    y0 = initial()
    settings = {"bm": interval("diagonal"), "method": "milstein", "dt": 0.25}
    ours = sdeint_adjoint(Potential(), y0, [0.0, 1.0], adjoint_method="aca", **settings)
    host = torchsde.sdeint(Potential(), y0, [0.0, 1.0], **settings)
    found, expected = (torch.autograd.grad(ys.square().sum(), y0)[0] for ys in (ours, host))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


class Changing(Plain):
    """A drift that counts its calls."""

    calls = 0

    def f(self, t, y):
        self.calls += 1
        return y * self.calls


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("keep", [{}, {"checkpoints": 1}], ids=str)
def test_an_sde_that_changes_between_the_passes(keep, create_graph):
    y0 = initial()
    ys = solve(Changing(where="", hidden=torch.ones(3)), y0, adjoint_params=(), adjoint_options=keep)
    with pytest.raises(GradientError, match=r"sde returned other values in the backward pass.*of its arguments"):
        torch.autograd.grad(ys.sum(), y0, create_graph=create_graph)


class Counted(torch.nn.Module):
    """The evaluations of its drift or its diffusion are counted, by which they go as far as ``weight`` says."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, which, weight, dtype):
        super().__init__()
        self.a, self.seen = torch.nn.Parameter(torch.tensor(0.7, dtype=dtype)), 0
        self.which, self.weight = which, weight

    def _factor(self, which):
        self.seen += which == self.which
        return 1 + self.weight * self.seen

    def f(self, t, y):
        return -self.a * y * self._factor("f")

    def g(self, t, y):
        return 0.3 * torch.sin(self.a * y) * self._factor("g")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("which", ["f", "g"])
def test_values_that_go_by_a_count_of_evaluations(which, dtype):
    """Of each step less than what its end is rounded by. What is counted alone is no matter."""
    y0 = initial().to(dtype)
    solve(Counted(which, 0.0, dtype), y0, bm=interval("diagonal", dtype=dtype), dt=0.1).sum().backward()
    ys = solve(Counted(which, torch.finfo(dtype).eps, dtype), y0, bm=interval("diagonal", dtype=dtype), dt=0.1)
    with pytest.raises(GradientError, match="other values"):
        ys.sum().backward()


class Late(Plain):
    """A drift that uses its own tensor in the last step alone."""

    def f(self, t, y):
        return y * self.hidden if t > 0.7 else y


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_tensor_sde_closes_over_at_last(create_graph):
    y0, sde = initial(), Late(where="")
    found = torch.autograd.grad(solve(sde, y0).sum(), (y0, sde.hidden), create_graph=create_graph)
    expected = torchsde.sdeint(sde, y0, [0.0, 1.0], bm=interval("diagonal"), method="euler", dt=0.25)
    torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), (y0, sde.hidden)), rtol=1e-12, atol=0)


class Forgetful:
    """A Brownian object with a new increment for each query, drawn from a generator of its own."""

    shape = (BATCH, STATE)
    dtype, device = torch.float64, torch.device("cpu")
    levy_area_approximation = "none"

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, ta, tb):
        return torch.randn(self.shape, dtype=self.dtype, generator=self.generator) * (tb - ta).sqrt()


def test_a_brownian_object_that_does_not_repeat_itself():
    solve(bm=Forgetful()).sum().backward()
    ys = solve(bm=Forgetful(), adjoint_options={"checkpoints": 2})
    with pytest.raises(
        GradientError, match=r"'checkpoints'.*answered the same query otherwise.*Leave out 'checkpoints'"
    ):
        ys.sum().backward()


def test_increments_that_require_a_gradient():
    end = torch.ones(BATCH, STATE, dtype=torch.float64, requires_grad=True)
    with pytest.raises(UnsupportedError, match=r"bm=bm.*increments require a gradient.*torchsde.sdeint"):
        solve(bm=torchsde.BrownianInterval(0.0, 1.0, W=end))


class Grabbing(Plain):
    """A diffusion that writes into its increment."""

    def g_prod(self, t, y, v):
        return v.mul_(0.5)


def test_an_increment_that_is_changed_in_place():
    with pytest.raises(UnsupportedError, match=r"changed a Brownian increment in place.*Make a new tensor"):
        solve(Grabbing(where="", hidden=torch.ones(3)), adjoint_params=())


class Decaying(Plain):
    """A drift that writes into the state."""

    def f(self, t, y):
        return y.mul_(0.9).cos()


def test_a_state_that_is_changed_in_place():
    y0 = initial().detach()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    with pytest.raises(UnsupportedError, match=r"changed the state y in place.*Make a new tensor"):
        solve(Decaying(where="", hidden=scale), y0, adjoint_params=(scale,))


def test_a_parameter_that_is_changed_in_place_between_the_passes():
    sde = Sde("ito", "diagonal")
    ys = solve(sde)
    with torch.no_grad():
        sde.drift[0].weight += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ys.sum().backward()


def test_output_times_that_are_changed_in_place_between_the_passes():
    """As a window that is moved on for the next solve: the gradient is that of the times of this one."""

    def gradient(sdeint, moved, **adjoint):
        ts, y0 = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64), initial()
        ys = sdeint(Sde("ito", "diagonal"), y0, ts, bm=interval("diagonal"), method="euler", dt=0.5, **adjoint)
        ts += moved
        return torch.autograd.grad(ys.sum(), y0)

    expected = gradient(torchsde.sdeint, 0)
    for options in ({}, {"memory": "graphs"}):
        found = gradient(sdeint_adjoint, 1, adjoint_method="aca", adjoint_options=options)
        assert distance(found, expected) <= 1e-12


@pytest.mark.parametrize("adjoint_options", [{}, {"checkpoints": 2}, {"memory": "graphs"}], ids=str)
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("since", [0.0, 0.4])
def test_a_penalty_that_is_summed_up_in_an_sde(adjoint_options, noisy, since):
    """Its value is the host's; it is refused where it is differentiated, unless graphs are asked for, as the host's."""

    class Penalised(Sde):
        penalty = 0.0

        def f(self, t, y):
            drift = super().f(t, y)
            drift = torch.nn.functional.dropout(drift, 0.3) if noisy else drift
            if t >= since:
                self.penalty = self.penalty + drift.square().sum()
            return drift

    def solved(sdeint, **adjoint):
        torch.manual_seed(0)
        sde, y0 = Penalised("ito", "diagonal"), initial()
        ys = sdeint(sde, y0, [0.0, 1.0], bm=interval("diagonal"), method="euler", dt=0.25, **adjoint)
        return ys, sde.penalty, y0

    ys, penalty, y0 = solved(torchsde.sdeint)
    ours, found, start = solved(sdeint_adjoint, adjoint_method="aca", adjoint_options=adjoint_options)
    assert torch.equal(ours, ys)
    assert torch.equal(found, penalty)
    if adjoint_options == {"memory": "graphs"}:
        of_penalty = [torch.autograd.grad(x, y, retain_graph=True) for x, y in ((found, start), (penalty, y0))]
        assert distance(*of_penalty) <= 1e-12
    else:
        with pytest.raises(GradientError, match="computed from the state y and stored"):
            torch.autograd.grad(found, start, retain_graph=True)
    expected, gradient = torch.autograd.grad(ys[-1].sum(), y0), torch.autograd.grad(ours[-1].sum(), start)
    assert distance(gradient, expected) <= 1e-12


@pytest.mark.parametrize("since", [0.0, 0.4])
def test_a_penalty_of_what_the_host_takes_a_derivative_of(since):
    class Penalised(Sde):
        penalty = 0.0

        def g(self, t, y):
            out = super().g(t, y)
            if t >= since:
                self.penalty = self.penalty + out.square().sum()
            return out

    sde = Penalised("ito", "diagonal")
    bm = interval("diagonal")
    sdeint_adjoint(sde, initial(), [0.0, 1.0], bm=bm, method="milstein", dt=0.25, adjoint_method="aca")
    with pytest.raises((GradientError, RuntimeError), match=r"from the state y and stored|a second time"):
        sde.penalty.backward()


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp"])
def test_the_transforms_of_torch_func(transform):
    sde = Sde("ito", "diagonal")

    def run(y0):
        return sdeint_adjoint(sde, y0.view(1, STATE), [0.0, 1.0], dt=0.5, adjoint_method="aca").sum()

    y0 = torch.ones(STATE, dtype=torch.float64)
    calls = {
        "grad": lambda: torch.func.grad(run)(y0),
        "vmap": lambda: torch.func.vmap(run)(y0[None]),
        "jvp": lambda: torch.func.jvp(run, (y0,), (y0,)),
    }
    with pytest.raises(UnsupportedError, match=r"torch.func over sdeint_adjoint.*torch.autograd.grad or backward"):
        calls[transform]()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "srk"}, "requires one of .* as the `levy_area_approximation`"),
        ({"method": "midpoint"}, "SDE is of type ito but solver is for type stratonovich"),
        ({"method": "rk4"}, "Expected method in"),
        ({"method": "adjoint_reversible_heun"}, "can only be used for adjoint_method"),
        ({"dt": torch.tensor(0.1, requires_grad=True)}, "Argument dt must not require gradient"),
    ],
    ids=str,
)
def test_what_the_host_rejects_in_its_own_words(settings, words):
    with pytest.raises(ValueError, match=words) as ours:
        solve(**settings)
    settings = {"bm": interval("diagonal"), "method": "euler", **settings}
    with pytest.raises(ValueError, match=words) as host:
        torchsde.sdeint(Sde("ito", "diagonal"), initial(), [0.0, 1.0], **settings)
    assert str(ours.value) == str(host.value)


def test_an_argument_that_neither_has():
    with pytest.warns(UserWarning, match=r"`sdeint_adjoint`: Unexpected arguments \{'steps': 3\}"):
        solve(steps=3)


def test_all_else_works_without_torchsde():
    code = """
import sys
sys.modules["torchsde"] = None
from steptape import UnsupportedHostVersion
from steptape.torch import odeint_adjoint
try:
    from steptape.torch import sdeint_adjoint
except UnsupportedHostVersion as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install -U 'steptape[sde]'" in done.stdout
