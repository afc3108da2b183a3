"""SDEs on one Brownian path: both frameworks see it, take the same steps on it, and converge to its closed form."""

import copy
import math
import subprocess
import sys

import numpy as np
import pytest

from steptape import cli
from steptape.shared_tests.backends.backends import METHODS
from steptape.shared_tests.backends.sde_schemes import SCHEMES
from steptape.shared_tests.parity import parity
from steptape.shared_tests.parity.promises import EQUALS_HOST
from steptape.shared_tests.parity.sde_cases import sde_cases
from steptape.shared_tests.parity.sde_compare import SAME_PATH, all_series, check_sdes, closed_form_gradient
from steptape.shared_tests.problems.sde_paths import CELLS, path_values, per_path
from steptape.shared_tests.problems.sde_problems import OUTPUT_TIMES, SDE_PROBLEMS
from steptape.shared_tests.report.sde_table import make_sde_rows
from steptape_helpers.asked import SDE_BACKENDS as BACKENDS
from steptape_helpers.once import once

COMPILED = {("gbm", "milstein"), ("shear", "heun")}
"""What JAX runs here; torch, which compiles nothing, runs everything."""

pytestmark = pytest.mark.skipif(not BACKENDS, reason="no framework for SDEs is installed")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    return once(tmp_path_factory, "sdes", run_all)


def run_all(folder):
    runs, versions, problems = [], {}, tuple(SDE_PROBLEMS)
    for backend in BACKENDS:
        cases = sde_cases(backend, problems, quick=False)
        if backend == "jax":
            cases = [case for case in cases if (case.problem, case.solver) in COMPILED]
        versions[backend], found = parity.run_backend(backend, "sde", cases, folder, lambda *stage: None)
        assert len(found) == len(cases)
        runs += found
    return parity.Outcome(parity.Scope(tuple(BACKENDS), (), problems, False), versions, [], runs)


