"""The clients' own tests, which their wheels hold, by one command in place of pytest's own."""

import re
import subprocess
import sys

import pytest

from steptape_helpers.clients import installed

SUITES = {"stribor": ("stribor.test", 300), "flow_matching": ("tests.solver.test_ode_solver", 4)}
"""Of each client its tests, and a number of solves that they back-propagate through at the least."""

SCRIPT = """
import sys, pytest
from steptape.torch import record_solves

with record_solves() as solves:
    failed = pytest.main(["-q", "-p", "no:cacheprovider", "--pyargs", sys.argv[1]])
print(sum(x.backward_passes > 0 for x in solves), "solves were back-propagated through")
sys.exit(failed)
"""


@pytest.mark.parametrize("client", SUITES)
def test_its_own_tests_pass_where_solves_are_replayed(tmp_path, client, record_property):
    installed(client)
    tests, least = SUITES[client]
    script = tmp_path / "suite.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-P", "-m", "steptape", "run", "--default", "aca", "--override", str(script), tests]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    passed, replayed = re.search(r"(\d+ passed).*?(\d+) solves were back-propagated", done.stdout, re.DOTALL).groups()
    record_property("measured", f"{client}, its own tests: {passed}, {replayed} solves back-propagated through")
    assert int(replayed) >= least
