"""torchsde's functions as they are while installed: which calls are ours, and which remain the host's."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch

from steptape.compat import _torchsde as host
from steptape.compat._torch import between_graphs, forward_mode_active, transforms_active
from steptape.torch import _sdeint
from steptape.torch._setting import INSTALLATIONS, Setting


@functools.wraps(host.sdeint_adjoint)
@between_graphs
def sdeint_adjoint(*args: Any, **kwargs: Any) -> Any:
    setting = INSTALLATIONS.setting
    if setting is None or setting.default != "aca":
        return _sdeint.sdeint_adjoint(*args, **kwargs)
    call = _bound(_sdeint.sdeint_adjoint, args, kwargs)
    if not setting.takes(call.get("adjoint_method"), host.METHODS):
        return _sdeint.sdeint_adjoint(*args, **kwargs)
    if not torch.is_grad_enabled():
        forward = {name: value for name, value in call.items() if not name.startswith("adjoint_")}
        return _sdeint.sdeint_adjoint(**forward, adjoint_method="aca", adjoint_params=())
    return _replayed(setting, call)


sdeint_adjoint.__doc__ = _sdeint.sdeint_adjoint.__doc__


@functools.wraps(host.sdeint)
@between_graphs
def sdeint(*args: Any, **kwargs: Any) -> Any:
    setting = INSTALLATIONS.setting
    ours = setting is not None and setting.override and setting.default == "aca"
    if not ours or not torch.is_grad_enabled() or transforms_active() or forward_mode_active():
        return host.sdeint(*args, **kwargs)
    known = inspect.signature(host.sdeint).parameters
    host.handle_unused_kwargs({name: kwargs.pop(name) for name in set(kwargs) - set(known)}, msg="`sdeint`")
    call = _bound(host.sdeint, args, kwargs)
    return _sdeint.replayed_or_not(call, lambda: _replayed(setting, call))


def _replayed(setting: Setting, call: dict[str, Any]) -> Any:
    options = setting.options(call.get("adjoint_options"), by_stages=False)
    with setting.explained("such as adjoint_method='euler'"):
        return _sdeint.sdeint_adjoint(**{**call, "adjoint_method": "aca", "adjoint_options": options or None})


def _bound(function: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names."""
    names = list(inspect.signature(function).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}
