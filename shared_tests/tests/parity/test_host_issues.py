"""What the docs say of the hosts' own wrong gradients is still so: the reports' scripts fail as the reports say.

Where one of these tests fails because the host is right, the host has been mended: take its page out of docs/, its row
out of `host_faults.py` and its sentences out of the README and docs/support.md.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ISSUES = Path(__file__).resolve().parents[3] / "docs" / "host-issues"

pytestmark = pytest.mark.skipif(not ISSUES.exists(), reason="the tests run without the docs beside them")


def printed(name):
    """The lines that a report's script prints; its last check, that the host is right, has to fail."""
    ran = subprocess.run([sys.executable, "-P", ISSUES / name], capture_output=True, text=True, check=False)
    assert ran.returncode, f"the host gives the right gradient now, so docs/host-issues/ is out of date: {ran.stdout}"
    assert ran.stderr.rstrip().endswith("AssertionError: gradients are wrong"), ran.stderr
    return ran.stdout.splitlines()


def numbers(text):
    return [float(found) for found in re.findall(r"-?\d+\.\d+(?:e-?\d+)?|\d+e-\d+", text)]


def told(name):
    """The first table of a report, as lines of numbers."""
    table = (ISSUES / name).read_text(encoding="utf-8").partition("|---")[2].partition("\n")[2].partition("\n\n")[0]
    return [numbers(line) for line in table.splitlines()]


# By default the table of faults has it: `test_host_faults.py`.
@pytest.mark.full
def test_equinox_s_checkpointed_loop_loses_outputs_as_its_report_says():
    pytest.importorskip("diffrax")
    *lines, errors = printed("equinox-checkpointed-loop.py")
    ten_steps = [(12.4166, 15.9595)]
    for line, (few, many) in zip(
        lines, ten_steps + [row[:2] for row in told("equinox-checkpointed-loop.md")], strict=True
    ):
        assert numbers(line) == pytest.approx([few, many, many], rel=1e-5)
    assert min(numbers(errors)) > 0.01


@pytest.mark.full
def test_torchdiffeq_s_first_step_takes_part_in_back_propagation_as_its_report_says():
    pytest.importorskip("torchdiffeq")
    for line, row in zip(printed("torchdiffeq-first-step.py"), told("torchdiffeq-first-step.md"), strict=True):
        tolerance, as_tensor, as_number, held = numbers(line)
        assert tolerance == row[0]
        assert as_number == pytest.approx(row[2], rel=0.1)
        assert max(as_tensor, held) < 20 * tolerance


@pytest.mark.full
def test_torchsde_s_ito_adjoint_is_as_wrong_in_smaller_steps_as_its_report_says():
    pytest.importorskip("torchsde")
    for line, row in zip(printed("torchsde-ito-adjoint.py"), told("torchsde-ito-adjoint.md"), strict=True):
        assert numbers(line)[0] == row[0]
        assert numbers(line)[1] < 1e-12
        assert numbers(line)[2] == pytest.approx(row[2], rel=0.1)


# By default the report of the stiff oscillator has it: `test_parity.py`.
@pytest.mark.full
def test_torchdiffeq_s_adjoint_explodes_or_fails_on_a_stiff_solution():
    pytest.importorskip("torchdiffeq")
    lines = printed("torchdiffeq-stiff-adjoint.py")
    assert "adjoint inf" in lines[0]
    assert numbers(lines[1])[1] < 1e-7
    assert float(lines[1].split()[-1]) > 1e9
