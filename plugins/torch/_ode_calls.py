"""torchdiffeq's functions as they are while installed: which calls are ours, and which remain the host's."""

from __future__ import annotations

import functools
from typing import Any

import torch

from steptape._errors import OptionError
from steptape.compat import _torchdiffeq as host
from steptape.compat._torch import between_graphs, forward_mode_active, transforms_active
from steptape.torch import _odeint
from steptape.torch._autograd.stored import replayed_or
from steptape.torch._hosts.scheme import Adaptive
from steptape.torch._setting import INSTALLATIONS, Setting


@functools.wraps(host.odeint_adjoint)
def odeint_adjoint(*args: Any, **kwargs: Any) -> Any:
    if kwargs.get("method") == "aca":
        raise OptionError(
            "torchdiffeq.odeint_adjoint(..., method='aca'): 'aca' is a method of torchdiffeq.odeint. Here, name the "
            "solver and ask for the adjoint: odeint_adjoint(..., method='dopri5', adjoint_method='aca')."
        )
    setting = INSTALLATIONS.setting
    if setting is None or not setting.takes(kwargs.get("adjoint_method"), host.SOLVERS):
        return _odeint.odeint_adjoint(*args, **kwargs)
    if not torch.is_grad_enabled():
        return _forward_alone(*args, **kwargs)
    return _replayed(setting, args, kwargs)


odeint_adjoint.__doc__ = _odeint.odeint_adjoint.__doc__


@functools.wraps(host.odeint)
@between_graphs
def odeint(*args: Any, **kwargs: Any) -> Any:
    setting = INSTALLATIONS.setting
    if setting is None or not setting.override or not _is_ours(setting, **kwargs):
        return host.odeint(*args, **kwargs)
    by_host = functools.partial(host.odeint, *args, **kwargs)
    return replayed_or(by_host, _func(*args, **kwargs), lambda: _replayed(setting, args, kwargs))


@functools.wraps(host.odeint_event)
def odeint_event(*args: Any, **kwargs: Any) -> Any:
    # The host's default argument is what no door reaches.
    return host.odeint_event(*args, **{"odeint_interface": odeint, **kwargs})


@between_graphs
def _replayed(setting: Setting, args: Any, kwargs: dict[str, Any]) -> Any:
    scheme = _odeint.scheme_of_call(kwargs.get("method"), kwargs.get("options"))
    by_stages = scheme is None or scheme.tableau is not None
    options = setting.options(kwargs.get("adjoint_options"), by_stages)
    asked = {**kwargs, "adjoint_method": setting.default, "adjoint_options": options or None}
    with setting.explained("such as adjoint_method='dopri5'"):
        return _odeint.odeint_adjoint(*args, **asked)


def _func(func: Any, *_: Any, **__: Any) -> Any:
    return func


@between_graphs
def _forward_alone(*args: Any, **kwargs: Any) -> Any:
    """A call under ``no_grad``: nothing that it says of a backward pass counts."""
    forward = {name: value for name, value in kwargs.items() if not name.startswith("adjoint_")}
    return _odeint.odeint_adjoint(*args, **forward, adjoint_method="aca", adjoint_params=())


def _is_ours(setting: Setting, method: Any = None, options: Any = None, **kwargs: Any) -> bool:
    """Whether a plain call is one that the default adjoint can replay; else it is back-propagated through."""
    if not torch.is_grad_enabled() or transforms_active() or forward_mode_active():
        return False
    if any(isinstance(value, torch.Tensor) and value.requires_grad for value in (options or {}).values()):
        return False
    scheme = _odeint.scheme_of_call(method, options)
    return isinstance(scheme, Adaptive) if setting.default == "quadrature" else scheme is not None
