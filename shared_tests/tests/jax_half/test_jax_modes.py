"""AdaptiveCheckpointAdjoint in every mode of differentiation, and each over each: one table of solvers and outputs.

The oracle is diffrax's ``ForwardMode``, once for first derivatives and over itself for second ones.
"""

import functools
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest

from steptape import UnsupportedError
from steptape.jax import AdaptiveCheckpointAdjoint
from steptape.jax._autodiff.nextafter import make_differentiable
from steptape.jax._replay import blocks
from steptape_helpers.jax_solves import OURS, worst, x64

# The parameter, the state and the end.
X, V = np.array([0.7, 1.0, -0.5, 0.6]), np.array([0.3, 0.2, 0.6, 0.5])
MATRIX = np.array([[0.3, -1.4], [1.1, 0.2]])
FORWARD = diffrax.ForwardMode()


@pytest.fixture(autouse=True)
def _x64():
    with x64():
        yield


def _drift(t, y, p):
    return jnp.cos(3 * t) * jnp.tanh(p * MATRIX @ y) - p * y


def _sde():
    path = diffrax.VirtualBrownianTree(0.0, 1.0, 0.05, (2,), jax.random.key(0), diffrax.SpaceTimeLevyArea)
    noise = diffrax.ControlTerm(lambda t, y, p: 0.3 * p * jnp.stack([jnp.sin(y), y], 1), path)
    return diffrax.MultiTerm(diffrax.ODETerm(_drift), noise)


def _stiff():
    return diffrax.MultiTerm(diffrax.ODETerm(_drift), diffrax.ODETerm(lambda t, y, p: -p * y))


def _one():
    return diffrax.ODETerm(_drift)


def _outputs(solution, end):
    """Something of all that is saved."""
    (last, inside, each), dense = solution.ys, jax.vmap(solution.evaluate)(end * np.array([0.2, 0.9]))
    return sum(jnp.sum(jnp.sin(jnp.where(jnp.isfinite(y), y, 0.0))) for y in (last, inside, each, dense))


def loss(x, adjoint, terms, solver, **how):
    """A scalar of a solve with every kind of output: ``SaveAt`` with t1, ts, steps and dense."""
    p, y0, end = x[0], x[1:3], x[3]
    # A path has no derivative in time.
    end = jax.lax.stop_gradient(end) if terms is _sde else end
    inside = diffrax.SubSaveAt(ts=0.6 * np.array([0.2, 0.3]))
    subs = [diffrax.SubSaveAt(t1=True), inside, diffrax.SubSaveAt(steps=True)]
    how = {
        "stepsize_controller": diffrax.PIDController(rtol=3e-2, atol=3e-2),
        "saveat": diffrax.SaveAt(subs=subs, dense=True),
        "max_steps": 8,
        **how,
    }
    return _outputs(diffrax.diffeqsolve(terms(), solver, 0.0, end, 0.2, y0, p, adjoint=adjoint, **how), end)


def products(loss, v):
    """The product of the second derivative with ``v``, by each mode over each, as functions of x."""
    grad = jax.grad(loss)

    def along(f):
        return lambda x: jax.jvp(f, (x,), (v,))[1]

    return {
        "forward over forward": jax.jacfwd(along(loss)),
        "forward over reverse": along(grad),
        "reverse over forward": jax.grad(along(loss)),
        "reverse over reverse": jax.grad(lambda x: jnp.dot(grad(x), v)),
    }


# With what loop over the stages the user has made it; diffrax's own modes are not at home in all of them.
SOLVERS: dict[str, tuple[Any, Any, Any]] = {
    "explicit": (_one, diffrax.Heun, "checkpointed"),
    "implicit": (_one, diffrax.Kvaerno3, None),
    "IMEX": (_stiff, diffrax.KenCarp3, "lax"),
    "SDE": (_sde, diffrax.SPaRK, None),
}


def _assert_all(found, want):
    errors = {mode: worst(got, want) for mode, got in found.items()}
    assert max(errors.values()) < 1e-12, errors


# The first two have the others in them.
MODES = ("forward over reverse", "reverse over reverse"), ("forward over forward", "reverse over forward")


