"""What each of diffrax's adjoints can do and cannot, by trying it, as in ``benchmarks.papers.limits``.

Tsit5 at 1e-7 in float64, dy/dt = p·y with p = 0.3 and y(0) = 1.5 over t in [0, 1] where nothing else is said; compiled.
Forward mode and Hessians are those of JAX's transforms. An adjoint that solves the continuous problem is right to its
tolerance.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import optimistix

from benchmarks.envelope import Rows
from benchmarks.jax_programs import adaptive, solved, words
from benchmarks.measurements import Cells, Scope
from benchmarks.papers import exact
from benchmarks.papers.exact import Y0, P
from benchmarks.papers.verdicts import Verdict, row, verdict
from steptape.jax import AdaptiveCheckpointAdjoint, QuadratureAdjoint, SeminormAdjoint

OURS = "steptape AdaptiveCheckpointAdjoint"
ADJOINTS: dict[str, Callable[[], diffrax.AbstractAdjoint]] = {
    "RecursiveCheckpointAdjoint": diffrax.RecursiveCheckpointAdjoint,
    "DirectAdjoint": diffrax.DirectAdjoint,
    "BacksolveAdjoint": diffrax.BacksolveAdjoint,
    "ForwardMode": diffrax.ForwardMode,
    OURS: AdaptiveCheckpointAdjoint,
    "steptape QuadratureAdjoint": QuadratureAdjoint,
    "steptape SeminormAdjoint": SeminormAdjoint,
}
Adjoint = diffrax.AbstractAdjoint


def _growth(t: Any, y: Any, p: Any) -> Any:
    return p * y


def _solve(adjoint: Adjoint, y0: Any, p: Any, field: Callable[..., Any] = _growth, **settings: Any) -> Any:
    settings = {"t1": 1.0, **adaptive(exact.TOLERANCE), "adjoint": adjoint, **settings}
    return solved(field, y0=y0, args=p, **settings)


def _differ(found: Any, right: Sequence[float]) -> float:
    """The largest relative difference."""
    return max(float(jnp.abs(jnp.sum(x) - y)) / abs(y) for x, y in zip(found, right, strict=True))


def _plain(right: Sequence[float], loss: Callable[..., Any], *inputs: Any) -> Callable[[Adjoint], float]:
    """The derivatives of ``loss(solve, *inputs)``; without inputs in y(0) and p."""

    def error(adjoint: Adjoint) -> float:
        at = [jnp.asarray(x) for x in inputs or (Y0, P)]
        gradient = jax.grad(functools.partial(loss, functools.partial(_solve, adjoint)), tuple(range(len(at))))
        return _differ(jax.jit(gradient)(*at), right)

    return error


def _of_both(right: Sequence[float], derivative: Callable[..., Any], power: int = 1) -> Callable[[Adjoint], float]:
    """Another derivative, of a power of y(1) in the vector of y(0) and p."""

    def error(adjoint: Adjoint) -> float:
        found = derivative(lambda x: _solve(adjoint, x[0], x[1]).ys[-1] ** power)
        return _differ(jax.jit(found)(jnp.array([Y0, P])).ravel(), right)

    return error


def _event(adjoint: Adjoint) -> float:
    finder: Any = optimistix.Newton(rtol=1e-10, atol=1e-10)
    settings = {"t1": 5.0, "event": diffrax.Event(lambda t, y, args, **rest: y - 2, finder)}
    when = _plain(exact.CROSSING, lambda solve, y0, p: solve(y0, p, lambda t, y, p: p, **settings).ts[-1])
    return when(adjoint)


def _batch(adjoint: Adjoint) -> float:
    rates = (0.1, P, 2.0)
    found = jax.jit(jax.vmap(jax.grad(lambda p: _solve(adjoint, Y0, p).ys[-1])))(jnp.array(rates))
    return _differ(found, [Y0 * math.exp(p) for p in rates])


def _sde(adjoint: Adjoint) -> float:
    # Geometric Brownian motion: y(1) is linear in y0, and dy(1)/dp = y(1).
    path = diffrax.VirtualBrownianTree(0.0, 1.0, 1e-3, (), jax.random.key(7))

    def end(y0: Any, p: Any) -> Any:
        noise = diffrax.ControlTerm(lambda t, y, p: 0.2 * y, path)
        terms: Any = diffrax.MultiTerm(diffrax.ODETerm(_growth), noise)
        return diffrax.diffeqsolve(terms, diffrax.Heun(), 0.0, 1.0, 1e-3, y0, p, adjoint=adjoint).ys[-1]

    (y, grads) = jax.jit(jax.value_and_grad(end, (0, 1)))(jnp.array(Y0), jnp.array(P))
    return _differ(grads, [float(y) / Y0, float(y)])


def _unlimited(adjoint: Adjoint) -> float:
    # As many steps as it takes want a number of checkpoints where there are any.
    adjoint = type(adjoint)(checkpoints=64) if hasattr(adjoint, "checkpoints") else adjoint
    return _plain(exact.END, lambda solve, y0, p: solve(y0, p, max_steps=None).ys[-1])(adjoint)


_HALF, _SECOND = math.exp(P / 2), [x for row in exact.HESSIAN for x in row]
CASES: dict[str, Callable[[Adjoint], float]] = {
    "pytree state": _plain(
        exact.PARTS,
        lambda solve, p: solve((jnp.ones(()), jnp.zeros(())), p, lambda t, y, p: (p * y[0], y[0])).ys[1][-1],
        P,
    ),
    "several outputs": _plain(
        exact.OUTPUTS, lambda solve, y0, p: solve(y0, p, saveat=diffrax.SaveAt(ts=jnp.array(exact.TIMES))).ys.sum()
    ),
    "dense output": _plain(
        [_HALF, Y0 * _HALF / 2], lambda solve, y0, p: solve(y0, p, saveat=diffrax.SaveAt(dense=True)).evaluate(0.5)
    ),
    "reverse time": _plain(exact.BACK, lambda solve, y0, p: solve(y0, p, t0=1.0, t1=0.0, dt0=-0.01).ys[-1]),
    "event's time": _event,
    "gradient in t0, t1": _plain(
        [-exact.SLOPE, exact.SLOPE], lambda solve, t0, t1: solve(Y0, P, t0=t0, t1=t1).ys[-1], 0.0, 1.0
    ),
    "gradient in ts": _plain(
        [P * Y0 * _HALF], lambda solve, ts: solve(Y0, P, saveat=diffrax.SaveAt(ts=ts)).ys[0], [0.5]
    ),
    "hessian": _of_both(_SECOND, jax.hessian, 2),
    "reverse over reverse": _of_both(_SECOND, lambda loss: jax.jacrev(jax.grad(loss)), 2),
    "forward mode": _of_both(exact.END, jax.jacfwd),
    "vmap": _batch,
    "constant steps": _plain(
        exact.END,
        lambda solve, y0, p: solve(y0, p, solver=diffrax.Heun(), stepsize_controller=diffrax.ConstantStepSize()).ys[-1],
    ),
    "implicit solver": _plain(exact.END, lambda solve, y0, p: solve(y0, p, solver=diffrax.Kvaerno5()).ys[-1]),
    "SDE": _sde,
    "parameter in a closure": _plain(exact.END, lambda solve, y0, p: solve(y0, None, lambda t, y, args: p * y).ys[-1]),
    "complex state": _plain(
        exact.TURNED,
        lambda solve, p: solve(jnp.array(Y0 + 0j), p, lambda t, y, p: 1j * p.astype(complex) * y).ys[-1].imag,
        P,
    ),
    "max_steps=None": _unlimited,
}


def tried(adjoint: Adjoint, case: str) -> Verdict:
    return verdict(lambda: CASES[case](adjoint), words=words)


def run(quick: bool) -> Cells:
    """A cell for each adjoint; quick: ours and diffrax's default."""
    names = ("RecursiveCheckpointAdjoint", OURS) if quick else tuple(ADJOINTS)
    return {name: functools.partial(_cell, name) for name in names}


def _cell(name: str) -> Rows:
    return [row(name, {case: tried(ADJOINTS[name](), case) for case in CASES})]


def cells(scope: Scope) -> Cells:
    return {f"jax_limits/{cell}": measure for cell, measure in run(scope.quick).items()}
