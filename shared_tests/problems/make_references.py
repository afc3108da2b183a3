"""Compute and store the reference gradients: ``python -m steptape.shared_tests.problems.make_references``.

Where the solution has a closed form, its loss is differentiated by complex steps, which is exact to rounding.
Elsewhere SciPy's DOP853 solves the state together with its variational equations: one column S_j = dy/dv_j
for every entry v_j of y0 and params, S_j' = Df(t, y, params)[S_j, dparams/dv_j], where the directional
derivative is again a complex step.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from steptape.shared_tests.problems.problems import PROBLEMS, Array, Problem

STORED = Path(__file__).with_name("references.json")
RTOL = 3e-14
_STEP = 1e-100


def _derivative(function: Any, at: Array, direction: Array) -> Array:
    """Return the directional derivative of an analytic function; nothing cancels, so no digit is lost."""
    return np.imag(function(at + 1j * _STEP * direction)) / _STEP


def closed_form_reference(problem: Problem) -> dict[str, Any]:
    """Return loss, outputs and gradient of a problem whose solution is known in closed form."""
    solution = problem.closed_form
    if solution is None:
        raise ValueError(f"{problem.name} has no closed form")
    sizes = np.cumsum([len(problem.y0), len(problem.params)])

    def outputs(inputs: Array) -> Array:
        y0, params, times = np.split(inputs, sizes)
        return np.stack([solution(t, times[0], y0, params) for t in times[1:]])

    inputs = np.concatenate([problem.y0, problem.params, problem.times])
    gradient = [_derivative(lambda v: problem.loss(outputs(v)), inputs, unit) for unit in np.eye(len(inputs))]
    y0, params, times = np.split(np.array(gradient), sizes)
    return _reference("closed form", problem, outputs(inputs), y0, params, times)


def variational_reference(problem: Problem, rtol: float = RTOL) -> dict[str, Any]:
    """Return loss, outputs and gradient from DOP853 on the variational equations at tolerance `rtol`."""
    dim, params = len(problem.y0), np.array(problem.params)
    ys, columns = _solve_variational(problem, rtol)

    def loss_change(changes: Array) -> float:
        return float(_derivative(problem.loss, ys, changes))

    slopes = [problem.field(t, y, params) for t, y in zip(problem.times[1:], ys, strict=True)]
    start = problem.field(problem.times[0], np.array(problem.y0), params)
    gradient = np.array([loss_change(columns[:, :, j]) for j in range(dim + len(params))])
    times = [loss_change(-columns[:, :, :dim] @ start)]
    for k, slope in enumerate(slopes):
        times.append(loss_change(np.where(np.arange(len(ys))[:, None] == k, slope, 0.0)))
    return _reference("DOP853", problem, ys, gradient[:dim], gradient[dim:], np.array(times))


def _solve_variational(problem: Problem, rtol: float) -> tuple[Array, Array]:
    """Return the states, shape (outputs, dim), and the columns, shape (outputs, dim, dim + len(params))."""
    from scipy.integrate import solve_ivp

    params, dim = np.array(problem.params), len(problem.y0)
    count = dim + len(params)
    directions = np.eye(count)[dim:]

    def augmented(t: float, state: Array) -> Array:
        table = state.reshape(dim, 1 + count)
        y, columns = table[:, 0], table[:, 1:]
        rows = [
            np.imag(problem.field(t, y + 1j * _STEP * column, params + 1j * _STEP * direction)) / _STEP
            for column, direction in zip(columns.T, directions.T, strict=True)
        ]
        return np.stack([problem.field(t, y, params), *rows], axis=1).reshape(-1)

    start = np.concatenate([np.array(problem.y0)[:, None], np.eye(dim, count)], axis=1)
    times = problem.times
    solved = solve_ivp(
        augmented, (times[0], times[-1]), start.reshape(-1), "DOP853", times[1:], rtol=rtol, atol=rtol * 1e-2
    )
    if not solved.success:
        raise RuntimeError(f"{problem.name}: DOP853 failed: {solved.message}")
    tables = solved.y.T.reshape(len(times) - 1, dim, 1 + count)
    return tables[:, :, 0], tables[:, :, 1:]


def _reference(source: str, problem: Problem, ys: Array, y0: Array, params: Array, times: Array) -> dict[str, Any]:
    gradient = {"y0": y0.tolist(), "params": params.tolist(), "times": times.tolist()}
    return {"source": source, "loss": float(problem.loss(ys)), "ys": ys.tolist(), "gradient": gradient}


def make_reference(problem: Problem) -> dict[str, Any]:
    """Return the reference of one problem from the best source it has."""
    return closed_form_reference(problem) if problem.closed_form else variational_reference(problem)


def load_references() -> dict[str, dict[str, Any]]:
    """Return the stored references, by the problem's name."""
    return json.loads(STORED.read_text(encoding="utf-8"))


def main() -> None:
    """Recompute every reference and overwrite the stored file."""
    references = {name: make_reference(problem) for name, problem in PROBLEMS.items()}
    STORED.write_text(json.dumps(references, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
