"""The stored reference gradients are what the script computes, and the two ways to compute one agree."""

import numpy as np
import pytest

from steptape.shared_tests.oracles.distance import distance, euclidean
from steptape.shared_tests.problems.make_references import (
    closed_form_reference,
    load_references,
    variational_reference,
)
from steptape.shared_tests.problems.problems import PROBLEMS

PARTS = ("y0", "params", "times")
CLOSED = [name for name, problem in PROBLEMS.items() if problem.closed_form]
SOLVED = [name for name, problem in PROBLEMS.items() if not problem.closed_form]


def difference(one, other):
    return distance(*([each["gradient"][part] for part in PARTS] for each in (one, other)), euclidean)


def test_every_problem_has_a_stored_reference_of_the_right_shape():
    stored = load_references()
    assert stored.keys() == PROBLEMS.keys()
    for name, problem in PROBLEMS.items():
        assert np.shape(stored[name]["ys"]) == (len(problem.times) - 1, len(problem.y0))
        for part in PARTS:
            assert np.shape(stored[name]["gradient"][part]) == np.shape(getattr(problem, part))


@pytest.mark.parametrize("name", CLOSED)
def test_the_variational_equations_agree_with_the_closed_form(name):
    problem = PROBLEMS[name]
    assert difference(variational_reference(problem), closed_form_reference(problem)) < 1e-12


@pytest.mark.parametrize("name", CLOSED)
def test_the_stored_closed_form_is_reproduced(name):
    assert difference(closed_form_reference(PROBLEMS[name]), load_references()[name]) < 1e-14


@pytest.mark.parametrize("name", [name for name in SOLVED if name != "three_body"])
def test_the_stored_solve_is_reproduced_at_another_tolerance(name):
    assert difference(variational_reference(PROBLEMS[name], 1e-13), load_references()[name]) < 5e-12


def test_the_gradient_is_that_of_the_loss():
    problem = PROBLEMS["three_body"]
    stored = load_references()["three_body"]
    step = 1e-4
    losses = [
        _loss_at(problem, tuple(m + sign * step * (k == 0) for k, m in enumerate(problem.params))) for sign in (1, -1)
    ]
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(stored["gradient"]["params"][0], rel=1e-4)


def _loss_at(problem, params):
    from scipy.integrate import solve_ivp

    solved = solve_ivp(
        lambda t, y: problem.field(t, y, np.array(params)),
        (problem.times[0], problem.times[-1]),
        problem.y0,
        "DOP853",
        problem.times[1:],
        rtol=1e-12,
        atol=1e-14,
    )
    return float(problem.loss(solved.y.T))
