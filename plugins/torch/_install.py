"""install(): torchdiffeq itself understands "aca", for call sites one cannot edit."""

from __future__ import annotations

import functools
import sys
import threading
from types import ModuleType, TracebackType
from typing import Any

from steptape._errors import HostChangedError, OptionError
from steptape.compat import _torchdiffeq as host
from steptape.torch._odeint import odeint_adjoint
from steptape.torch._solver import AcaSolver

_LOCK = threading.RLock()
_active: list[Installation] = []


class Installation:
    """One ``install()``: undone by ``uninstall()``, or at the end of a ``with`` block."""

    def uninstall(self) -> None:
        """Undo this ``install()``; the last one still standing gives torchdiffeq back as it was found.

        Raises ``HostChangedError``, and changes nothing, where someone else has replaced ours in the meantime. Calling
        it again does nothing.
        """
        with _LOCK:
            if self not in _active:
                return
            if len(_active) == 1:
                _check_host(_understands_aca, AcaSolver, "Undo that first, then call uninstall() again.")
                _replace(_understands_aca, host.odeint_adjoint)
                del host.SOLVERS["aca"]
            _active.remove(self)

    def __enter__(self) -> Installation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.uninstall()


def install() -> Installation:
    """Make torchdiffeq's own functions understand the adaptive checkpoint adjoint.

    For call sites one cannot edit, in other libraries or in code that goes on importing torchdiffeq:

    - ``torchdiffeq.odeint_adjoint(..., adjoint_method="aca")`` is ``steptape.torch.odeint_adjoint``; every other
      ``adjoint_method`` remains the host's.
    - ``torchdiffeq.odeint(..., method="aca", options={"method": "dopri5", ...})`` solves with the named solver
      ("dopri5" if none is) and replays its steps. ``options`` also takes ``"adjoint_options"`` and, where func is no
      ``nn.Module``, ``"adjoint_params"``, both as in ``odeint_adjoint``; all others are the named solver's.

    Reached are call sites that look the function up in torchdiffeq when they call it (such as torchcde's), and modules
    that hold it under a global name of their own, whatever that is, imported before or after
    (``from torchdiffeq import odeint_adjoint as odeint``). Not reached is what was stored elsewhere before: in a class,
    a closure, a default argument, a container, ``functools.partial``. There, ``adjoint_method="aca"`` is refused in the
    backward pass.

    Returns:
        A handle with ``uninstall()``, which is a context manager as well. Installations nest, and the last one to be
        undone restores torchdiffeq. All threads see the same torchdiffeq.

    Raises:
        HostChangedError: someone else has replaced what is to be replaced here; nothing was changed.

    Supports:
        What ``odeint_adjoint`` does, in either form; ``torchdiffeq.odeint_event`` with either; any number of threads.
        Not ``torchdiffeq.odeint_dense``, which is for dopri5 alone.
    """
    with _LOCK:
        if _active:
            _check_host(_understands_aca, AcaSolver, "Undo that, or call steptape.torch.odeint_adjoint.")
        else:
            way_out = "Call install() before that happens, or call steptape.torch.odeint_adjoint."
            _check_host(host.odeint_adjoint, None, way_out)
            host.SOLVERS["aca"] = AcaSolver
            _replace(host.odeint_adjoint, _understands_aca)
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


def _check_host(function: Any, solver: Any, way_out: str) -> None:
    """Raise unless torchdiffeq holds this function and this solver for "aca"."""
    places = [("torchdiffeq's solver 'aca'", host.SOLVERS.get("aca"), solver)]
    for name in host.HOLDERS:
        places.append((f"{name}.odeint_adjoint", getattr(sys.modules.get(name), "odeint_adjoint", None), function))
    for place, found, expected in places:
        if found is not expected:
            raise HostChangedError(
                f"{place} is {_described(found)}, not {_described(expected)}: someone else has replaced it. {way_out}"
            )


def _described(found: Any) -> str:
    code = getattr(found, "__code__", None)
    return f"{found!r} of {code.co_filename}:{code.co_firstlineno}" if code else repr(found)


def _replace(old: Any, new: Any) -> None:
    """Put ``new`` wherever a module's global name stands for ``old``, but for our own two that must keep it."""
    keepers = (host, sys.modules[__name__])
    for module in list(sys.modules.values()):
        # By type and straight to the dictionary: asking a lazy module for anything would load it.
        if not issubclass(type(module), ModuleType) or any(module is keeper for keeper in keepers):
            continue
        names = object.__getattribute__(module, "__dict__")
        for name, value in dict(names).items():
            if value is old:
                names[name] = new