@pytest.mark.by_default(where=lambda name, of: name == "explicit" and of == MODES[0])
@pytest.mark.parametrize(("name", "of"), [(name, of) for name in SOLVERS for of in MODES])
def test_second_derivatives_by_every_mode_over_every_mode_of_every_output(name, of):
    terms, solver, kind = SOLVERS[name]
    host = products(lambda x: loss(x, FORWARD, terms, solver()), V)["forward over forward"]
    modes = products(lambda x: loss(x, OURS, terms, solver(scan_kind=kind)), V)
    modes = {mode: modes[mode] for mode in of}
    found, want = jax.jit(lambda x: ({mode: f(x) for mode, f in modes.items()}, host(x)))(X)
    _assert_all(found, want)


def gradients(f):
    """The gradient of a scalar by each mode, as functions of x."""
    unit = jnp.eye(len(X))

    def by_jvp(x):
        return jax.vmap(lambda v: jax.jvp(f, (x,), (v,))[1])(unit)

    modes = {
        "grad": jax.grad(f),
        "value_and_grad": lambda x: jax.value_and_grad(f)(x)[1],
        "jacrev": jax.jacrev(f),
        "jacfwd": jax.jacfwd(f),
        "jvp": by_jvp,
        "linearize": lambda x: jax.vmap(jax.linearize(f, x)[1])(unit),
    }
    remade = {
        f"{mode} of checkpoint": make(jax.checkpoint(f)) for mode, make in (("grad", jax.grad), ("jacfwd", jax.jacfwd))
    }
    batched = {f"vmap of {mode}": lambda x, g=g: jax.vmap(g)(jnp.stack([x, 1.1 * x]))[0] for mode, g in modes.items()}
    return {**modes, **remade, **batched, "grad of jit": jax.grad(jax.jit(f))}


@pytest.mark.full
@pytest.mark.parametrize("name", SOLVERS)
def test_first_derivatives_by_every_mode_of_every_output(name):
    terms, solver, kind = SOLVERS[name]
    modes = gradients(lambda x: loss(x, OURS, terms, solver(scan_kind=kind)))
    # To compile all of them of an implicit solver or an SDE's takes a quarter of an hour.
    modes = modes if name == "explicit" else {mode: modes[mode] for mode in ("grad", "jvp", "vmap of grad")}
    host = jax.jit(jax.jacfwd(lambda x: loss(x, FORWARD, terms, solver())))(X)
    _assert_all(jax.jit(lambda x: {mode: g(x) for mode, g in modes.items()})(X), host)


def _inside(x, adjoint=OURS, end=None, **how):
    """A vector of a solve."""
    end = x[3] if end is None else end
    saveat = diffrax.SaveAt(ts=0.6 * np.array([0.2, 0.5]))
    controller = diffrax.PIDController(rtol=3e-2, atol=3e-2)
    how = {"stepsize_controller": controller, "saveat": saveat, "max_steps": 16, **how}
    return diffrax.diffeqsolve(_one(), diffrax.Heun(), 0.0, end, 0.2, x[1:3], x[0], adjoint=adjoint, **how).ys.ravel()


def test_first_derivatives_in_forward_mode_are_those_of_diffrax_s():
    def several(x):
        return {
            "jacfwd": jax.jacfwd(_inside)(x),
            "linearize": jax.vmap(jax.linearize(_inside, x)[1], out_axes=1)(jnp.eye(4)),
            "vmap": jax.vmap(lambda x, v: jax.jvp(_inside, (x,), (v,))[1], out_axes=1)(jnp.stack([x] * 4), jnp.eye(4)),
        }

    host = jax.jit(jax.jacfwd(lambda x: _inside(x, FORWARD)))(X)
    _assert_all(jax.jit(several)(X), host)


