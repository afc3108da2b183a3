"""The derivative of ``lax.nextafter``, by which hosts mark the last time before a bound.

equinox gives its functions of it one, but where JAX splits a scan to transpose it, it drops such rules, and the second
derivative meets the operation itself.
"""

from jax import lax
from jax.interpreters import ad


def make_differentiable() -> None:
    """Let the next number move with the number, as equinox says, where JAX has no derivative of its own."""
    if lax.nextafter_p not in ad.primitive_jvps:
        ad.defjvp(lax.nextafter_p, lambda tangent, x, towards: tangent, None)
