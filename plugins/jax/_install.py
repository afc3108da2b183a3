"""install(): diffrax's own ``diffeqsolve`` takes an adjoint of ours, for call sites one cannot edit."""

import functools
from typing import Any

import diffrax

from steptape._doors import Door, Installation, Installations
from steptape._errors import OptionError
from steptape.compat import _diffrax as host

# Not ForwardMode and ImplicitAdjoint, which are for another derivative.
_OF_HOST = (diffrax.RecursiveCheckpointAdjoint, diffrax.DirectAdjoint, diffrax.BacksolveAdjoint)
_installed = Installations("diffrax.diffeqsolve with `adjoint=`")


def install(default: diffrax.AbstractAdjoint, *, override: bool = False) -> Installation:
    """Make ``diffrax.diffeqsolve`` take an adjoint by default, for call sites one cannot edit.

    Calls without ``adjoint=`` take ``default``, as if they named it: the solution stays diffrax's, and what the adjoint
    refuses, it refuses when the solve is differentiated. With ``override=True``, so do calls that name diffrax's
    ``RecursiveCheckpointAdjoint``, ``DirectAdjoint`` or ``BacksolveAdjoint``; ``ForwardMode`` and ``ImplicitAdjoint``,
    which are for other derivatives, stay, and so do all that are not diffrax's own.

    Reached are call sites that look the function up in diffrax when they call it (such as diffraxtra's, which names
    diffrax's default and needs ``override=True``), and modules that hold it under a global name of their own, imported
    before or after. Not reached is what was stored elsewhere before: in a class, a closure, ``functools.partial``. Nor
    is what was compiled before: a function under ``jax.jit`` keeps the program that it was traced to, with the adjoint
    of that time, as it keeps ours after ``uninstall()``. Install before the first call, or trace anew
    (``jax.clear_caches()``).

    Args:
        default: the adjoint, such as ``AdaptiveCheckpointAdjoint(checkpoints=16)``.
        override: whether it also takes the place of diffrax's own adjoints where they are named.

    Returns:
        A handle with ``uninstall()``, which is a context manager as well. Installations nest: the latest one still
        active counts, and the last one to be undone restores diffrax. All threads see the same ones.

    Supports:
        What ``default`` does; any number of threads.

    Raises:
        OptionError: ``default`` is no adjoint.
        HostChangedError: someone else has replaced ``diffeqsolve``; nothing was changed.

    Example:
        >>> import diffrax, jax
        >>> from steptape.jax import AdaptiveCheckpointAdjoint, install
        >>> def end(rate):
        ...     term, controller = diffrax.ODETerm(lambda t, y, rate: -rate * y), diffrax.PIDController(1e-5, 1e-5)
        ...     sol = diffrax.diffeqsolve(
        ...         term, diffrax.Tsit5(), 0.0, 1.0, 0.1, 1.0, rate, stepsize_controller=controller
        ...     )
        ...     return sol.ys[0]
        >>> with install(default=AdaptiveCheckpointAdjoint()):
        ...     print(f"{jax.grad(end)(1.0):.3f}")
        -0.368
    """
    if not isinstance(default, diffrax.AbstractAdjoint):
        raise OptionError(
            f"install(default={default!r}): must be an adjoint, such as steptape.jax.AdaptiveCheckpointAdjoint()."
        )
    return Installation(_installed, [_DOOR], (default, override))


@functools.wraps(host.diffeqsolve, updated=())
def _diffeqsolve(*args: Any, **kwargs: Any) -> diffrax.Solution:
    if _installed.setting is not None:
        default, override = _installed.setting
        if "adjoint" not in kwargs or (override and type(kwargs["adjoint"]) in _OF_HOST):
            kwargs["adjoint"] = default
    return host.diffeqsolve(*args, **kwargs)


# diffrax's continuous adjoints go on calling the host's own.
_DOOR = Door([f"{module}.diffeqsolve" for module in host.HOLDERS], host.diffeqsolve, _diffeqsolve, host.KEEPERS)
