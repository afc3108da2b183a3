"""``steptape run``: an unedited training script in a process of its own, its gradient against back-propagation's."""

import json
import os
import subprocess
import sys

import pytest

TORCH = """
import json, sys
import torch
{imports}

class Model(torch.nn.Module):
    noise_type, sde_type = "diagonal", "stratonovich"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()

    def forward(self, t, y):
        return self.net(y)

    f = forward

    def g(self, t, y):
        return 0.1 * self.net(y)

def train(solve, **options):
    model, y0, t = Model(), torch.ones(3, 2).double(), torch.linspace(0, 1, 3).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        ys = solve(model, y0, t, {call}, **options)
        ys[-1].square().sum().backward()
        optimizer.step()
    return [x for p in model.parameters() for x in p.grad.flatten().tolist()]

def main():
    trained = [train(x, **{{}}) for x in ({functions})], train({named})
    print(json.dumps([__name__, sys.argv[1:], "jax" in sys.modules, trained]))

if __name__ == "__main__":
    main()
"""

SCRIPTS = {
    "torchdiffeq": TORCH.format(
        imports="from torchdiffeq import odeint_adjoint as odeint\nimport torchdiffeq",
        call='rtol=1e-3, atol=1e-3, method="dopri5", options={"first_step": 0.1}',
        functions="odeint, torchdiffeq.odeint",
        named='odeint, adjoint_method="dopri5", adjoint_options={}',
    ),
    "torchsde": TORCH.format(
        imports="import torchsde",
        call="torchsde.BrownianInterval(0.0, 1.0, size=(3, 2), dtype=torch.float64, entropy=1), dt=0.1, method='heun'",
        functions="torchsde.sdeint_adjoint, torchsde.sdeint",
        named='torchsde.sdeint_adjoint, adjoint_method="midpoint"',
    ),
    "diffrax": """
import json, sys
import jax, jax.numpy as jnp
from diffrax import DirectAdjoint, ODETerm, PIDController, Tsit5, diffeqsolve

jax.config.update("jax_enable_x64", True)

def loss(w, named):
    controller = PIDController(rtol=1e-3, atol=1e-3)
    term = ODETerm(lambda t, y, w: jnp.tanh(w @ y))
    sol = diffeqsolve(term, Tsit5(), 0.0, 1.0, 0.1, jnp.ones(2), w, stepsize_controller=controller, max_steps=64,
                      **named)
    return jnp.sum(sol.ys**2)

def train(**named):
    w, gradient = jnp.array([[0.1, 0.7], [-0.6, 0.2]]), jax.jit(jax.grad(lambda w: loss(w, named)))
    for _ in range(2):
        g = gradient(w)
        w = w - 0.1 * g
    return g.ravel().tolist()

if __name__ == "__main__":
    trained = [train(), train(adjoint=DirectAdjoint())], type(diffeqsolve).__name__
    print(json.dumps([__name__, sys.argv[1:], "torch" in sys.modules, trained]))
""",
}


def run(*command, folder, fails=False):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done


def steptape(*command, folder, fails=False):
    return run("-m", "steptape", "run", *command, folder=folder, fails=fails)


@pytest.fixture
def script(tmp_path):
    def write(text):
        path = tmp_path / "apart" / "train.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("host", SCRIPTS)
def test_a_training_script_has_the_gradients_of_back_propagation(script, tmp_path, host):
    pytest.importorskip(host)
    done = steptape("--default", "aca", script(SCRIPTS[host]), "--lr", "-m", folder=tmp_path)
    name, arguments, other_framework, ((found, expected), by_host) = json.loads(done.stdout)
    assert (name, arguments, other_framework) == ("__main__", ["--lr", "-m"], False)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)
    if host == "diffrax":
        # Its default is exact here as well, but diffrax's own function is an object of equinox's.
        assert by_host == "function"
    else:
        # What a call has that names the host's own adjoint, and had without us.
        assert by_host != pytest.approx(expected, rel=1e-8)


def test_the_options(script, tmp_path):
    pytest.importorskip("torchdiffeq")
    counts = (
        "from steptape.torch import record_solves\nwith record_solves() as s: main()\nprint([x.states_kept for x in s])"
    )
    path = script(SCRIPTS["torchdiffeq"] + counts.replace("\nw", "\n\nw"))
    done = steptape("--override", "--checkpoints", "2", path, folder=tmp_path)
    assert done.stdout.splitlines()[-1] == str([2] * 6)


def test_a_module_with_its_arguments(script, tmp_path):
    folder = script("import sys\nfrom beside import x\nprint(__name__, x, sys.argv[1:])").parent
    (folder / "beside.py").write_text("x = 3")
    assert steptape("-m", "train", "a", "--default", folder=folder).stdout == "__main__ 3 ['a', '--default']\n"
    assert steptape(folder / "train.py", "a", folder=tmp_path).stdout == "__main__ 3 ['a']\n"


def test_a_program_without_a_host_imports_no_framework_and_is_told(script, tmp_path):
    path = script(
        "import sys\nprint([x for x in ('torch', 'jax', 'steptape.torch', 'steptape.jax') if x in sys.modules])"
    )
    done = steptape(path, folder=tmp_path)
    assert done.stdout == "[]\n"
    assert "imported none of torchdiffeq, torchsde and diffrax" in done.stderr


def test_a_program_s_error_and_its_exit_code_are_its_own(script, tmp_path):
    done = steptape(script("from steptape import OptionError\nraise OptionError('mine')"), folder=tmp_path, fails=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("steptape._errors.OptionError: mine\n")
    assert steptape(script("raise SystemExit(7)"), folder=tmp_path, fails=True).returncode == 7


def test_a_host_that_is_not_installed_is_missing_as_ever(script, tmp_path):
    text = "import sys\nsys.path[:] = sys.path[:1]\ntry: import torchsde\nexcept ModuleNotFoundError as e: print(e)"
    assert steptape(script(text), folder=tmp_path).stdout == "No module named 'torchsde'\n"


def test_a_failure_to_install_is_no_missing_package(script, tmp_path):
    """A program that takes a failed import for a missing package would go on with other gradients."""
    (tmp_path / "apart").mkdir()
    (tmp_path / "apart" / "torchdiffeq.py").write_text("")
    done = steptape(script("try: import torchdiffeq\nexcept ImportError: print('on')"), folder=tmp_path, fails=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("steptape run: steptape relies on something that torchdiffeq does not offer")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["nowhere.py"], "steptape run nowhere.py: no such file"),
        (["-m", "no.such"], "steptape run -m no.such: there is no such module"),
        (["--checkpoints", "0", "x.py"], "--checkpoints 0: must be a positive number of states"),
        (["--default", "acb", "x.py"], "invalid choice: 'acb'"),
    ],
)
def test_a_wrong_call_is_told_in_words(tmp_path, command, said):
    done = steptape(*command, folder=tmp_path, fails=True)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
