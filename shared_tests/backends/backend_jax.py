"""Runs a case with diffrax: ACA and the host's own ways to a gradient. Switches JAX to float64 on import."""

import functools
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import diffrax
import jax
import jax.numpy as jnp

from steptape.shared_tests.backends.backends import CAPABILITIES, PARTS, Case, Run
from steptape.shared_tests.problems.problems import PROBLEMS

jax.config.update("jax_enable_x64", True)

_MAX_STEPS = 4096
_counts = {"evaluations": 0, "parameter_pulls": 0}


def _count(what: str) -> None:
    _counts[what] += 1


def _note(what: str, counted: Any) -> None:
    jax.lax.cond(counted, lambda: jax.debug.callback(_count, what), lambda: None)


@jax.custom_vjp
def _noticed(params: Any, counted: Any) -> Any:
    """Parameters as they are; the cotangents that come back for them are counted."""
    return params


def _noticed_bwd(counted: Any, cotangent: Any) -> tuple[Any, None]:
    _note("parameter_pulls", counted)
    return cotangent, None


_noticed.defvjp(lambda params, counted: (params, counted), _noticed_bwd)


def versions() -> dict[str, str]:
    """Return the versions of everything the figures of this process depend on."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "diffrax", "equinox")},
    }


def run(case: Case) -> Run:
    """Solve forward, differentiate, and return the record of the run.

    The first call compiles, the second is timed, and the third counts: in it every call of the field calls back.
    Forward evaluations follow from the number of tries and the solver's tableau; what else the third call counted
    was evaluated in the backward pass.
    """
    problem, method = PROBLEMS[case.problem], CAPABILITIES["jax", case.method, case.solver].method
    compiled = _compiled(case.problem, case.method, case.solver, len(case.grid))
    inputs = [jnp.asarray(getattr(problem, part), dtype=jnp.float64) for part in PARTS]
    grid = jnp.asarray(case.grid, dtype=jnp.float64)

    def call(counted: bool) -> Any:
        return jax.block_until_ready(compiled(*inputs, case.rtol, grid, jnp.asarray(counted)))

    call(False)
    start = time.perf_counter()
    (loss, (ys, tries)), gradient = call(False)
    seconds = time.perf_counter() - start
    forward = _forward_evaluations(case.solver, int(tries))
    evaluations, pulls = _counted(call)
    return Run(
        "jax",
        case,
        loss=float(loss),
        ys=ys.tolist(),
        gradient=dict(zip(method.parts, (part.tolist() for part in gradient), strict=True)),
        grid=list(case.grid) or _accepted_grid(case),
        forward_evaluations=forward,
        backward_evaluations=evaluations - forward,
        parameter_pulls=pulls,
        seconds=seconds,
    )


def _counted(call: Callable[[bool], Any]) -> tuple[int, int]:
    before = dict(_counts)
    call(True)
    jax.effects_barrier()
    return _counts["evaluations"] - before["evaluations"], _counts["parameter_pulls"] - before["parameter_pulls"]


def _forward_evaluations(solver: str, tries: int) -> int:
    """Return the evaluations of a solve: one a stage and try; a last stage kept for the next try counts once."""
    tableau = getattr(_solver(solver), "tableau", None)
    if tableau is None:
        return tries
    return tries * (tableau.num_stages - 1) + 1 if tableau.fsal else tries * tableau.num_stages


@functools.cache
def _compiled(problem: str, method: str, solver: str, grid_size: int) -> Callable[..., Any]:
    """Return the compiled loss, outputs, tries and gradient; one compilation serves every tolerance."""
    parts = CAPABILITIES["jax", method, solver].method.parts
    setting: dict[str, Any] = {"problem": problem, "solver": solver, "has_grid": bool(grid_size)}

    def loss(y0: Any, params: Any, times: Any, rtol: Any, grid: Any, counted: Any) -> Any:
        solution = _solve(y0, params, times, rtol, grid, counted, adjoint=make_adjoint(method), **setting)
        return PROBLEMS[problem].loss(solution.ys), (solution.ys, solution.stats["num_steps"])

    return jax.jit(jax.value_and_grad(loss, argnums=tuple(range(len(parts))), has_aux=True))


def _solve(
    y0: Any,
    params: Any,
    times: Any,
    rtol: Any,
    grid: Any,
    counted: Any,
    *,
    problem: str,
    solver: str,
    has_grid: bool,
    adjoint: diffrax.AbstractAdjoint,
    saveat: diffrax.SaveAt | None = None,
) -> diffrax.Solution:
    def field(t: Any, y: Any, args: Any) -> Any:
        _note("evaluations", args[1])
        return PROBLEMS[problem].field(t, y, _noticed(*args))

    if has_grid:
        controller: Any = diffrax.StepTo(ts=_moving_grid(grid, times))
    else:
        controller = diffrax.PIDController(rtol=rtol, atol=rtol)
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        _solver(solver),
        t0=times[0],
        t1=times[-1],
        dt0=None if has_grid else PROBLEMS[problem].first_step,
        y0=y0,
        args=(params, counted),
        saveat=saveat or diffrax.SaveAt(ts=times[1:]),
        stepsize_controller=controller,
        adjoint=adjoint,
        max_steps=_MAX_STEPS,
    )


def _moving_grid(grid: Any, times: Any) -> Any:
    """Return the grid; its points at the given times are those times, and so take part in the gradient."""
    return grid.at[jnp.searchsorted(grid, jax.lax.stop_gradient(times))].set(times)


def _accepted_grid(case: Case) -> list[float]:
    problem = PROBLEMS[case.problem]
    ts = _compiled_grid(case.problem, case.solver)(case.rtol)
    return [problem.times[0], *(t for t in ts.tolist() if t < float("inf"))]


@functools.cache
def _compiled_grid(problem: str, solver: str) -> Callable[[float], Any]:
    """Return the compiled forward solve that saves at the end of every accepted step."""
    y0, params, times = (jnp.asarray(getattr(PROBLEMS[problem], part), dtype=jnp.float64) for part in PARTS)

    def ts(rtol: Any) -> Any:
        return _solve(
            y0,
            params,
            times,
            rtol,
            None,
            False,
            problem=problem,
            solver=solver,
            has_grid=False,
            adjoint=diffrax.RecursiveCheckpointAdjoint(),
            saveat=diffrax.SaveAt(steps=True),
        ).ts

    return jax.jit(ts)


def _solver(name: str) -> Any:
    return getattr(diffrax, CAPABILITIES["jax", "aca", name].solver.host_name)()


def make_adjoint(method: str) -> diffrax.AbstractAdjoint:
    """Return the adjoint that a method stands for.

    The host's own keeps every step: where it takes steps again it may lose outputs, and could not judge ours.
    """
    if method == "recursive":
        return diffrax.RecursiveCheckpointAdjoint(checkpoints=_MAX_STEPS)
    if method == "backsolve":
        return diffrax.BacksolveAdjoint()
    from steptape.jax import AdaptiveCheckpointAdjoint, QuadratureAdjoint, SeminormAdjoint

    ours = {"aca": AdaptiveCheckpointAdjoint, "seminorm": SeminormAdjoint, "quadrature": QuadratureAdjoint}
    return ours[method]()
