"""SeminormAdjoint: whose error gates a backward step, what is inherited, and what is refused."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import optimistix
import pytest

from steptape import OptionError, UnsupportedError
from steptape.jax import SeminormAdjoint
from steptape_helpers.jax_solves import by_host, identical, inputs, solve, value_and_grad, worst, x64

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(autouse=True)
def _x64():
    with x64():
        yield


def gradient(adjoint, x=None, **kwargs):
    """The solution and its gradient for all inputs but the times."""
    x = inputs() if x is None else x
    kwargs.setdefault("max_steps", 4096)
    solution, _, grad = value_and_grad(lambda rest: solve(x._replace(**rest), adjoint, **kwargs), _untimed(x))
    return solution, tuple(grad.values())


def discrete_gradient(x, **kwargs):
    """Of the steps taken, by diffrax's own differentiation."""
    run = by_host(lambda rest, adjoint: solve(x._replace(**rest), adjoint, max_steps=4096, **kwargs))
    return tuple(run(_untimed(x))[1].values())


def _untimed(x):
    return {"field": x.field, "y0": x.y0, "args": x.args}


def test_joint_is_diffrax_own_seminorm_without_the_tolerances_copied():
    copied = diffrax.PIDController(rtol=1e-4, atol=1e-6, norm=diffrax.adjoint_rms_seminorm)
    host, want = gradient(diffrax.BacksolveAdjoint(stepsize_controller=copied))
    ours, got = gradient(SeminormAdjoint("joint"))
    assert identical(got, want)
    assert identical(ours.ys, host.ys)


def test_mixed_is_the_larger_of_two_norms():
    def larger(augmented):
        return jnp.maximum(optimistix.rms_norm(augmented[0]), optimistix.rms_norm(augmented[1]))

    copied = diffrax.PIDController(rtol=1e-4, atol=1e-6, norm=larger)
    assert identical(gradient(SeminormAdjoint())[1], gradient(diffrax.BacksolveAdjoint(stepsize_controller=copied))[1])


END, WITHIN = {"t1": True}, {"t0": True, "ts": [0.7, 1.1]}
# Any two of the values. By default one; of the other reduction other tests here.
SOLVES = [
    ("mixed", WITHIN, True),
    ("joint", END, False),
    ("joint", WITHIN, False),
    ("joint", END, True),
    ("mixed", END, False),
]


@pytest.mark.by_default(where=lambda reduction: reduction == "mixed", every=2)
@pytest.mark.parametrize(("reduction", "saveat", "backward_in_time"), SOLVES)
def test_the_gradient_is_right_to_the_tolerance(reduction, saveat, backward_in_time):
    x = inputs()
    if backward_in_time:
        x = x._replace(times=jnp.array([1.3, 0.5, -0.1]))
    saveat = diffrax.SaveAt(**{**saveat, **({"ts": [1.1, 0.7]} if backward_in_time and "ts" in saveat else {})})
    kwargs = {"saveat": saveat, "stepsize_controller": diffrax.PIDController(**TIGHT)}
    assert worst(gradient(SeminormAdjoint(reduction), x, **kwargs)[1], discrete_gradient(x, **kwargs)) < 1e-8


def _evaluations(adjoint):
    """How often a field with a hasty running cost is evaluated in both passes."""
    calls = []

    def field(t, y, args):
        jax.debug.callback(lambda: calls.append(1))
        return -y[0], jnp.sin(40 * t) ** 2

    def final(position):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            0,
            3,
            0.1,
            (position, jnp.array(0.0)),
            stepsize_controller=diffrax.PIDController(rtol=1e-4, atol=1e-6),
            adjoint=adjoint,
        )
        return jnp.sum(solution.ys[0]) + solution.ys[1][0]

    jax.block_until_ready(jax.jit(jax.grad(final))(jnp.array([1.0, 0.3])))
    jax.effects_barrier()
    return len(calls)


def test_an_integral_of_the_state_does_not_gate_backward_steps():
    by_function = _evaluations(SeminormAdjoint(integrals=lambda y: y[1]))
    assert by_function == _evaluations(SeminormAdjoint(integrals=(False, True)))
    assert 1.5 * by_function < _evaluations(SeminormAdjoint())


@pytest.mark.by_default(every=2)
@pytest.mark.parametrize(
    "settings",
    [{"rtol": 1e-7, "atol": 1e-9}, {"stepsize_controller": diffrax.PIDController(rtol=1e-7, atol=1e-9)}],
    ids=["field", "controller"],
)
def test_what_is_inherited_can_be_overridden(settings):
    assert identical(gradient(SeminormAdjoint("joint", solver=diffrax.Tsit5(), **settings))[1], _tighter())


@functools.cache
def _tighter():
    copied = diffrax.PIDController(rtol=1e-7, atol=1e-9, norm=diffrax.adjoint_rms_seminorm)
    return gradient(diffrax.BacksolveAdjoint(stepsize_controller=copied, solver=diffrax.Tsit5()))[1]


def test_the_controller_may_be_clipped_and_have_a_norm_of_its_own():
    inner = diffrax.PIDController(norm=optimistix.max_norm, **TIGHT)
    clipped = diffrax.ClipStepSizeController(inner, jump_ts=[1.0])
    kwargs = {"stepsize_controller": clipped}
    assert worst(gradient(SeminormAdjoint(), **kwargs)[1], discrete_gradient(inputs(), **kwargs)) < 1e-8