@pytest.fixture(scope="module")
def series(outcome):
    return all_series(outcome.sde_runs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_path_has_its_values_and_is_linear_between(backend):
    code = f"""if True:
        import numpy as np
        from steptape.shared_tests.problems.sde_paths import path_values, CELLS
        values = path_values(2)
        if {backend!r} == "torch":
            import torch
            from steptape.shared_tests.backends.backend_torch_sde import GridBrownian
            path = GridBrownian(torch.from_numpy(values))
            at = lambda *times: path(*times).numpy()
            assert path.shape == (len(values), 2)
        else:
            import jax
            from steptape.shared_tests.backends.backend_jax_sde import GridBrownian
            at = lambda *times: jax.vmap(lambda v: GridBrownian(values=v).evaluate(*times))(jax.numpy.asarray(values))
        for k in (0, 1, 700, CELLS - 1):
            np.testing.assert_array_equal(at(k / CELLS), values[:, k])
            np.testing.assert_allclose(at((k + 0.25) / CELLS), 0.75 * values[:, k] + 0.25 * values[:, k + 1], 1e-12)
        np.testing.assert_allclose(at(1.0), values[:, -1], 1e-12)
        np.testing.assert_array_equal(at(0.125, 0.25), values[:, CELLS // 4] - values[:, CELLS // 8])
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_increments_are_those_of_a_brownian_motion():
    increments = np.diff(path_values(3), axis=1)
    assert abs(increments.mean()) < 5 * CELLS**-0.5 / increments.size**0.5
    assert increments.var() == pytest.approx(1 / CELLS, rel=0.01)
    assert abs(np.corrcoef(increments.reshape(-1, 3).T) - np.eye(3)).max() < 0.01


@pytest.mark.parametrize("name", [name for name, problem in SDE_PROBLEMS.items() if problem.closed_form])
def test_a_closed_form_solves_its_equation_along_the_path(name):
    """On a path linear in each cell the Stratonovich equation is an ODE in it: here the slope in the last cell."""
    problem = SDE_PROBLEMS[name]
    y0, params = per_path(problem.y0), per_path(problem.params)
    cells, half = 300, path_values(problem.channels)[:, :302]
    ends = [problem.closed_form(k / CELLS, half[:, : k + 1], y0, params, False) for k in (cells, cells + 1)]
    middle, dw = (ends[0] + ends[1]) / 2, half[:, cells + 1] - half[:, cells]
    noise = problem.diffusion(0.0, middle, params)
    product = noise * dw if problem.noise == "diagonal" else np.einsum("bij,bj->bi", noise, dw)
    change = problem.drift(0.0, middle, params) / CELLS + product
    np.testing.assert_allclose(ends[1] - ends[0], change, atol=np.abs(dw).max() ** 3)
    start = problem.closed_form(1e-12, half[:, :1].repeat(2, axis=1), y0, params, True)
    np.testing.assert_allclose(start, y0, rtol=1e-10)


def test_the_gradient_of_a_closed_form_is_what_one_finds_by_hand():
    """Of y0 exp(at + σW), with a for the growth rate in either calculus."""
    mu, sigma, y0 = 0.2, 0.3, 1.0
    for ito in (False, True):
        gradient = closed_form_gradient("gbm", ito)
        w = {t: path_values(2)[:, round(t * CELLS), 0] for t in OUTPUT_TIMES}
        y = {t: y0 * np.exp((mu - ito * sigma**2 / 2) * t + sigma * w[t]) for t in OUTPUT_TIMES}
        np.testing.assert_allclose(gradient["y0"][::2], sum(y[t] ** 2 for t in OUTPUT_TIMES) / y0, rtol=1e-13)
        np.testing.assert_allclose(gradient["params"][::4], sum(y[t] ** 2 * t for t in OUTPUT_TIMES), rtol=1e-13)
        by_sigma = sum(y[t] ** 2 * (w[t] - ito * sigma * t) for t in OUTPUT_TIMES)
        np.testing.assert_allclose(gradient["params"][2::4], by_sigma, rtol=1e-12, atol=1e-14)


def test_aca_is_the_hosts_own_backpropagation_on_the_same_path(series):
    assert {one.backend for one in series} == set(BACKENDS)
    for one in series:
        assert one.failure == ""
        assert one.host_difference is not None
        assert one.host_difference < 1e-12, one.setting
        assert one.bit_identical


@pytest.mark.skipif(len(BACKENDS) < 2, reason="compares two frameworks")
def test_both_frameworks_give_one_gradient_on_the_same_path(series):
    compared = {(one.problem, one.scheme): one.cross_difference for one in series if one.backend == "jax"}
    assert set(compared) == COMPILED
    assert max(compared.values()) < 1e-12


def test_gradients_converge_at_the_order_of_the_scheme(series):
    orders = {(one.problem, one.scheme, one.backend): (one.order, one.expected_order) for one in series if one.points}
    assert len(orders) >= (22 if "torch" in BACKENDS else 2)
    for key, (order, expected) in orders.items():
        assert abs(order - expected) < 0.25, key


def test_every_promise_is_judged_and_holds(series):
    checks = check_sdes(series)
    assert [check for check in checks if not check.holds] == []
    promises = {check.promise for check in checks}
    assert {"gives a gradient", EQUALS_HOST, "forward bit-identical to the host's"} < promises
    assert (SAME_PATH in promises) is (len(BACKENDS) == 2)


def test_the_report_has_a_section_and_a_plot(monkeypatch, tmp_path, outcome, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("rich")
    monkeypatch.setattr(parity, "run_parity", lambda *arguments: outcome)
    assert cli.main(["parity", "--problem", "gbm", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "parity.md").read_text(encoding="utf-8")
    assert "## SDEs on the same Brownian path" in text
    assert "| latent | strat_milstein |" in text
    assert "sde-error-against-step.png" in text
    assert (tmp_path / "sde-error-against-step.png").stat().st_size > 1000
    assert "  strat_milstein " in capsys.readouterr().out


@pytest.mark.parametrize("part", ["y0", "params"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wrong_gradient_breaks_a_promise(monkeypatch, tmp_path, outcome, capsys, backend, part):
    pytest.importorskip("matplotlib")
    pytest.importorskip("rich")
    spoiled = copy.copy(outcome)
    spoiled.sde_runs = copy.deepcopy([run for run in outcome.sde_runs if run.case.problem == "gbm"])
    ours = METHODS[backend][0].name
    run = next(run for run in spoiled.sde_runs if (run.backend, run.case.method) == (backend, ours))
    run.gradient[part] = [x * (1 + 1e-10) for x in run.gradient[part]]
    monkeypatch.setattr(parity, "run_parity", lambda *arguments: spoiled)
    assert cli.main(["parity", "--problem", "gbm", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert f"broken: {EQUALS_HOST}: {backend}, gbm" in printed
    assert "BROKEN" in printed


def test_a_scheme_that_does_not_converge_breaks_a_promise(outcome):
    spoiled = copy.deepcopy([run for run in outcome.sde_runs if run.case.problem == "shear"])
    for run in spoiled:
        run.gradient["y0"] = [x + 10 for x in run.gradient["y0"]]
    broken = {check.promise for check in check_sdes(all_series(spoiled)) if not check.holds}
    assert broken == {"converges to the closed form at the scheme's order"}


def test_a_run_without_a_gradient_breaks_a_promise(outcome):
    spoiled = copy.deepcopy([run for run in outcome.sde_runs if run.case.problem == "shear"])
    spoiled[0].failure, spoiled[0].gradient = "RuntimeError: lost the tape", {}
    [check] = [check for check in check_sdes(all_series(spoiled)) if not check.holds]
    assert (check.error, check.reason) == (math.inf, "RuntimeError: lost the tape")


def test_where_the_host_has_no_gradient_nothing_is_called_exact(outcome):
    spoiled = copy.deepcopy([run for run in outcome.sde_runs if run.case.problem == "shear"])
    for run in spoiled:
        if run.case.method != METHODS[run.backend][0].name:
            run.failure, run.gradient = "RuntimeError: out of memory", {}
    series = all_series(spoiled)
    checks = check_sdes(series)
    assert all(check.holds for check in checks)
    assert not any(check.promise == EQUALS_HOST for check in checks)
    assert {row.status for row in make_sde_rows(series, checks)} == {"unjudged"}


def test_without_torchsde_torch_has_no_sdes(monkeypatch, capsys):
    find_spec = cli.importlib.util.find_spec
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None if name == "torchsde" else find_spec(name))
    assert sde_cases("torch", tuple(SDE_PROBLEMS), quick=False) == []
    if "torch" in BACKENDS:
        assert cli.main(["parity", "--backend", "torch", "--problem", "gbm"]) == 2
        assert "needs torchsde, which is not installed: pip install 'steptape[sde]'" in capsys.readouterr().err


def test_schemes_are_listed_only_where_both_hosts_agree_on_them():
    solved = {name: [s.name for s in SCHEMES.values() if s.solves(problem)] for name, problem in SDE_PROBLEMS.items()}
    assert "milstein" in solved["gbm"]
    assert "milstein" not in solved["spiral"]
    assert "milstein" not in solved["shear"]
