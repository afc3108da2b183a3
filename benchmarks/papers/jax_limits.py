"""What each of diffrax's adjoints can do and cannot, by trying it, as in ``benchmarks.papers.limits``.

Tsit5 at 1e-7 in float64, dy/dt = p·y with p = 0.3 and y(0) = 1.5 over t in [0, 1] where nothing else is said; compiled.
Forward mode and Hessians are those of JAX's transforms. An adjoint that solves the continuous problem is right to its
tolerance.
"""

from __future__ import annotations

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


def _end(adjoint: Adjoint, y0: Any, p: Any, *rest: Any, **settings: Any) -> Any:
    return _solve(adjoint, y0, p, *rest, **settings).ys[-1]


def _differ(found: Any, right: Sequence[float]) -> float:
    """The largest relative difference."""
    return max(float(jnp.abs(jnp.sum(x) - y)) / abs(y) for x, y in zip(found, right, strict=True))


def _gradient(loss: Callable[..., Any], right: Sequence[float], inputs: Sequence[Any] = (Y0, P)) -> float:
    inputs = [jnp.asarray(x) for x in inputs]
    return _differ(jax.jit(jax.grad(loss, argnums=tuple(range(len(inputs)))))(*inputs), right)


def _pytree(adjoint: Adjoint) -> float:
    def loss(p: Any) -> Any:
        return _solve(adjoint, (jnp.ones(()), jnp.zeros(())), p, lambda t, y, p: (p * y[0], y[0])).ys[1][-1]

    return _gradient(loss, exact.PARTS, [P])


def _outputs(adjoint: Adjoint) -> float:
    def loss(y0: Any, p: Any) -> Any:
        return _solve(adjoint, y0, p, saveat=diffrax.SaveAt(ts=jnp.array(exact.TIMES))).ys.sum()

    return _gradient(loss, exact.OUTPUTS)


def _dense(adjoint: Adjoint) -> float:
    def loss(y0: Any, p: Any) -> Any:
        return _solve(adjoint, y0, p, saveat=diffrax.SaveAt(dense=True)).evaluate(0.5)

    return _gradient(loss, [math.exp(P / 2), Y0 * math.exp(P / 2) / 2])


def _reverse(adjoint: Adjoint) -> float:
    settings = {"t0": 1.0, "t1": 0.0, "dt0": -0.01}
    return _gradient(lambda y0, p: _end(adjoint, y0, p, **settings), exact.BACK)


def _event(adjoint: Adjoint) -> float:
    finder: Any = optimistix.Newton(rtol=1e-10, atol=1e-10)
    event = diffrax.Event(lambda t, y, args, **rest: y - 2, finder)

    def when(y0: Any, p: Any) -> Any:
        return _solve(adjoint, y0, p, lambda t, y, p: p, t1=5.0, event=event).ts[-1]

    return _gradient(when, exact.CROSSING)


def _ends(adjoint: Adjoint) -> float:
    return _gradient(lambda t0, t1: _end(adjoint, Y0, P, t0=t0, t1=t1), [-exact.SLOPE, exact.SLOPE], [0.0, 1.0])


def _times(adjoint: Adjoint) -> float:
    def loss(ts: Any) -> Any:
        return _solve(adjoint, Y0, P, saveat=diffrax.SaveAt(ts=ts)).ys[0]

    return _gradient(loss, [P * Y0 * math.exp(P / 2)], [jnp.array([0.5])])


def _hessian(adjoint: Adjoint, outer: Callable[..., Any]) -> float:
    def loss(x: Any) -> Any:
        return _end(adjoint, x[0], x[1]) ** 2

    found = jax.jit(outer(loss))(jnp.array([Y0, P]))
    return _differ(found.ravel(), [x for row in exact.HESSIAN for x in row])


def _forward(adjoint: Adjoint) -> float:
    found = jax.jit(jax.jacfwd(lambda x: _end(adjoint, x[0], x[1])))(jnp.array([Y0, P]))
    return _differ(found, exact.END)