@pytest.mark.full
def test_second_derivatives_in_a_batch_under_checkpoint_in_a_scan_and_with_an_event():
    def squared(x, **how):
        return jnp.sum(_inside(x, **how) ** 2)

    def batch(f):
        return lambda x: jnp.sum(jax.vmap(f)(jnp.stack([x, 1.1 * x])) * np.array([1.0, 2.0]))

    def scanned(f):
        return lambda x: jax.lax.scan(lambda c, _: (c + f(x * (1 + 0.01 * c)), None), 0.0, length=2)[0]

    def met(adjoint):
        finder: Any = optimistix.Newton(1e-9, 1e-9)
        event = diffrax.Event(lambda t, y, args, **kwargs: y[0] - 0.9, finder)
        return lambda x: squared(x, adjoint=adjoint, event=event, saveat=diffrax.SaveAt(t1=True))

    def of(adjoint):
        f = functools.partial(squared, adjoint=adjoint)
        return [batch(f), scanned(jax.checkpoint(f)), met(adjoint)]

    ours = [products(f, V)["reverse over reverse"] for f in of(OURS)]
    host = [products(f, V)["forward over forward"] for f in of(FORWARD)]
    found, wanted = jax.jit(lambda x: ([f(x) for f in ours], [f(x) for f in host]))(X)
    for got, want in zip(found, wanted, strict=True):
        assert worst(got, want) < 1e-12


@jax.custom_vjp
def _ruled(y):
    return jnp.sin(y) * jnp.sum(y)


_ruled.defvjp(lambda y: (_ruled(y), y), lambda y, g: (0.3 * jnp.clip(g, -0.5, 0.5) * jnp.cosh(jnp.sum(y**2)),))


@jax.custom_jvp
def _bent(y):
    return jnp.sin(y) * jnp.sum(y)


# The derivative of nothing: what follows of it has no symmetry.
_bent.defjvp(
    lambda y, v: (_bent(*y), 0.5 * jnp.cosh(y[0][::-1]) * v[0] + 0.3 * y[0] ** 2 * jnp.sum(v[0])),
)
_bent_too = eqx.filter_custom_jvp(_bent.fun)
_bent_too.def_jvp(_bent.jvp)


@jax.custom_jvp
def _rounded(y):
    return jnp.round(4 * y) / 4


_rounded.defjvp(lambda y, v: (_rounded(*y), v[0] * (1 - jnp.tanh(y[0]) ** 2)))


# Rules whose values are not by the function itself: JAX differentiates those the next time, which is no rule.
_plain = jax.custom_jvp(_bent.fun)
_plain.defjvp(lambda y, v: (_bent.fun(*y), 1.7 * y[0] * v[0]))
_plain_too = jax.custom_vjp(_bent.fun)
_plain_too.defvjp(lambda y: (_bent.fun(y), y), lambda y, g: (1.7 * y * g,))


def _ruled_by(function, rule, p, v):
    return function(*p), rule(p, v)


def _on_one_of_jax(rule):
    """A function that JAX has written, by a rule that it has not."""
    ruled = jax.custom_jvp(jnp.matmul)
    ruled.defjvp(functools.partial(_ruled_by, ruled, rule))
    return functools.partial(ruled, MATRIX)


_of_jax = _on_one_of_jax(lambda p, v: p[0] @ v[1] + 0.3 * p[1] ** 2 * jnp.sum(v[1]))


def _by_rule(field, solver, x):
    """A solve whose field is what a rule of the user's is for."""
    term = diffrax.ODETerm(lambda t, y, p: field(p * y))
    return diffrax.diffeqsolve(term, solver, 0.0, 1.0, 0.25, x[1:], x[0], adjoint=OURS, max_steps=4).ys[0]


def _written_out(field, x):
    """The same by Euler's method, as one program."""
    y = x[1:]
    for _ in range(4):
        y = y + 0.25 * field(x[0] * y)
    return y


def _second(end, of):
    second = products(lambda x: jnp.sum(jnp.sin(end(x))), V[:3])
    return {mode: jax.vmap(second[mode]) for mode in of}


IN_REVERSE = ("reverse over forward", "reverse over reverse")
RULES = {
    "a vjp that is none": (_ruled, IN_REVERSE[1:]),
    "a jvp that is none": (_bent, (*IN_REVERSE, *MODES[0])),
    "a jvp with values of its own": (_plain, (*MODES[0], *MODES[1])),
    "a vjp with values of its own": (_plain_too, MODES[0]),
    "one by equinox": (_bent_too, IN_REVERSE),
    "one on a function of JAX's": (_of_jax, (*IN_REVERSE, *MODES[0])),
    "straight through a rounding": (_rounded, IN_REVERSE),
}


