"""`steptape parity`: one small run end to end, then what a broken promise, a failing peer and a bad call lead to."""

import copy
import io
import json
import math
import re

import pytest

from steptape import cli
from steptape.shared_tests.backends.backends import CAPABILITIES, METHODS, Case, Run
from steptape.shared_tests.parity import parity
from steptape.shared_tests.parity.compare import Comparison, relative_error
from steptape.shared_tests.problems.make_references import load_references
from steptape_helpers.asked import BACKENDS
from steptape_helpers.once import once

pytest.importorskip("matplotlib")
Console = pytest.importorskip("rich.console").Console
report = pytest.importorskip("steptape.shared_tests.report.report")

PROBLEM = "van_der_pol_stiff"
both_backends = pytest.mark.skipif(len(BACKENDS) < 2, reason="compares two frameworks")

pytestmark = pytest.mark.skipif(not BACKENDS, reason="no framework is installed")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The exit code, the folder and the outcome of a quick run on one problem, asked for on the command line."""
    return once(tmp_path_factory, "parity", run_on_the_command_line)


def run_on_the_command_line(folder):
    kept: dict[str, parity.Outcome] = {}

    def keep(scope, *rest):
        kept["outcome"] = run_parity(scope, *rest)
        return kept["outcome"]

    run_parity = parity.run_parity
    parity.run_parity = keep
    try:
        asked = [word for name in BACKENDS for word in ("--backend", name)]
        code = cli.main(["parity", "--quick", *asked, "--problem", PROBLEM, "--out", str(folder)])
    finally:
        parity.run_parity = run_parity
    return code, folder, kept["outcome"]


@pytest.fixture
def outcome(ran):
    """A copy of the outcome, to be spoiled."""
    return copy.deepcopy(ran[2])


def run_again(monkeypatch, tmp_path, outcome):
    """The exit code of the command line where the runs come to `outcome`."""
    monkeypatch.setattr(parity, "run_parity", lambda *arguments: outcome)
    return cli.main(["parity", "--quick", "--problem", PROBLEM, "--out", str(tmp_path)])


def pick(outcome, backend, method, grade):
    return next(
        run for run in outcome.runs if (run.backend, run.case.method, run.case.grade) == (backend, method, grade)
    )


def test_all_promises_hold_and_the_exit_code_says_so(ran):
    code, folder, outcome = ran
    assert report.Report.of(outcome, 0.0).broken == []
    assert code == 0
    for name in ("parity.json", "parity.md", "error-against-evaluations.png", "error-per-method.png"):
        assert (folder / name).stat().st_size > 1000


def test_the_backends_asked_for_really_ran(ran):
    _, folder, outcome = ran
    data = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
    assert sorted(data["versions"]) == sorted(BACKENDS)
    for backend in BACKENDS:
        host = {"torch": "torchdiffeq", "jax": "diffrax"}[backend]
        assert data["versions"][backend][host]
        for method in METHODS[backend]:
            runs = [run for run in outcome.runs if (run.backend, run.case.method) == (backend, method.name)]
            assert runs, method
            if method.oracle or method.on_given_grid:
                assert all(run.gradient and run.loss > 0 for run in runs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_promise_is_judged_on_aca(ran, backend):
    checks = report.Report.of(ran[2], 0.0).checks
    promises = {check.promise for check in checks if check.backend in (backend, "both")}
    assert "gives a gradient" in promises
    assert "equals the host's back-propagation" in promises
    assert "equals the host's back-propagation in the times" in promises
    assert "forward bit-identical to the host's" in promises
    assert "within 10 tolerances of the reference" in promises
    assert ("torch equals JAX on the same grid" in promises) is (len(BACKENDS) == 2)


def test_a_failing_peer_is_shown_and_does_not_change_the_exit_code(ran):
    code, folder, outcome = ran
    rows = {(row.backend, row.method): row for row in report.Report.of(outcome, 0.0).rows}
    peers = {"torch": "adjoint", "jax": "backsolve"}
    text = (folder / "parity.md").read_text(encoding="utf-8")
    for backend in BACKENDS:
        row = rows[backend, peers[backend]]
        assert row.failing
        assert row.status == "fails 3/3"
        assert row.note in text
    assert code == 0


def test_the_table_names_the_reason_of_a_failure(monkeypatch, tmp_path, outcome, capsys):
    backend = BACKENDS[0]
    run = pick(outcome, backend, METHODS[backend][1].name, "adaptive")
    run.failure, run.gradient = "AssertionError: out of ink", {}
    run_again(monkeypatch, tmp_path, outcome)
    printed = capsys.readouterr().out
    assert "out of ink" in printed
    assert "fails 1/5" in printed


@pytest.mark.parametrize("part", ["y0", "params", "times"])
@pytest.mark.parametrize("grade", ["adaptive", "grid"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_broken_gradient_exits_with_one(monkeypatch, tmp_path, outcome, capsys, backend, grade, part):
    pick(outcome, backend, "aca", grade).gradient[part][0] *= 1 + 1e-10
    assert run_again(monkeypatch, tmp_path, outcome) == 1
    promise = "equals the host's back-propagation" + " in the times" * (part == "times")
    assert f"broken: {promise}: {backend}, {PROBLEM}, dopri5" in capsys.readouterr().out


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_changed_forward_result_exits_with_one(monkeypatch, tmp_path, outcome, capsys, backend):
    run = pick(outcome, backend, "aca", "adaptive")
    run.ys[-1][0] = math.nextafter(run.ys[-1][0], math.inf)
    assert run_again(monkeypatch, tmp_path, outcome) == 1
    assert "broken: forward bit-identical to the host's" in capsys.readouterr().out


@pytest.mark.parametrize("backend", BACKENDS)
def test_aca_without_a_gradient_exits_with_one(monkeypatch, tmp_path, outcome, capsys, backend):
    run = pick(outcome, backend, "aca", "grid")
    run.failure, run.gradient = "RuntimeError: lost the tape", {}
    assert run_again(monkeypatch, tmp_path, outcome) == 1
    assert "lost the tape" in capsys.readouterr().out


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_the_host_has_no_gradient_nothing_is_called_exact(monkeypatch, tmp_path, outcome, capsys, backend):
    oracle = METHODS[backend][0].oracle
    for run in outcome.runs:
        if (run.backend, run.case.method) == (backend, oracle):
            run.failure, run.gradient = "RuntimeError: out of memory", {}
    run_again(monkeypatch, tmp_path, outcome)
    [line] = [line for line in capsys.readouterr().out.splitlines() if f"{backend} aca" in line]
    assert "unjudged" in line


@both_backends
def test_frameworks_that_differ_on_one_grid_exit_with_one(monkeypatch, tmp_path, outcome, capsys):
    for method in ("aca", "backprop"):
        pick(outcome, "torch", method, "grid").gradient["y0"][0] *= 1 + 1e-7
    assert run_again(monkeypatch, tmp_path, outcome) == 1
    printed = capsys.readouterr().out
    assert "broken: torch equals JAX on the same grid" in printed
    assert "broken: equals the host's back-propagation" not in printed


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_far_from_the_reference_exits_with_one(monkeypatch, tmp_path, outcome, capsys, backend):
    for run in outcome.runs:
        if run.backend == backend and run.case.method in ("aca", "backprop", "recursive") and run.case.rtol == 1e-6:
            run.gradient["params"][0] *= 1 + 2e-5
    assert run_again(monkeypatch, tmp_path, outcome) == 1
    assert "broken: within 10 tolerances of the reference" in capsys.readouterr().out


def test_a_gradient_wrong_by_orders_of_magnitude_is_a_failure(outcome):
    reference = load_references()[PROBLEM]["gradient"]
    backend = BACKENDS[0]
    peer = METHODS[backend][2].name
    near, wrong = ({part: [scale * x for x in reference[part]] for part in ("y0", "params")} for scale in (1.0001, 3))
    comparison = Comparison(outcome)
    case = Case(PROBLEM, peer, "dopri5", 1e-6)
    assert comparison.failure(Run(backend, case, gradient=near)) == ""
    assert comparison.failure(Run(backend, case, gradient=wrong)) == "wrong: off by 2"


@both_backends
def test_both_frameworks_count_the_same_evaluations_on_the_same_grid(ran):
    comparison = Comparison(ran[2])
    counted = 0
    for run in ran[2].runs:
        other = comparison.counterpart(run)
        if run.backend == "jax" and run.case.grid and other:
            assert run.forward_evaluations == other.forward_evaluations > 0
            counted += 1
    assert counted == 4


@both_backends
def test_frameworks_agree_to_tolerance_on_their_own_steps(ran):
    rows = {(row.backend, row.method): row for row in report.Report.of(ran[2], 0.0).rows}
    for backend, method in (("torch", "aca"), ("torch", "backprop"), ("jax", "aca"), ("jax", "recursive")):
        row = rows[backend, method]
        assert row.adaptive_error < 1e-5
        assert row.grid_error < 1e-12


def test_a_given_grid_is_the_grid_that_was_walked(ran):
    given = [run for run in ran[2].runs if run.case.grid]
    assert given
    for run in given:
        assert tuple(run.grid) == run.case.grid


def test_the_capability_table_knows_what_cannot_be_done():
    assert CAPABILITIES["torch", "adjoint", "euler"].grades == ()
    assert CAPABILITIES["torch", "aca", "euler"].grades == ("grid",)
    assert CAPABILITIES["jax", "aca", "dopri5"].grades == ("adaptive", "grid")
    assert CAPABILITIES["jax", "backsolve", "dopri5"].grades == ("adaptive",)


def test_a_process_that_dies_leaves_failures_with_a_reason(tmp_path):
    cases = [Case(PROBLEM, "aca", "dopri5", 1e-6)]
    versions, runs = parity.run_backend("nothing", "adaptive", cases, tmp_path, lambda *stage: None)
    assert versions == {}
    assert [run.case for run in runs] == cases
    assert "the process ended with code 1, see nothing-adaptive.log" in runs[0].failure


def test_relative_error_takes_the_worst_part_and_nothing_is_infinite():
    one, other = {"y0": [1.0, 0.0], "params": [2.0]}, {"y0": [1.0, 0.0], "params": [1.0], "times": [5.0]}
    assert relative_error(one, other) == 1.0
    assert relative_error(one, other, ("y0",)) == 0.0
    assert relative_error({}, other) == math.inf


def test_progress_is_bars_on_a_terminal_and_lines_elsewhere():
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=is_terminal, width=80)
        with report.showing_progress(console) as on_progress:
            for finished in range(4):
                on_progress("torch", "grid", finished, 3)
        shown = console.file.getvalue()
        assert "torch, same grid" in shown
        assert ("━" in shown) is is_terminal
        assert ("3 of 3 runs" in shown) is not is_terminal


def test_an_unknown_problem_is_named(capsys):
    assert cli.main(["parity", "--problem", "four_body"]) == 2
    assert "--problem four_body: no such problem; there are exponential," in capsys.readouterr().err


def test_an_unknown_backend_is_refused(capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["parity", "--backend", "theano"])
    assert exit_info.value.code == 2
    assert "invalid choice: 'theano'" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_named(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    assert cli.main(["parity", "--out", str(file)]) == 2
    assert f"--out {file}: cannot make this folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("hidden", "asked", "message"),
    [
        ({"diffrax"}, ["--backend", "jax"], "--backend jax needs diffrax, .* pip install 'steptape\\[jax\\]'"),
        ({"torchdiffeq"}, ["--backend", "torch"], "needs torchdiffeq, .* pip install 'steptape\\[torch\\]'"),
        ({"diffrax", "torchdiffeq"}, [], "neither torchdiffeq nor diffrax: .*steptape\\[all\\]"),
        ({"rich", "matplotlib"}, [], "needs matplotlib, rich, not installed: pip install 'steptape\\[report\\]'"),
    ],
)
def test_what_is_not_installed_is_named_with_the_way_to_install_it(monkeypatch, capsys, hidden, asked, message):
    find_spec = cli.importlib.util.find_spec
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None if name in hidden else find_spec(name))
    assert cli.main(["parity", *asked]) == 2
    assert re.search(message, capsys.readouterr().err)
