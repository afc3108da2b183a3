"""Every refusal of the JAX half names a way out, and the way out works: y' = -p y from 1 ends with exp(-p) at t = 1."""

import ast
import functools
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest

import steptape.jax
from steptape import OptionError, UnsupportedError
from steptape.jax import AdaptiveCheckpointAdjoint, QuadratureAdjoint, SeminormAdjoint
from steptape_helpers.jax_solves import x64

ACA, QUADRATURE, SEMINORM = AdaptiveCheckpointAdjoint(), QuadratureAdjoint(), SeminormAdjoint()
PID = diffrax.PIDController(rtol=3e-4, atol=3e-4)
CONSTANT = diffrax.ConstantStepSize()
P = 0.7
END = float(jnp.exp(-P))


@pytest.fixture(autouse=True)
def _x64():
    with x64(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _decay(t, y, p):
    return jax.tree.map(lambda y: -p.astype(y.dtype) * y, y)


def _end(p, adjoint, terms=None, solver=None, y0=1.0, t1=1.0, **how):
    """The last value of the solve, or the sum of its leaves."""
    how = {"stepsize_controller": PID, "max_steps": 64, **how}
    dt0 = None if isinstance(how["stepsize_controller"], diffrax.StepTo) else 0.02
    terms = diffrax.ODETerm(_decay) if terms is None else terms()
    solution = diffrax.diffeqsolve(
        terms, solver or diffrax.Heun(), 0.0, t1, dt0, y0, jnp.asarray(p), adjoint=adjoint, **how
    )
    if solution.ys is None:
        return solution.evaluate(t1).real
    return jnp.real(jax.tree.leaves(solution.ys)[-1][-1])


def once(function):
    """One way out is named by many refusals: a call that was made before is not solved again."""
    known = {}

    @functools.wraps(function)
    def call(*args, **how):
        said = repr((args, sorted(how.items())))
        if said not in known:
            known[said] = function(*args, **how)
        return known[said]

    return call


def reverse(function, *inputs):
    """The gradient in the first input, as one program: in half the time of one for each pass."""
    return eqx.filter_jit(jax.grad(function))(*inputs)


@once
def grad(adjoint, **how):
    """dy(1)/dp, in reverse mode."""
    return reverse(lambda p: _end(p, adjoint, **how), P)


def by_default(default):
    """The same, of a call that names no adjoint."""
    with steptape.jax.install(default=default):
        return reverse(_unnamed, P)


def _unnamed(p):
    term = diffrax.ODETerm(_decay)
    return diffrax.diffeqsolve(term, diffrax.Heun(), 0.0, 1.0, 0.02, 1.0, jnp.asarray(p), max_steps=64).ys[-1]


@once
def push(adjoint, **how):
    """The same in forward mode."""
    return jax.jvp(lambda p: _end(p, adjoint, **how), (P,), (1.0,))[1]


@once
def curvature(adjoint, **how):
    """The second derivative, and the sign of the first, so that it is to be the same number."""
    return -reverse(jax.grad(lambda p: _end(p, adjoint, **how)), P)


@once
def in_t1(adjoint):
    """dy(1)/dt1, over p."""
    return reverse(lambda t1: _end(P, adjoint, t1=t1), 1.0) / P


@once
def in_rtol(adjoint):
    """dy(1)/dp, where the tolerance is differentiated as well."""

    def end(inputs):
        p, rtol = inputs
        return _end(p, adjoint, stepsize_controller=diffrax.PIDController(rtol=rtol, atol=3e-4))

    return reverse(end, (P, 3e-4))[0]


@once
def fitted(adjoint, **options):
    """p, found by least squares from y(1), turned into dy(1)/dp."""
    solver = optimistix.GaussNewton(1e-6, 1e-6)
    fit = optimistix.least_squares(lambda p, _: _end(p, adjoint) - END, solver, jnp.array(0.5), **options)
    return -jnp.exp(-fit.value)


# Cached, for `once` tells functions by where they are.
@functools.cache
def noisy(path, solver=None):
    """A solve with noise of no size, so that its end is known."""

    def terms():
        return diffrax.MultiTerm(diffrax.ODETerm(_decay), diffrax.ControlTerm(lambda t, y, p: 0.0 * y, path()))

    return {
        "terms": terms,
        "stepsize_controller": CONSTANT,
        "solver": solver or diffrax.Heun(),
    }


class Crude(diffrax.Dopri5):
    """A method whose dense output is of lower order than its steps."""

    interpolation_cls = diffrax.LocalLinearInterpolation

    def step(self, *args):
        y1, error, dense, state, result = super().step(*args)
        return y1, error, {"y0": dense["y0"], "y1": dense["y1"]}, state, result


@jax.custom_vjp
def _same(y):
    return y


_same.defvjp(lambda y: (y, None), lambda _, g: (g,))


def ruled():
    """A field with a rule for reverse mode alone."""
    return diffrax.ODETerm(lambda t, y, p: -p * _same(y))


@jax.custom_jvp
def _alike(y):
    return y


_alike.defjvp(lambda y, v: (*y, *v))


def forward_ruled():
    """A field with a rule for both modes."""
    return diffrax.ODETerm(lambda t, y, p: -p * _alike(y))


def safe():
    return diffrax.VirtualBrownianTree(0.0, 1.0, 1e-2, (), jax.random.key(0))


def unsafe():
    return diffrax.UnsafeBrownianPath((), jax.random.key(0))


TREE = {"y0": (1.0, 1.0)}
STEPS = {"saveat": diffrax.SaveAt(steps=2, t1=True), "stepsize_controller": CONSTANT, "max_steps": 50}


def grid():
    """Steps to given times, in the precision of the test."""
    return {"stepsize_controller": diffrax.StepTo(np.linspace(0, 1, 33))}


SPLIT = {
    "terms": lambda: (diffrax.ODETerm(lambda t, y, p: 0.0 * y), diffrax.ODETerm(lambda t, y, p: jnp.exp(-p) * y)),
    "solver": diffrax.SemiImplicitEuler(),
    "y0": (1.0, 1.0),
    "stepsize_controller": diffrax.ConstantStepSize(),
}


class Case(NamedTuple):
    """A refusal: what is in its text, how it is provoked, what in the text names each way out, and the way."""

    says: str
    provoke: Callable[[], Any]
    ways: dict[str, Callable[[], Any]]
    error: type[Exception] = UnsupportedError


def option(says, provoke, ways):
    return Case(says, provoke, ways, OptionError)


def by_rule(says, terms):
    without = AdaptiveCheckpointAdjoint(checkpoints=8)
    ways = {"max_steps=...": lambda: curvature(ACA, max_steps=32, terms=terms)}
    return Case(says, lambda: curvature(without, max_steps=None, terms=terms), ways)


def by_aca(says, adjoint, **how):
    return Case(says, lambda: grad(adjoint, **how), {"AdaptiveCheckpointAdjoint()": lambda: grad(ACA, **how)})


def forward_mode(says, adjoint):
    return Case(
        says,
        lambda: push(adjoint),
        {
            "AdaptiveCheckpointAdjoint()": lambda: push(ACA),
            'options={"jac": "bwd"}': lambda: fitted(adjoint, options={"jac": "bwd"}),
        },
    )


JOINT = {"stepsize_controller": diffrax.PIDController(rtol=3e-4, atol=3e-4, norm=optimistix.max_norm)}
RMS = {"stepsize_controller": diffrax.PIDController(rtol=3e-4, atol=3e-4, norm=diffrax.adjoint_rms_seminorm)}


def compared(loss, *inputs):
    return steptape.jax.compare(loss, *inputs, ways=["AdaptiveCheckpointAdjoint()"])


@functools.cache
def compared_as_it_is_meant():
    (row,) = compared(lambda adjoint, rate: heun(adjoint, rate), 1.3).rows
    return math.inf if row.why_not else -END


def heun(adjoint, rate):
    term = diffrax.ODETerm(lambda t, y, rate: -rate * y)
    sol = diffrax.diffeqsolve(term, diffrax.Heun(), 0.0, 1.0, 0.25, jnp.ones(()), rate, max_steps=4, adjoint=adjoint)
    return sol.ys.sum()


CASES = {
    "compare": [
        option(
            "pass what to differentiate with respect to",
            lambda: compared(lambda adjoint: heun(adjoint, 1.3)),
            {"compare(lambda adjoint, model: ..., model)": compared_as_it_is_meant},
        ),
        option(
            "loss must return a scalar",
            lambda: compared(lambda adjoint, rate: heun(adjoint, rate)[None], 1.3),
            {"a scalar": compared_as_it_is_meant},
        ),
        option(
            "solves nothing with the adjoint it is given",
            lambda: compared(lambda adjoint, rate: rate**2, 1.3),
            {"diffeqsolve(..., adjoint=adjoint)": compared_as_it_is_meant},
        ),
    ],
    "_install": [
        option(
            "must be an adjoint, such as",
            lambda: by_default("aca"),
            {"steptape.jax.AdaptiveCheckpointAdjoint()": lambda: by_default(steptape.jax.AdaptiveCheckpointAdjoint())},
        ),
    ],
    "_aca": [
        option(
            "must be a positive number of states, or",
            lambda: AdaptiveCheckpointAdjoint(checkpoints=0),
            {
                "a positive number": lambda: grad(AdaptiveCheckpointAdjoint(checkpoints=3)),
                "None": lambda: grad(AdaptiveCheckpointAdjoint(checkpoints=None)),
            },
        ),
        option(
            "must be 'step' or 'stage'",
            lambda: AdaptiveCheckpointAdjoint(graph="steps"),
            {f"'{graph}'": lambda g=graph: grad(AdaptiveCheckpointAdjoint(graph=g)) for graph in ("step", "stage")},
        ),
        Case(
            "many states the tape is to hold",
            lambda: grad(ACA, max_steps=None),
            {
                "AdaptiveCheckpointAdjoint(checkpoints=k)": lambda: grad(
                    AdaptiveCheckpointAdjoint(checkpoints=8), max_steps=None
                ),
                "max_steps=...": lambda: grad(ACA, max_steps=64),
            },
        ),
        Case(
            "would not see the noise of the solve",
            lambda: grad(ACA, **noisy(unsafe)),
            {
                "VirtualBrownianTree": lambda: grad(ACA, **noisy(safe)),
                "forward mode": lambda: push(ACA, **noisy(unsafe)),
            },
        ),
    ],
    "program": [
        by_rule("such a rule need not be a derivative", ruled),
        by_rule("or `jax.custom_jvp` in the vector field", forward_ruled),
    ],
    "solve": [
        Case(
            "Second derivatives of",
            lambda: curvature(QUADRATURE),
            {"AdaptiveCheckpointAdjoint()": lambda: curvature(ACA)},
        ),
        forward_mode("the adjoint goes back on the solution", QUADRATURE),
        Case(
            "did not reach t0",
            lambda: grad(QuadratureAdjoint(max_steps=2)),
            {
                "raise `max_steps`": lambda: grad(QuadratureAdjoint(max_steps=200)),
                "loosen the tolerances": lambda: grad(
                    QuadratureAdjoint(max_steps=30, stepsize_controller=diffrax.PIDController(rtol=3e-3, atol=3e-3))
                ),
            },
            RuntimeError,
        ),
    ],
    "_quadrature": [
        option(
            "must be a positive number of Gauss-Legendre nodes",
            lambda: QuadratureAdjoint(nodes=0),
            {"positive": lambda: grad(QuadratureAdjoint(nodes=2)), "None": lambda: grad(QuadratureAdjoint(nodes=None))},
        ),
        option(
            "must be a positive number of steps",
            lambda: QuadratureAdjoint(checkpoints=0),
            {"positive": lambda: grad(QuadratureAdjoint(checkpoints=4)), "None": lambda: grad(QUADRATURE)},
        ),
        option(
            "must be one of nodes, checkpoints",
            lambda: QuadratureAdjoint(rtol=1e-3),
            {"stepsize_controller": lambda: grad(QuadratureAdjoint(stepsize_controller=PID))},
        ),
        option(
            "the tolerances of an implicit solver's root",
            lambda: QuadratureAdjoint(solver=diffrax.Kvaerno3()),
            {
                "Use it there": lambda: grad(QUADRATURE, solver=diffrax.Kvaerno3()),
                "an explicit one": lambda: grad(QuadratureAdjoint(solver=diffrax.Bosh3())),
            },
        ),
        Case(
            "has no gradient for a solver or a step size controller",
            lambda: in_rtol(QUADRATURE),
            {"AdaptiveCheckpointAdjoint()": lambda: in_rtol(ACA)},
        ),
        Case(
            "the dense output is to hold",
            lambda: grad(QUADRATURE, max_steps=None),
            {
                "max_steps=...": lambda: grad(QUADRATURE, max_steps=64),
                "AdaptiveCheckpointAdjoint(checkpoints=k)": lambda: grad(
                    AdaptiveCheckpointAdjoint(checkpoints=8), max_steps=None
                ),
            },
        ),
        by_aca("dense=True", QUADRATURE, saveat=diffrax.SaveAt(dense=True)),
        by_aca("subs=...", QUADRATURE, saveat=diffrax.SaveAt(subs=[diffrax.SubSaveAt(t1=True)])),
        by_aca("SaveAt(steps=...)", QUADRATURE, **STEPS),
        by_aca("SaveAt(fn=...)", QUADRATURE, saveat=diffrax.SaveAt(t1=True, fn=lambda t, y, args: y)),
        by_aca("SaveAt(solver_state=True)", QUADRATURE, saveat=diffrax.SaveAt(t1=True, solver_state=True)),
        by_aca("terms other than one `ODETerm`", QUADRATURE, **noisy(safe)),
        by_aca("a complex state", QUADRATURE, y0=np.complex128(1)),
        by_aca("of lower order than its steps", QUADRATURE, solver=Crude()),
        Case(
            "StepTo(...)`, and no other one",
            lambda: grad(QUADRATURE, **grid()),
            {
                "AdaptiveCheckpointAdjoint()": lambda: grad(ACA, **grid()),
                "QuadratureAdjoint(stepsize_controller=...)": lambda: grad(
                    QuadratureAdjoint(stepsize_controller=PID),
                    **grid(),
                ),
            },
        ),
    ],
    "_seminorm": [
        option(
            "must be 'mixed' or 'joint'",
            lambda: SeminormAdjoint(reduction="max"),
            {f"'{r}'": lambda r=r: grad(SeminormAdjoint(reduction=r)) for r in ("mixed", "joint")},
        ),
        option(
            "the norm is that of the forward solve's controller",
            lambda: SeminormAdjoint(norm=optimistix.max_norm),
            {"PIDController(norm=...)": lambda: grad(SEMINORM, **JOINT)},
        ),
        option(
            "there is no norm to choose where no step is rejected",
            lambda: grad(SEMINORM, stepsize_controller=CONSTANT),
            {
                "SeminormAdjoint(stepsize_controller=": lambda: grad(
                    SeminormAdjoint(stepsize_controller=PID), stepsize_controller=CONSTANT
                ),
                "diffrax.BacksolveAdjoint()": lambda: grad(diffrax.BacksolveAdjoint(), stepsize_controller=CONSTANT),
            },
        ),
        option(
            "nor a field of the controller",
            lambda: grad(SeminormAdjoint(rtoll=1e-3)),
            {
                "an argument of `diffrax.BacksolveAdjoint`": lambda: grad(SeminormAdjoint(max_steps=500)),
                "a field of the controller": lambda: grad(SeminormAdjoint(rtol=1e-6)),
            },
        ),
        option(
            "the seminorm is made from a norm of y",
            lambda: grad(SEMINORM, **RMS),
            {
                "Leave `norm` out": lambda: grad(SEMINORM),
                "SeminormAdjoint(reduction='joint')": lambda: grad(SeminormAdjoint(reduction="joint")),
            },
        ),
        option(
            "the mean of y and a_y together is known for the root mean square alone",
            lambda: grad(SeminormAdjoint(reduction="joint"), **JOINT),
            {"SeminormAdjoint(reduction='mixed')": lambda: grad(SeminormAdjoint(reduction="mixed"), **JOINT)},
        ),
        option(
            "its structure",
            lambda: grad(SeminormAdjoint(integrals={"a": True}), **TREE),
            {"that of y": lambda: grad(SeminormAdjoint(integrals=(True, False)), **TREE)},
        ),
        option(
            "must be a function that selects leaves of y, or a pytree of bools",
            lambda: grad(SeminormAdjoint(integrals=(2, 0)), **TREE),
            {
                "a function": lambda: grad(SeminormAdjoint(integrals=lambda y: y[0]), **TREE),
                "a pytree of bools": lambda: grad(SeminormAdjoint(integrals=(True, False)), **TREE),
            },
        ),
        option(
            "leaves nothing of y to control the steps by",
            lambda: grad(SeminormAdjoint(integrals=(True, True)), **TREE),
            {"leave one leaf in": lambda: grad(SeminormAdjoint(integrals=(True, False)), **TREE)},
        ),
    ],
    "backsolve": [
        Case(
            "has gradients for y0, args and terms",
            lambda: in_t1(SEMINORM),
            {
                "AdaptiveCheckpointAdjoint()": lambda: in_t1(ACA),
                "and second derivatives": lambda: curvature(ACA),
            },
        ),
        forward_mode("it solves the adjoint backward", SEMINORM),
        Case(
            "the backward solve would not see its noise",
            lambda: grad(SeminormAdjoint(stepsize_controller=PID), **noisy(unsafe)),
            {
                "VirtualBrownianTree": lambda: grad(
                    SeminormAdjoint(stepsize_controller=PID, max_steps=4096), **noisy(safe)
                )
            },
        ),
        by_aca("SaveAt(dense=True)", SEMINORM, saveat=diffrax.SaveAt(dense=True)),
        by_aca("SaveAt(subs=...)", SEMINORM, saveat=diffrax.SaveAt(subs=[diffrax.SubSaveAt(t1=True)])),
        by_aca("SaveAt(steps=...)", SEMINORM, **STEPS),
        by_aca("SaveAt(fn=...)", SEMINORM, saveat=diffrax.SaveAt(t1=True, fn=lambda t, y, args: y)),
        by_aca("event=...", SEMINORM, event=diffrax.Event(lambda t, y, args, **kwargs: y < 0)),
        by_aca("which takes several terms", SEMINORM, **SPLIT),
        by_aca("which converges to the Itô solution", SEMINORM, **noisy(safe, diffrax.ItoMilstein())),
        by_aca("a complex state", SEMINORM, y0=np.complex128(1)),
    ],
}
EACH = [pytest.param(case, id=f"{module}: {case.says}") for module, cases in CASES.items() for case in cases]
# One call is the way out of all wrong ones of `compare`.
OTHERS = [param for param in EACH if param.values[0] not in CASES["compare"][1:]]


@pytest.mark.parametrize("case", EACH)
def test_a_refusal_names_ways_out(case):
    with pytest.raises(case.error) as refused:
        case.provoke()
    text = str(refused.value)
    assert case.says in text
    assert all(named in text for named in case.ways)


@pytest.mark.by_default(every=3)
@pytest.mark.parametrize("case", OTHERS)
def test_what_it_names_works(case):
    for way in case.ways.values():
        assert abs(way() + END) < 6e-3


def _refusals(path: Path) -> list[str]:
    """The texts of a module that can become an error: what is raised or returned, or called why, words or _FORWARD."""
    found: list[ast.AST] = []
    for node in ast.walk(ast.parse(path.read_text())):
        name = getattr(node.targets[0], "id", "") if isinstance(node, ast.Assign) else getattr(node, "arg", "")
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            found += node.exc.args[:1]
        named = isinstance(node, ast.Assign | ast.keyword) and re.fullmatch("why|words|_[A-Z_]+", name or "")
        if named or (isinstance(node, ast.Return) and isinstance(node.value, ast.JoinedStr)):
            found.append(node.value)
    texts = ["".join(_strings(node)) for node in found]
    pieces = ("Pass ", "`diffeqsolve(..., adjoint=", " with  has no", " steps accepted")
    return [text for text in texts if " " in text and not text.startswith(pieces)]


def _strings(node: ast.AST) -> list[str]:
    return [x.value for x in ast.walk(node) if isinstance(x, ast.Constant) and isinstance(x.value, str)]


def test_every_refusal_in_the_source_has_a_way_out_that_is_tried():
    folder = Path(steptape.jax.__file__).parent
    tried = {module: [case.says for case in cases] for module, cases in CASES.items()}
    for path in sorted(folder.rglob("*.py")):
        for text in _refusals(path):
            assert any(_in(says, text) for says in tried.get(path.stem, [])), (path.stem, text)
    assert sum(len(_refusals(path)) for path in folder.rglob("*.py")) >= 32


def _in(says, text):
    """Whether a case's words are of this text, some of which may be filled in."""
    return says in text or all(part in text for part in re.split(r"\W+", says))
