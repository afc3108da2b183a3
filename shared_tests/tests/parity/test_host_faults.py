"""A parity report shows where a host's own gradient is known to be wrong, and ours beside it, which has to be right."""

import copy
import re
from pathlib import Path

import pytest

from steptape.shared_tests.parity import parity
from steptape.shared_tests.problems.host_faults import FAULTS
from steptape_helpers.asked import BACKENDS as ASKED
from steptape_helpers.once import once

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
report = pytest.importorskip("steptape.shared_tests.report.report")

ROOT = Path(__file__).resolve().parents[3]
BACKENDS = tuple(ASKED)

pytestmark = pytest.mark.skipif(not BACKENDS, reason="no framework is installed")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """The faults of every host that is installed, run as a report runs them."""
    scope = parity.Scope(BACKENDS, (), (), quick=True, faults=True)
    return once(tmp_path_factory, "faults", lambda folder: parity.run_parity(scope, folder, lambda *stage: None))


def test_a_report_of_all_problems_includes_the_faults_and_one_of_named_problems_does_not():
    assert parity.Scope.of(list(BACKENDS), [], quick=True).faults
    assert parity.Scope.of(list(BACKENDS), [], quick=False).faults
    assert not parity.Scope.of(list(BACKENDS), ["mlp"], quick=True).faults


def test_ours_is_right_where_the_host_is_wrong_by_a_thousandth_and_more(outcome):
    rows = {(row.problem, row.method): row for row in report.Report.of(outcome, 0.0).fault_rows}
    for problem, fault in FAULTS.items():
        if fault.backend in BACKENDS:
            assert not rows[problem, "aca"].failing
            assert rows[problem, fault.peer].failing
            assert rows[problem, fault.peer].error > 1e-3


def test_the_page_names_each_fault_and_the_report_of_it(outcome):
    page = report.as_markdown(report.Report.of(outcome, 0.0), [])
    for row in (line for line in page.splitlines() if re.search(r"\| wrong \|", line)):
        (told,) = re.findall(r"docs/host-issues/[\w-]+\.md", row)
        assert (ROOT / told).exists() or not (ROOT / "docs").exists()
    assert page.count("| wrong |") == page.count("| right |") == len(BACKENDS)


def test_the_hosts_failing_breaks_no_promise_and_ours_would(outcome):
    assert report.Report.of(outcome, 0.0).broken == []
    for run in (spoiled := copy.deepcopy(outcome)).host_runs:
        run.gradient["params"][0] *= 1 + 1e-8
    assert len(report.Report.of(spoiled, 0.0).broken) == len(BACKENDS)
    for run in (spoiled := copy.deepcopy(outcome)).host_runs:
        run.failure, run.gradient = "RuntimeError: lost the tape", {}
    assert len(report.Report.of(spoiled, 0.0).broken) == len(BACKENDS)
