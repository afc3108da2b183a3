"""install(): torchdiffeq and torchsde themselves understand "aca", for call sites one cannot edit."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import sys
import threading
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any

from steptape._errors import HostChangedError, OptionError
from steptape.compat import _torchdiffeq as host
from steptape.torch._method import AcaSolver
from steptape.torch._odeint import odeint_adjoint

_LOCK = threading.RLock()
_active: list[Installation] = []


class Installation:
    """One ``install()``: undone by ``uninstall()``, or at the end of a ``with`` block."""

    def uninstall(self) -> None:
        """Undo this ``install()``; the last one still standing gives the hosts back as they were found.

        Raises ``HostChangedError``, and changes nothing, where someone else has replaced ours in the meantime. Calling
        it again does nothing.
        """
        with _LOCK:
            if self not in _active:
                return
            if len(_active) == 1:
                _check_hosts(installed=True, way_out="Undo that first, then call uninstall() again.")
                for door in _doors():
                    _replace(door.ours, door.original)
                del host.SOLVERS["aca"]
            _active.remove(self)

    def __enter__(self) -> Installation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.uninstall()


def install() -> Installation:
    """Make torchdiffeq's own functions, and torchsde's, understand the adaptive checkpoint adjoint.

    For call sites one cannot edit, in other libraries or in code that goes on importing torchdiffeq:

    - ``torchdiffeq.odeint_adjoint(..., adjoint_method="aca")`` is ``steptape.torch.odeint_adjoint``; every other
      ``adjoint_method`` remains the host's.
    - ``torchdiffeq.odeint(..., method="aca", options={"method": "dopri5", ...})`` solves with the named solver
      ("dopri5" if none is) and replays its steps. ``options`` also takes ``"adjoint_options"`` and
      ``"adjoint_params"``, both as in ``odeint_adjoint``; all others are the named solver's.
    - ``torchsde.sdeint_adjoint(...)`` is ``steptape.torch.sdeint_adjoint``, where torchsde is installed.

    Reached are call sites that look the function up in torchdiffeq when they call it (such as torchcde's), and modules
    that hold it under a global name of their own, whatever that is, imported before or after
    (``from torchdiffeq import odeint_adjoint as odeint``). Not reached is what was stored elsewhere before: in a class,
    a closure, a default argument, a container, ``functools.partial``. There, ``adjoint_method="aca"`` is refused in the
    backward pass.

    Returns:
        A handle with ``uninstall()``, which is a context manager as well. Installations nest, and the last one to be
        undone restores the hosts. All threads see the same ones.

    Supports:
        What ``odeint_adjoint`` does, in either form; ``torchdiffeq.odeint_event`` with either; any number of threads.
        Not ``torchdiffeq.odeint_dense``, which is for dopri5 alone.

    Raises:
        HostChangedError: someone else has replaced what is to be replaced here; nothing was changed.

    Example:
        >>> import torch, torchdiffeq
        >>> from steptape.torch import install
        >>> rate = torch.nn.Parameter(torch.tensor(1.0))
        >>> func, y0, t = lambda t, y: -rate * y, torch.ones(1), torch.tensor([0.0, 1.0])
        >>> with install():
        ...     ys = torchdiffeq.odeint_adjoint(func, y0, t, adjoint_method="aca")
        >>> print(f"{torch.autograd.grad(ys[-1].sum(), rate)[0]:.3f}")  # -exp(-1)
        -0.368
    """
    with _LOCK:
        if _active:
            _check_hosts(installed=True, way_out="Undo that, or call steptape.torch.odeint_adjoint.")
        else:
            way_out = "Call install() before that happens, or call steptape.torch.odeint_adjoint."
            _check_hosts(installed=False, way_out=way_out)
            host.SOLVERS["aca"] = AcaSolver
            for door in _doors():
                _replace(door.original, door.ours)
        installation = Installation()
        _active.append(installation)
        return installation


@functools.wraps(host.odeint_adjoint)
def _understands_aca(*args: Any, **kwargs: Any) -> Any:
    if kwargs.get("method") == "aca":
        raise OptionError(
            "torchdiffeq.odeint_adjoint(..., method='aca'): 'aca' is a method of torchdiffeq.odeint. Here, name the "
            "solver and ask for the adjoint: odeint_adjoint(..., method='dopri5', adjoint_method='aca')."
        )
    return odeint_adjoint(*args, **kwargs)


_understands_aca.__doc__ = odeint_adjoint.__doc__


@dataclasses.dataclass(frozen=True)
class _Door:
    """A function of a host's, the names in the host's modules that stand for it, and ours in its place.

    ``keeper``: the module of ours that goes on holding the original.
    """

    names: tuple[str, ...]
    original: Callable[..., Any]
    ours: Callable[..., Any]
    keeper: ModuleType


@functools.cache
def _doors() -> tuple[_Door, ...]:
    """torchdiffeq's, and torchsde's if it is installed."""
    names = tuple(f"{module}.odeint_adjoint" for module in host.HOLDERS)
    doors = [_Door(names, host.odeint_adjoint, _understands_aca, host)]
    if importlib.util.find_spec("torchsde"):
        from steptape.compat import _torchsde as sde_host
        from steptape.torch._sdeint import sdeint_adjoint

        @functools.wraps(sde_host.sdeint_adjoint)
        def sde_understands_aca(*args: Any, **kwargs: Any) -> Any:
            return sdeint_adjoint(*args, **kwargs)

        names = tuple(f"{module}.sdeint_adjoint" for module in sde_host.HOLDERS)
        doors.append(_Door(names, sde_host.sdeint_adjoint, sde_understands_aca, sde_host))
    return tuple(doors)


def _check_hosts(installed: bool, way_out: str) -> None:
    """Raise unless the hosts hold what they should, be it ours or their own."""
    places: list[tuple[str, Any, Any]] = [
        ("torchdiffeq's solver 'aca'", host.SOLVERS.get("aca"), AcaSolver if installed else None)
    ]
    for door in _doors():
        for name in door.names:
            module, _, function = name.rpartition(".")
            found = getattr(sys.modules.get(module), function, None)
            places.append((name, found, door.ours if installed else door.original))
    for place, found, expected in places:
        if found is not expected:
            raise HostChangedError(
                f"{place} is {_described(found)}, not {_described(expected)}: someone else has replaced it. {way_out}"
            )


def _described(found: Any) -> str:
    code = getattr(found, "__code__", None)
    return f"{found!r} of {code.co_filename}:{code.co_firstlineno}" if code else repr(found)


def _replace(old: Any, new: Any) -> None:
    """Put ``new`` wherever a module's global name stands for ``old``, but for those of ours that must keep it."""
    keepers = [*(door.keeper for door in _doors()), sys.modules[__name__]]
    for module in list(sys.modules.values()):
        # By type and straight to the dictionary: asking a lazy module for anything would load it.
        if not issubclass(type(module), ModuleType) or any(module is keeper for keeper in keepers):
            continue
        names = object.__getattribute__(module, "__dict__")
        for name, value in dict(names).items():
            if value is old:
                names[name] = new
