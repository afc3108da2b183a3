"""The README's tables and examples, held against the code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[3] / "README.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="the tests run without the README beside them")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def rows(title):
    """The cells of the first table after a line."""
    table = README.read_text(encoding="utf-8").partition(title)[2].partition("\n\n")[2].split("\n\n")[0]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_the_table_of_torchdiffeq_s_methods():
    pytest.importorskip("torchdiffeq")
    from steptape.compat._torchdiffeq import SOLVERS
    from steptape.torch._hosts.scheme import scheme_of

    told = dict(rows("torchdiffeq, by `method`:"))
    for name, solver in SOLVERS.items():
        assert told[name] == ("yes" if scheme_of(solver) else "refused")


def test_the_table_of_diffrax_s_solvers():
    diffrax = pytest.importorskip("diffrax")
    from steptape.jax._replay.runge_kutta import is_explicit

    told = {name for name, replay in rows("diffrax, by solver;") if replay == "unrolled"}
    solvers = [x for x in vars(diffrax).values() if isinstance(x, type) and issubclass(x, diffrax.AbstractERK)]
    concrete = [x for x in solvers if not x.__name__.startswith("Abstract")]
    assert told == {x.__name__ for x in concrete if is_explicit(x())}


@pytest.mark.parametrize("framework", ["torch", "diffrax"])
def test_the_example_runs(framework):
    pytest.importorskip(framework)
    (example,) = [block for block in blocks("python") if f"import {framework}\n" in block]
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    ran = subprocess.run([sys.executable, "-P", "-c", example], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_the_further_examples_for_torch_run_after_the_first():
    pytest.importorskip("torchdiffeq")
    pytest.importorskip("torchsde")
    first, *further = [block for block in blocks("python") if re.search(r"import torch\b|from steptape.torch", block)]
    assert len(further) == 4
    script = "\n".join([first, *further])
    ran = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    number = re.compile(r"[\d.]+( m?s)?\b")
    assert number.sub("#", ran.stdout) in {number.sub("#", block) for block in blocks("text")}


def test_ci_runs_the_readme_s_test_command_and_the_lowest_versions():
    command = next(block for block in blocks("bash") if "nox" in block).strip()
    script = (README.parent / ".ci" / "run").read_text(encoding="utf-8")
    install, run = (part.strip() for part in command.split("&&"))
    assert install.removeprefix("pip ") in script.replace(" --quiet", "")
    assert script.rstrip().splitlines()[-3:] == [run, "nox -s full", "nox -s minimums"]