def _batch(adjoint: Adjoint) -> float:
    rates = (0.1, P, 2.0)
    found = jax.jit(jax.vmap(jax.grad(lambda p: _end(adjoint, Y0, p))))(jnp.array(rates))
    return _differ(found, [Y0 * math.exp(p) for p in rates])


def _implicit(adjoint: Adjoint) -> float:
    return _gradient(lambda y0, p: _end(adjoint, y0, p, solver=diffrax.Kvaerno5()), exact.END)


def _constant(adjoint: Adjoint) -> float:
    settings = {"solver": diffrax.Heun(), "stepsize_controller": diffrax.ConstantStepSize()}
    return _gradient(lambda y0, p: _end(adjoint, y0, p, **settings), exact.END)


def _sde(adjoint: Adjoint) -> float:
    # Geometric Brownian motion: y(1) is linear in y0, and dy(1)/dp = y(1).
    path = diffrax.VirtualBrownianTree(0.0, 1.0, 1e-3, (), jax.random.key(7))

    def end(y0: Any, p: Any) -> Any:
        drift = diffrax.ODETerm(_growth)
        noise = diffrax.ControlTerm(lambda t, y, p: 0.2 * y, path)
        terms: Any = diffrax.MultiTerm(drift, noise)
        return diffrax.diffeqsolve(terms, diffrax.Heun(), 0.0, 1.0, 1e-3, y0, p, adjoint=adjoint).ys[-1]

    (y, grads) = jax.jit(jax.value_and_grad(end, (0, 1)))(jnp.array(Y0), jnp.array(P))
    return _differ(grads, [float(y) / Y0, float(y)])


def _closure(adjoint: Adjoint) -> float:
    return _gradient(lambda y0, p: _end(adjoint, y0, None, lambda t, y, args: p * y), exact.END)


def _complex(adjoint: Adjoint) -> float:
    def loss(p: Any) -> Any:
        return _end(adjoint, jnp.array(Y0 + 0j), p, lambda t, y, p: 1j * p.astype(complex) * y).imag

    return _gradient(loss, exact.TURNED, [P])


def _unlimited(adjoint: Adjoint) -> float:
    # As many steps as it takes want a number of checkpoints where there are any.
    adjoint = type(adjoint)(checkpoints=64) if hasattr(adjoint, "checkpoints") else adjoint
    return _gradient(lambda y0, p: _end(adjoint, y0, p, max_steps=None), exact.END)


CASES: dict[str, Callable[[Adjoint], float]] = {
    "pytree state": _pytree,
    "several outputs": _outputs,
    "dense output": _dense,
    "reverse time": _reverse,
    "event's time": _event,
    "gradient in t0, t1": _ends,
    "gradient in ts": _times,
    "hessian": lambda adjoint: _hessian(adjoint, jax.hessian),
    "reverse over reverse": lambda adjoint: _hessian(adjoint, lambda loss: jax.jacrev(jax.grad(loss))),
    "forward mode": _forward,
    "vmap": _batch,
    "constant steps": _constant,
    "implicit solver": _implicit,
    "SDE": _sde,
    "parameter in a closure": _closure,
    "complex state": _complex,
    "max_steps=None": _unlimited,
}


def tried(adjoint: Adjoint, case: str) -> Verdict:
    """The verdict on one case."""
    return verdict(lambda: CASES[case](adjoint), words=words)


def run(quick: bool) -> Cells:
    """A cell for each adjoint; quick: ours and diffrax's default."""
    names = ("RecursiveCheckpointAdjoint", OURS) if quick else tuple(ADJOINTS)
    return {name: functools.partial(_cell, name) for name in names}


def _cell(name: str) -> Rows:
    return [row(name, {case: tried(ADJOINTS[name](), case) for case in CASES})]


def cells(scope: Scope) -> Cells:
    """All that the papers have in JAX."""
    return {f"jax_limits/{cell}": measure for cell, measure in run(scope.quick).items()}
