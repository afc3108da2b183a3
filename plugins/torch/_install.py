"""install(): torchdiffeq and torchsde themselves understand "aca", for call sites one cannot edit."""

from __future__ import annotations

import functools
import importlib.util
import threading
from typing import Any, Literal

from steptape._doors import Door, Entry, Installation, Place
from steptape._errors import OptionError
from steptape.compat import _torchdiffeq as host
from steptape.torch import _ode_calls
from steptape.torch._method import AcaSolver
from steptape.torch._options import keep_of
from steptape.torch._setting import INSTALLATIONS, Setting


def install(
    default: Literal["aca", "quadrature"] | None = None,
    *,
    adjoint_options: dict[str, Any] | None = None,
    override: bool = False,
) -> Installation:
    """Make torchdiffeq's own functions, and torchsde's, understand the adaptive checkpoint adjoint.

    For call sites one cannot edit, in other libraries or in code that goes on importing torchdiffeq:

    - ``torchdiffeq.odeint_adjoint(..., adjoint_method="aca")`` is ``steptape.torch.odeint_adjoint``; every other
      ``adjoint_method`` remains the host's.
    - ``torchdiffeq.odeint(..., method="aca", options={"method": "dopri5", ...})`` solves with the named solver
      ("dopri5" if none is) and replays its steps. ``options`` also takes ``"adjoint_options"`` and
      ``"adjoint_params"``, both as in ``odeint_adjoint``; all others are the named solver's.
    - ``torchsde.sdeint_adjoint(...)`` is ``steptape.torch.sdeint_adjoint``, where torchsde is installed.

    With a ``default``, calls need not name the adjoint:

    - ``odeint_adjoint`` and ``sdeint_adjoint`` without ``adjoint_method`` take it, and are refused where a call that
      names it is: another adjoint in its place would be another gradient. Under ``no_grad``, every solver runs.
    - With ``override=True``, so do those that name an adjoint of the host's own, and plain ``odeint``, ``sdeint`` and
      ``odeint_event`` where gradients are on. The solution stays the host's. Plain calls that are known not to be
      replayed stay the host's whole, since back-propagation through them is as exact: those with a solver that is none
      of torchdiffeq's, or is ``scipy_solver``; with an option that requires a gradient; with a func whose first
      evaluation stores its state or what it computes, such as a penalty for the loss; in forward mode, inside the
      transforms of ``torch.func``, and where anything else is refused before the call returns: then func is as it was
      before, and the host solves. What shows only in the backward pass is refused there.

    Reached are call sites that look the function up in torchdiffeq when they call it (such as torchcde's), and modules
    that hold it under a global name of their own, whatever that is, imported before or after
    (``from torchdiffeq import odeint_adjoint as odeint``). Not reached is what was stored elsewhere before: in a class,
    a closure, a default argument, a container, ``functools.partial``. There, ``adjoint_method="aca"`` is refused in the
    backward pass, and what names no adjoint is the host's own, as without us: install before such code is imported.

    Args:
        default: the adjoint for calls that name none. torchsde's take ``"aca"`` alone: under ``"quadrature"``, which
            SDEs have not, they stay torchsde's.
        adjoint_options: options of the ``default``, for the calls that take it; an option that a call gives itself
            counts instead. ``"graph"`` applies to solvers whose steps are replayed by stages.
        override: whether the ``default`` also takes the place of the hosts' own adjoints, where they are named, and of
            back-propagation through plain calls.

    Returns:
        A handle with ``uninstall()``, which is a context manager as well. Installations nest: of those that name a
        default the latest one still active counts, with its options, and the last one to be undone restores the hosts.
        All threads see the same ones.

    Supports:
        What ``odeint_adjoint`` does, in each form; ``torchdiffeq.odeint_event``; any number of threads. Not
        ``torchdiffeq.odeint_dense``, which is for dopri5 alone and is always back-propagated through.

    Raises:
        OptionError: ``default`` is no adjoint of ours, or the others are given without it or do not fit it.
        HostChangedError: someone else has replaced what is to be replaced here; nothing was changed.

    Example:
        >>> import torch, torchdiffeq
        >>> from steptape.torch import install
        >>> rate = torch.nn.Parameter(torch.tensor(1.0))
        >>> func, y0, t = lambda t, y: -rate * y, torch.ones(1), torch.tensor([0.0, 1.0])
        >>> with install(default="aca", adjoint_options={"checkpoints": 16}):
        ...     ys = torchdiffeq.odeint_adjoint(func, y0, t)
        >>> print(f"{torch.autograd.grad(ys[-1].sum(), rate)[0]:.3f}")  # -exp(-1)
        -0.368
    """
    setting = _setting(default, adjoint_options, override)
    with _MAKING:
        places = _places(override)
    return Installation(INSTALLATIONS, places, setting)


def _setting(default: Any, adjoint_options: Any, override: bool) -> Setting | None:
    if default not in (None, "aca", "quadrature"):
        raise OptionError(f"install(default={default!r}): no adjoint of steptape. Use 'aca' or 'quadrature'.")
    if default is None:
        for name, value in {"adjoint_options": adjoint_options, "override": override or None}.items():
            if value is not None:
                raise OptionError(
                    f"install({name}={value!r}): is for a default adjoint, and none is named. Pass default='aca' too."
                )
        return None
    options = dict(adjoint_options or {})
    if default == "aca":
        keep_of(options, "install")
    return Setting(default, options, override)


# A cache lets several threads compute at once, of which each would have doors of its own.
_MAKING = threading.Lock()


@functools.cache
def _places(override: bool) -> tuple[Place, ...]:
    """What is replaced: torchdiffeq's, and torchsde's if it is installed."""
    places: list[Place] = list(_places(False)) if override else [_SOLVER]
    functions = ("odeint", "odeint_event") if override else ("odeint_adjoint",)
    places += [_door(host, _ode_calls, function) for function in functions]
    if importlib.util.find_spec("torchsde"):
        from steptape.compat import _torchsde
        from steptape.torch import _sde_calls

        places.append(_door(_torchsde, _sde_calls, "sdeint" if override else "sdeint_adjoint"))
    return tuple(places)


_SOLVER = Entry("torchdiffeq's solver 'aca'", host.SOLVERS, "aca", AcaSolver)


def _door(of_host: Any, calls: Any, function: str) -> Door:
    names = [f"{module}.{function}" for module in of_host.HOLDERS[function]]
    return Door(names, getattr(of_host, function), getattr(calls, function))
