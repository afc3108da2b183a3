"""Hu's theorem: an adjoint equals back-propagation if and only if it has the scheme of the solve."""

import functools
import importlib.util
import itertools
import json
import math
import subprocess
import sys

import pytest

from steptape.shared_tests.oracles.scheme_adjoint import SCHEMES, continuous, difference, gradient, grid_of
from steptape.shared_tests.problems.problems import PROBLEMS

ROTATION = PROBLEMS["rotation"]
_RUN = """
import json, sys
from steptape.shared_tests.backends.backends import Case, load_backend
backend, runs = json.load(sys.stdin)
run = load_backend(backend, "grid").run
print(json.dumps([run(Case(*what, grid=tuple(grid))).gradient for what, grid in runs]))
"""


def gradients_of(backend, runs):
    """The gradients of (problem, method, scheme) on a grid, one after the other; in a process of its own."""
    command, given = [sys.executable, "-P", "-c", _RUN], json.dumps([backend, runs])
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("backend", "host", "methods", "solves"),
    [
        (
            "torch",
            "torchdiffeq",
            ["backprop", "aca"],
            [("rotation", 1), ("rotation", 4), ("rotation", 32), ("pendulum", 8)],
        ),
        # Each grid and scheme is a program to compile.
        pytest.param("jax", "diffrax", ["recursive"], [("rotation", 1)], marks=pytest.mark.full),
    ],
)
def test_the_matching_adjoint_is_back_propagation_at_every_step_size(backend, host, methods, solves):
    if not importlib.util.find_spec(host):
        pytest.skip(f"{host} is not installed")
    schemes = [scheme for scheme in SCHEMES if backend == "torch" or scheme != "rk4"]
    runs = [
        ((problem, method, scheme), grid_of(PROBLEMS[problem], steps))
        for (problem, steps), method, scheme in itertools.product(solves, methods, schemes)
    ]
    for (what, grid), found in zip(runs, gradients_of(backend, runs), strict=True):
        problem, _, scheme = what
        assert difference(gradient(scheme, PROBLEMS[problem], grid), found) <= 1e-12, (what, len(grid))


@functools.cache
def discrete(scheme, steps):
    return gradient(scheme, ROTATION, grid_of(ROTATION, steps))


def order(forward, backward):
    """The order at which the continuous adjoint by one scheme departs from back-propagation through another one."""
    coarse, fine = (
        difference(continuous(forward, backward, ROTATION, grid_of(ROTATION, steps)), discrete(forward, steps))
        for steps in (32, 64)
    )
    return math.log2(coarse / fine)


@pytest.mark.parametrize(("forward", "backward"), list(itertools.product(SCHEMES, repeat=2)))
def test_any_other_adjoint_differs_at_the_lower_order(forward, backward):
    # Heun's leading errors cancel between the solve and the same scheme in reverse.
    expected = 3 if forward == backward == "heun" else min(SCHEMES[forward].order, SCHEMES[backward].order)
    assert expected - 0.15 <= order(forward, backward) <= expected + 0.7


def test_a_scheme_is_of_its_order():
    """Against the closed form, by its own solve and discrete adjoint."""
    tight = gradient("dopri5", ROTATION, grid_of(ROTATION, 512))
    for name, scheme in SCHEMES.items():
        coarse, fine = (difference(discrete(name, steps), tight) for steps in (32, 64))
        assert math.log2(coarse / fine) == pytest.approx(scheme.order, abs=0.6)