@pytest.mark.by_default(where=lambda name: name.startswith("a "))
@pytest.mark.parametrize("name", RULES)
def test_a_rule_of_the_users_is_followed_in_second_derivatives_though_it_is_no_derivative(name):
    field, of = RULES[name]
    ours = _second(functools.partial(_by_rule, field, diffrax.Euler()), of)
    host = _second(functools.partial(_written_out, field), of)
    both = np.stack([X[:3], 1.1 * X[:3]])
    found, want = jax.jit(lambda x: [{mode: f(x) for mode, f in each.items()} for each in (ours, host)])(both)
    for mode in of:
        assert worst(found[mode], want[mode]) < 1e-12, mode


def _stopped(field, x):
    """A solve whose field closes over a number, and over it without a derivative."""
    a = x[0]
    term = diffrax.ODETerm(lambda t, y, p: field(y) * a + jax.lax.stop_gradient(a) * y)
    adjoint = AdaptiveCheckpointAdjoint(checkpoints=2)
    return diffrax.diffeqsolve(term, diffrax.Euler(), 0.0, 1.0, 0.25, x[1:], adjoint=adjoint, max_steps=4).ys[0]


def _stopped_written_out(field, x):
    y = x[1:]
    for _ in range(4):
        y = y + 0.25 * (field(y) * x[0] + jax.lax.stop_gradient(x[0]) * y)
    return y


@pytest.mark.parametrize("field", [jnp.sin, _plain])
def test_reverse_over_forward_where_more_moves_in_reverse_than_did_in_forward_mode(field):
    """What is stopped in forward mode is handed to the solve; of the value and of the tangent, each by itself."""

    def gradients(end, x):
        pushed = functools.partial(jax.jvp, functools.partial(end, field), tangents=(V[:3],))
        return [jax.grad(lambda x, i=i: jnp.sum(jnp.sin(pushed((x,))[i])))(x) for i in (0, 1)]

    found, want = jax.jit(lambda x: [gradients(end, x) for end in (_stopped, _stopped_written_out)])(X[:3])
    for got, wanted in zip(found, want, strict=True):
        assert worst(got, wanted) < 1e-12


def _tangent(p, v):
    return p[0] @ v[1]


class _Tangent:
    def __call__(self, p, v):
        return _tangent(p, v)


def _kept(function, solver):
    """Whether a second derivative in reverse mode keeps all steps of the solve, which are then as many as are known."""

    def end(p):
        term, adjoint = diffrax.ODETerm(lambda t, y, p: -p * function(y)), AdaptiveCheckpointAdjoint(checkpoints=4)
        how: Any = {"adjoint": adjoint, "max_steps": None}
        return diffrax.diffeqsolve(term, solver, 0.0, 1.0, 0.25, jnp.ones(2), p, **how).ys.sum()

    try:
        jax.make_jaxpr(jax.grad(jax.grad(end)))(0.7)
    except UnsupportedError:
        return True
    return False


def test_rules_of_jax_and_of_what_diffrax_needs_are_derivatives_and_cost_nothing():
    implicit = diffrax.ImplicitEuler(root_finder=diffrax.VeryChord(1e-3, 1e-3))
    assert not _kept(lambda y: jax.nn.relu(y) * jnp.logaddexp(y, 1.0), diffrax.Euler())
    assert not _kept(jax.nn.relu, implicit)
    assert _kept(_bent_too, implicit)
    for rule in (_tangent, functools.partial(_tangent), jax.jit(_tangent), _Tangent(), _Tangent().__call__):
        assert _kept(_on_one_of_jax(rule), diffrax.Euler())
    assert _kept(lambda y: jax.lax.scan(lambda y, _: (_bent(y), None), y, length=2)[0], diffrax.Euler())


def test_an_optimum_found_by_least_squares_and_the_gradient_through_it():
    """The p at which y(1) = exp(-p) is c: p = -log c, whose derivative is -1/c."""

    def fitted(c):
        def residual(p, c):
            return jnp.log(_decayed(p, 1.0, 20)) - jnp.log(c)

        solver = optimistix.LevenbergMarquardt(1e-10, 1e-10)
        return optimistix.least_squares(residual, solver, jnp.array(0.5), c).value

    p, slope = jax.jit(jax.value_and_grad(fitted))(0.6)
    # log y is n log(1 - p / n) for n steps of Euler's method.
    assert abs(p - 20 * (1 - 0.6 ** (1 / 20))) < 1e-8
    assert abs(slope + 0.6 ** (1 / 20 - 1)) < 1e-8


