"""stribor: a continuous flow keeps ``odeint_adjoint`` in itself and passes a tuple and options of the solver, no adjoint."""

import re
import subprocess
import sys

import pytest
import torch

from steptape_helpers.clients import installed
from steptape_helpers.torch_clients import assert_trains_as_by_back_propagation

stribor = installed("stribor")

SOLVERS = {"dopri5": {"first_step": 0.1}, "rk4": {"step_size": 0.1}}

SUITE = """
import sys, pytest
from steptape.torch import record_solves

with record_solves() as solves:
    failed = pytest.main(["-q", "-p", "no:cacheprovider", "--pyargs", "stribor.test"])
print(len(solves), "solves, of which", sum(x.backward_passes > 0 for x in solves), "were back-propagated through")
sys.exit(failed)
"""


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("divergence", ["approximate", "compute"])
def test_a_continuous_flow(solver, divergence):
    def make(**how):
        net = stribor.net.DiffeqMLP(2 + 3 + 1, [16], 2)
        settings = {"solver": solver, "solver_options": SOLVERS[solver], "divergence": divergence, "has_latent": True}
        flow = stribor.ContinuousTransform(2, net=net, **settings, **how)
        encoder = torch.nn.Linear(4, 3)

        def loss():
            x, log_det = flow.inverse_and_log_det_jacobian(torch.randn(6, 2), latent=encoder(torch.randn(6, 4)))
            return x.square().mean() - log_det.mean()

        return torch.nn.ModuleList([flow, encoder]), loss

    name = f"stribor, ContinuousTransform, {solver}, {divergence} divergence"
    assert_trains_as_by_back_propagation(name, make, {"use_adjoint": False})


def test_its_own_tests_pass_where_every_solve_is_replayed(tmp_path):
    script = tmp_path / "suite.py"
    script.write_text(SUITE)
    command = [sys.executable, "-P", "-m", "steptape", "run", "--default", "aca", "--override", str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    replayed = int(re.search(r"of which (\d+) were back-propagated", done.stdout)[1])
    assert re.search(r"\d+ passed", done.stdout)
    assert not re.search(r"\d+ failed", done.stdout)
    assert replayed > 300
