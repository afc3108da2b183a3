"""Gradients of equinox's checkpointed loop, and of diffrax through it, that lose a step. Needs equinox and diffrax."""

import functools

import diffrax
import equinox.internal as eqxi
import jax
import jax.numpy as jnp

jax.config.update("jax_enable_x64", True)

# Ten steps y -> p y of size 0.1; y is added to the total at the first step that ends at or after 0.2, 0.4, ..., 1.0.
OUTPUTS = jnp.linspace(0.0, 1.0, 6)


def total(p, way):
    """The sum of the outputs, by equinox's loop alone; `way`: its checkpoints."""

    def body(carry):
        step, steps, time, output, y, total = carry
        y = p * y
        due = OUTPUTS[output] <= time
        return step + 1, steps, (step + 2) / steps, output + due, y, total + jnp.where(due, y, 0.0)

    start = (0, 10, 0.1, 1, 1.0, 0.0)
    end = eqxi.while_loop(lambda carry: carry[0] < 10, body, start, kind="checkpointed", max_steps=10, checkpoints=way)
    return end[-1]


def squares(p, steps, outputs, way):
    """The sum of the squares of the outputs of Euler's method for dy/dt = -p y; `way`: an adjoint."""
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, p: -p * y),
        diffrax.Euler(),
        t0=0.0,
        t1=2.0,
        dt0=2.0 / steps,
        y0=jnp.array(1.0),
        args=p,
        saveat=diffrax.SaveAt(ts=jnp.linspace(0.0, 2.0, outputs)),
        adjoint=way,
    )
    return jnp.sum(solution.ys**2)


def compared(name, fun, p, *ways):
    """Print the gradient in each of two ways, of which the second is right; return how far off the first is."""
    few, many = (jax.jit(jax.value_and_grad(functools.partial(fun, way=way))) for way in ways)
    quotient = float(few(p + 1e-5)[0] - few(p - 1e-5)[0]) / 2e-5
    got, right = float(few(p)[1]), float(many(p)[1])
    print(f"{name}: {got:.6f}, with as many checkpoints as steps {right:.6f}, by differences {quotient:.6f}")
    assert abs(right / quotient - 1) < 1e-8
    return abs(got / right - 1)


def main():
    """Compare gradients that should be equal; fail where they are not."""
    default, held = diffrax.RecursiveCheckpointAdjoint(), diffrax.RecursiveCheckpointAdjoint(checkpoints=4096)
    wrong = [compared("equinox, 10 steps", total, 0.9, 5, 10)]
    for steps, outputs in ((198, 100), (130, 11)):
        loss = functools.partial(squares, steps=steps, outputs=outputs)
        wrong.append(compared(f"diffrax, {steps} steps, {outputs} outputs", loss, 0.7, default, held))
    print("relative errors:", ", ".join(f"{error:.2e}" for error in wrong))
    assert max(wrong) < 1e-12, "gradients are wrong"


if __name__ == "__main__":
    main()