def _decayed(p, end, max_steps, checkpoints=None, solver=None):
    """exp(-p end) in steps of 0.05, by default by Euler's method."""
    term, adjoint = diffrax.ODETerm(lambda t, y, p: -p * y), AdaptiveCheckpointAdjoint(checkpoints=checkpoints)
    how: Any = {"adjoint": adjoint, "max_steps": max_steps}
    return diffrax.diffeqsolve(term, solver or diffrax.Euler(), 0.0, end, 0.05, 1.0, p, **how).ys[0]


def test_the_next_number_has_the_derivative_of_the_number():
    make_differentiable()
    assert jax.grad(lambda t: jnp.nextafter(t, 2.0) ** 2)(1.0) == 2 * np.nextafter(1.0, 2.0)


@pytest.mark.full
def test_second_derivatives_in_t1_in_a_scan_are_those_of_the_closed_form():
    """There JAX loses how diffrax's last time before t1 is differentiated."""
    p, end, scales = 0.7, 0.04, np.array([1.0, 1.1])

    def scanned(end):
        return jax.lax.scan(lambda c, scale: (c + _decayed(p, scale * end, 4) ** 2, None), 0.0, scales)[0]

    # One step of Euler's method each, whose square is (1 - p t1)^2.
    second = jax.jit(jax.grad(jax.grad(scanned)))(end)
    np.testing.assert_allclose(second, 2 * p**2 * np.sum(scales**2), rtol=1e-12)


@pytest.mark.by_default(where=lambda checkpoints: checkpoints == 9)
@pytest.mark.parametrize(("max_steps", "checkpoints"), [(None, 1), (None, 9), (60, None)])
def test_a_solve_of_many_blocks_has_the_derivatives_of_its_closed_form(monkeypatch, max_steps, checkpoints):
    # Blocks of four steps, and more of them than are planned for.
    monkeypatch.setattr(blocks, "_MOST", 4)
    monkeypatch.setattr(blocks, "_MANY", 3)
    p, counts = 0.7, np.array([0, 1, 3, 4, 5, 8, 9, 13, 16, 27, 40])

    def derivatives(end, value):
        return jax.jvp(lambda p: jax.grad(value)(p, end), (p,), (1.0,))

    def several(ends):
        # A method with a stage that is carried from step to step.
        value = functools.partial(_decayed, max_steps=max_steps, checkpoints=checkpoints, solver=diffrax.Bosh3())
        found = functools.partial(derivatives, value=value)
        return jax.lax.map(found, ends), jax.vmap(found)(ends)

    def closed(p, end):
        z = 0.05 * p
        return (1 - z + z**2 / 2 - z**3 / 6) ** (end / 0.05)

    want = jax.vmap(functools.partial(derivatives, value=closed))(0.05 * counts)
    for got in jax.jit(several)(0.05 * counts):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-15)


@pytest.mark.by_default(where=lambda members: members is None)
@pytest.mark.parametrize("members", [None, 64])
def test_at_no_max_steps_is_there_more_memory_than_the_hosts_with_as_many_checkpoints(members):
    def temporary(adjoint, max_steps):
        def end(y0):
            term = diffrax.ODETerm(lambda t, y, args: -y)
            controller = diffrax.PIDController(rtol=1e-3, atol=1e-3)
            how: Any = {"stepsize_controller": controller, "adjoint": adjoint(checkpoints=16), "max_steps": max_steps}
            return jnp.sum(diffrax.diffeqsolve(term, diffrax.Tsit5(), 0.0, 1.0, 0.1, y0, **how).ys)

        gradient, y0 = (jax.grad(end), jnp.ones(8)) if members is None else (jax.vmap(jax.grad(end)), jnp.ones((64, 8)))
        compiled = jax.jit(gradient).lower(y0).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    host = temporary(diffrax.RecursiveCheckpointAdjoint, 10**3)
    several, many = (temporary(AdaptiveCheckpointAdjoint, max_steps) for max_steps in (10**3, 10**7))
    assert several < 1.01 * many
    assert many < host