def test_what_the_field_closes_over_has_a_gradient():
    def final(rate):
        term = diffrax.ODETerm(lambda t, y, args: -rate * y)
        controller = diffrax.PIDController(**TIGHT)
        return diffrax.diffeqsolve(
            term, diffrax.Tsit5(), 0, -1, None, 2.0, stepsize_controller=controller, adjoint=SeminormAdjoint()
        ).ys[0]

    grad = jax.grad(final)
    for got in jax.jit(lambda r: (grad(r), jax.vmap(grad)(r[None])[0]))(jnp.array(1.5)):
        assert abs(got / (2 * jnp.exp(1.5)) - 1) < 1e-8


def test_a_batch_is_its_elements():
    x = inputs()
    starts = jnp.stack([x.y0, 3 * x.y0])

    def final(y0, args):
        return jnp.sum(solve(x._replace(y0=y0, args=args), SeminormAdjoint(), max_steps=4096).ys ** 2)

    run = jax.jit(jax.grad(final, argnums=(0, 1)))
    batched = jax.vmap(run, in_axes=(0, None))(starts, x.args)
    for i, y0 in enumerate(starts):
        assert worst(tuple(g[i] for g in batched), run(y0, x.args)) < 1e-10


def _controlled():
    return diffrax.PIDController(rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"saveat": diffrax.SaveAt(dense=True)}, r"dense=True.*AdaptiveCheckpointAdjoint"),
        ({"saveat": diffrax.SaveAt(steps=True)}, r"SaveAt\(steps=\.\.\.\)"),
        ({"saveat": diffrax.SaveAt(t1=True, fn=lambda t, y, args: y)}, r"SaveAt\(fn=\.\.\.\)"),
        ({"saveat": diffrax.SaveAt(subs=[diffrax.SubSaveAt(t1=True)])}, r"SaveAt\(subs=\.\.\.\)"),
        ({"event": diffrax.Event(lambda t, y, args, **kwargs: y[0] - 9)}, r"`event=\.\.\.`"),
    ],
)
def test_what_the_continuous_adjoint_cannot_do_is_refused(kwargs, match):
    with pytest.raises(UnsupportedError, match=match):
        solve(inputs(), SeminormAdjoint(), **kwargs)


def test_a_complex_state_is_refused():
    with pytest.raises(UnsupportedError, match=r"a complex state has no continuous adjoint in diffrax"):
        solve(inputs()._replace(y0=inputs().y0.astype(complex)), SeminormAdjoint())


def test_solvers_of_several_terms_and_noise_are_refused():
    def run(terms, solver, y0):
        diffrax.diffeqsolve(
            terms, solver, 0.0, 1.0, 0.1, y0, stepsize_controller=_controlled(), adjoint=SeminormAdjoint()
        )

    pair = (diffrax.ODETerm(lambda t, y, args: y), diffrax.ODETerm(lambda t, y, args: -y))
    with pytest.raises(UnsupportedError, match=r"solver=SemiImplicitEuler\(\.\.\.\)`, which takes several terms"):
        run(pair, diffrax.SemiImplicitEuler(), (1.0, 1.0))
    path = diffrax.VirtualBrownianTree(0.0, 1.0, 1e-3, (), jax.random.key(0))
    noise = diffrax.MultiTerm(pair[0], diffrax.ControlTerm(lambda t, y, args: y, path))
    with pytest.raises(UnsupportedError, match=r"ItoMilstein\(\.\.\.\)`, which converges to the Itô solution"):
        run(noise, diffrax.ItoMilstein(), 1.0)


def test_gradients_that_a_continuous_adjoint_does_not_have_are_refused():
    x = inputs()

    def final(y0, times):
        return jnp.sum(solve(x._replace(y0=y0, times=times), SeminormAdjoint(), max_steps=4096).ys ** 2)

    with pytest.raises(UnsupportedError, match=r"not for times.*AdaptiveCheckpointAdjoint"):
        jax.grad(final, argnums=1)(x.y0, x.times)
    with pytest.raises(UnsupportedError, match=r"first ones.*AdaptiveCheckpointAdjoint\(\)`.*second derivatives"):
        jax.grad(lambda y0: jnp.sum(jax.grad(final)(y0, x.times) ** 2))(x.y0)


@pytest.mark.parametrize(
    ("make", "kwargs", "match"),
    [
        (lambda: SeminormAdjoint("max"), {}, r"reduction='max'\): must be 'mixed' or 'joint'"),
        (lambda: SeminormAdjoint(norm=optimistix.max_norm), {}, r"norm=\.\.\.\): the norm is that of the forward"),
        (lambda: SeminormAdjoint(reltol=1e-3), {}, r"reltol=\.\.\.\): neither an argument of .* `PIDController`"),
        (SeminormAdjoint, {"stepsize_controller": diffrax.ConstantStepSize()}, r"ConstantStepSize.*no norm to choose"),
        (lambda: SeminormAdjoint("joint"), {"norm": optimistix.max_norm}, r"max_norm.*reduction='mixed'"),
        (SeminormAdjoint, {"norm": diffrax.adjoint_rms_seminorm}, r"adjoint_rms_seminorm.*made from a norm of y"),
        (lambda: SeminormAdjoint(integrals=lambda y: y), {}, r"leaves nothing of y"),
        (lambda: SeminormAdjoint(integrals=(True, False)), {}, r"structure \(True, False\) is not that of y"),
        (lambda: SeminormAdjoint(integrals=1), {}, r"a function that selects leaves of y, or a pytree of bools"),
    ],
)
def test_wrong_options_are_named(make, kwargs, match):
    if "norm" in kwargs:
        kwargs = {"stepsize_controller": diffrax.PIDController(rtol=1e-4, atol=1e-6, **kwargs)}
    with pytest.raises(OptionError, match=match):
        solve(inputs(), make(), **kwargs)
