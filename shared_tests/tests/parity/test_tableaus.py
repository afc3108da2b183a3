"""Where the hosts' solvers are the same method, and where they are not.

torchdiffeq's tableaus are measured from outside: a field whose i-th call returns the i-th unit vector makes the
state a list of coefficients.
"""

import numpy as np
import pytest

from steptape.shared_tests.backends.backends import SHARED_SOLVERS, SOLVERS

torch = pytest.importorskip("torch")
torchdiffeq = pytest.importorskip("torchdiffeq")
diffrax = pytest.importorskip("diffrax")

TORCH = {solver.name: solver for solver in SOLVERS["torch"]}
JAX = {solver.name: solver for solver in SOLVERS["jax"]}
CARRYING = ("fehlberg2", "adaptive_heun")


def torch_calls(name, steps=1):
    """The calls (t, y) that `steps` steps of size 1 make of the field, and the state at the end."""
    calls = []

    def field(t, y):
        calls.append((t.item(), y.tolist()))
        return torch.eye(32, dtype=torch.float64)[len(calls) - 1]

    t = torch.tensor([0.0, float(steps)], dtype=torch.float64)
    points = torch.arange(steps + 1, dtype=torch.float64)
    options = (
        {"step_t": points[1:], "first_step": 2.0}
        if TORCH[name].adaptive
        else {"grid_constructor": lambda func, y0, t: points}
    )
    y0 = torch.zeros(32, dtype=torch.float64)
    end = torchdiffeq.odeint(field, y0, t, rtol=1e200, atol=1e200, method=TORCH[name].host_name, options=options)
    return calls, end[-1].tolist()


def torch_tableau(name):
    calls, end = torch_calls(name)
    stages = len(calls)
    a = np.array([y[:stages] for _, y in calls])
    c = np.array([t for t, _ in calls])
    return a, np.array(end[:stages]), c


def jax_tableau(name):
    if name == "euler":
        return np.zeros((1, 1)), np.ones(1), np.zeros(1)
    tableau = getattr(diffrax, JAX[name].host_name).tableau
    a = np.zeros((tableau.num_stages, tableau.num_stages))
    for i, row in enumerate(tableau.a_lower):
        a[i + 1, : i + 1] = row
    return a, tableau.b_sol, np.concatenate([[0.0], tableau.c])


@pytest.mark.parametrize("name", SHARED_SOLVERS)
def test_shared_solvers_have_the_same_coefficients(name):
    for ours, theirs in zip(torch_tableau(name), jax_tableau(name), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=4e-15)


@pytest.mark.parametrize("name", ["dopri5", "bosh3", "dopri8"])
def test_shared_embedded_pairs_estimate_the_same_error(name):
    host = pytest.importorskip("steptape.compat._torchdiffeq")
    ours = host.SOLVERS[name].tableau.c_error.numpy()
    np.testing.assert_allclose(ours, getattr(diffrax, JAX[name].host_name).tableau.b_error, rtol=0, atol=1e-15)


def test_every_solver_both_hosts_have_is_shared():
    assert set(SHARED_SOLVERS) == set(TORCH) & set(JAX)


@pytest.mark.parametrize("name", ["heun3", "rk4", "fehlberg2"])
def test_torch_alone_has_these_coefficients(name):
    a, b, _ = torch_tableau(name)
    for other in JAX:
        other_a, other_b, _ = jax_tableau(other)
        same = a.shape == other_a.shape and np.allclose(a, other_a) and np.allclose(b, other_b)
        assert not same, f"{name} is diffrax's {other}"


@pytest.mark.parametrize("name", ["dopri5", "bosh3", "dopri8"])
def test_the_carried_stage_is_the_slope_at_the_end_of_the_step(name):
    calls, _ = torch_calls(name, steps=2)
    stages = (len(calls) + 1) // 2
    a, b, c = torch_tableau(name)
    assert c[-1] == pytest.approx(1.0, abs=1e-15)
    np.testing.assert_allclose(a[-1], b, rtol=0, atol=4e-15)
    assert len(b) == stages


@pytest.mark.parametrize("name", CARRYING)
def test_torch_carries_a_stage_that_is_not_at_the_end_of_the_step(name):
    calls, _ = torch_calls(name, steps=2)
    a, b, _ = torch_tableau(name)
    assert len(calls) == 2 * len(b) - 1, "the second step evaluates no first stage"
    assert abs(a[-1] - b).max() > 1e-3, "and the stage it is given was evaluated elsewhere"


def test_adaptive_heun_differs_from_heun_from_the_second_step_on():
    for steps, same in ((1, True), (2, False)):
        _, carried = torch_calls("adaptive_heun", steps)
        _, plain = torch_calls("heun", steps)
        assert np.allclose(np.sum(carried), np.sum(plain))
        assert np.allclose(carried, plain) is same


@pytest.mark.parametrize(("name", "same"), [("dopri5", True), ("bosh3", False), ("dopri8", False)])
def test_interpolants_are_shared_by_dopri5_alone(name, same):
    jax = pytest.importorskip("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        inside = diffrax_inside(name)
    finally:
        jax.config.update("jax_enable_x64", before)
    assert (abs(torch_inside(name) - inside) < 1e-14) is same


def torch_inside(name):
    """The interpolated solution of y' = -t y at 0.3 within one step from 0 to 1."""
    t = torch.tensor([0.0, 0.3], dtype=torch.float64)
    y0 = torch.ones(1, dtype=torch.float64)
    options = {"first_step": 1.0}
    ys = torchdiffeq.odeint(
        lambda t, y: -t * y, y0, t, rtol=1e200, atol=1e200, method=TORCH[name].host_name, options=options
    )
    return ys[-1].item()


def diffrax_inside(name):
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: -t * y),
        getattr(diffrax, JAX[name].host_name)(),
        0.0,
        1.0,
        1.0,
        1.0,
        saveat=diffrax.SaveAt(ts=[0.3]),
    )
    return float(solution.ys[0])
