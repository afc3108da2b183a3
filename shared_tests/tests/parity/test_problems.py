"""Every problem is one source for three array libraries, and importing one half never imports the other."""

import subprocess
import sys

import numpy as np
import pytest

from steptape.shared_tests.problems.problems import PROBLEMS


@pytest.fixture(params=["torch", "jax"])
def make(request):
    """A function from numbers to a float64 array of one library."""
    if request.param == "torch":
        torch = pytest.importorskip("torch")
        yield lambda values: torch.tensor(values, dtype=torch.float64)
        return
    jax = pytest.importorskip("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield lambda values: jax.numpy.asarray(values, dtype="float64")
    jax.config.update("jax_enable_x64", before)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_same_source_runs_in_every_namespace(name, make):
    problem = PROBLEMS[name]
    t, y = problem.times[0] + 0.3, np.array(problem.y0) + 0.1
    ys = np.linspace(0.1, 0.9, (len(problem.times) - 1) * len(y)).reshape(-1, len(y))

    slope = problem.field(make(t), make(y), make(problem.params))
    loss = problem.loss(make(ys))

    assert type(slope) is type(loss) is type(make(y))
    assert slope.shape == y.shape
    expected = problem.field(t, y, np.array(problem.params))
    np.testing.assert_allclose(np.asarray(slope), expected, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(np.asarray(loss), problem.loss(ys), rtol=1e-14)


@pytest.mark.parametrize("name", [name for name, problem in PROBLEMS.items() if problem.closed_form])
def test_a_closed_form_solves_its_field(name):
    problem = PROBLEMS[name]
    assert problem.closed_form is not None
    y0, params = np.array(problem.y0), np.array(problem.params)
    t0, t, step = problem.times[0], 0.5 * (problem.times[0] + problem.times[-1]), 1e-100

    np.testing.assert_array_equal(problem.closed_form(t0, t0, y0, params), y0)
    y = problem.closed_form(t, t0, y0, params)
    slope = np.imag(problem.closed_form(t + 1j * step, t0, y0, params)) / step
    np.testing.assert_allclose(slope, problem.field(t, y, params), rtol=1e-13, atol=1e-13)


def test_times_increase_and_names_are_the_keys():
    for name, problem in PROBLEMS.items():
        assert problem.name == name
        assert (np.diff(problem.times) > 0).all()


FRAMEWORKS = ("torch", "torchdiffeq", "torchsde", "jax", "equinox", "diffrax")
TORCH, JAX = FRAMEWORKS[:3], FRAMEWORKS[3:]
DRAWING = ("matplotlib", "rich", "tabulate")


@pytest.mark.parametrize(
    "imports",
    [
        {
            "steptape": FRAMEWORKS,
            "steptape.cli": (*FRAMEWORKS, "numpy", *DRAWING, "jinja2", "packaging"),
            "steptape.shared_tests.problems.problems": FRAMEWORKS,
            "steptape.shared_tests.parity.parity": FRAMEWORKS,
        },
        {
            "steptape.torch": (*JAX, "torchsde", *DRAWING),
            "steptape.shared_tests.backends.backend_torch": JAX,
            "steptape.shared_tests.backends.backend_torch_sde": JAX,
        },
        {
            "steptape.jax": (*TORCH, *DRAWING),
            "steptape.shared_tests.backends.backend_jax": TORCH,
            "steptape.shared_tests.backends.backend_jax_sde": TORCH,
        },
    ],
    ids=["neither half", "torch", "jax"],
)
def test_an_import_brings_no_other_framework(imports):
    """One after the other, so that what the first brings is there with the next as well."""
    if "steptape.torch" in imports:
        pytest.importorskip("torchsde")
    if "steptape.jax" in imports:
        pytest.importorskip("diffrax")
    code = "import sys\n" + "\n".join(f"import {module}\nprint(*sys.modules)" for module in imports)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for (module, absent), loaded in zip(imports.items(), result.stdout.splitlines(), strict=True):
        assert module in loaded.split()
        assert not set(absent) & set(loaded.split())
