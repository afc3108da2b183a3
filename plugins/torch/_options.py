"""``adjoint_options`` and ``adjoint_params``, read and checked, and what of a call has no effect."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from steptape._errors import OptionError, SteptapeWarning
from steptape.torch._tape.checkpoints import Keep

_told: set[str] = set()


def keep_of(
    options: dict[str, Any] | None,
    function: str = "odeint_adjoint",
    adjoint_method: str = "aca",
    of_hosts: Collection[str] = (),
) -> Keep:
    """What the ``adjoint_options`` of a call of ``function`` ask to keep, or raise ``OptionError``.

    ``of_hosts``: the names of options for a backward solve, which have no effect.
    """
    options = dict(options or {})
    idle = [name for name in options if name in of_hosts]
    tell(function, [f"adjoint_options={{{name!r}: {options.pop(name)!r}}}" for name in idle])
    checkpoints = options.pop("checkpoints", None)
    device = options.pop("checkpoint_device", None)
    graph = options.pop("graph", "step")
    lean = options.pop("lean", True) if function == "odeint_adjoint" else True
    call = f"{function}(..., adjoint_method={adjoint_method!r}, adjoint_options={{"
    if options:
        name, value = next(iter(options.items()))
        raise OptionError(
            f"{call}{name!r}: {value!r}}}): unknown option. The adaptive checkpoint adjoint takes 'checkpoints', "
            f"'checkpoint_device'{',' if function == 'odeint_adjoint' else ', and for ODEs'} 'graph' and 'lean'."
        )
    if checkpoints is not None and (type(checkpoints) is not int or checkpoints < 1):
        raise OptionError(
            f"{call}'checkpoints': {checkpoints!r}}}): must be a positive number of states, or None to keep all."
        )
    if graph not in ("step", "stage"):
        raise OptionError(f"{call}'graph': {graph!r}}}): must be 'step' or 'stage'.")
    if not isinstance(lean, bool):
        raise OptionError(f"{call}'lean': {lean!r}}}): must be True or False.")
    try:
        device = None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise OptionError(f"{call}'checkpoint_device': {device!r}}}): no torch device ({error}).") from error
    return Keep(checkpoints, device, graph, lean=lean)


def parameters_of(
    func: Any, own: Callable[[Any], Iterable[Tensor]], adjoint_params: Iterable[Tensor] | None, call: str, spelling: str
) -> list[Tensor]:
    """Those given, or else the ``own`` ones of a module; each once, and only those that require a gradient.

    ``call``, with a place for ``func``, which it names first, and ``spelling``, of the argument to pass them in, word
    the refusal. Only that writes func out, which for a large module takes as long as many evaluations.
    """
    if adjoint_params is None and not isinstance(func, torch.nn.Module):
        name = call.partition("(")[2].partition("=")[0]
        raise OptionError(
            f"{call.format(func)}: {name} is no torch.nn.Module, so its parameters are unknown. Make it one, or "
            f"pass {spelling}, which is () if there are none."
        )
    params = list(own(func) if adjoint_params is None else adjoint_params)
    if not all(isinstance(p, Tensor) for p in params):
        raise OptionError(f"{call.format(func)} with {spelling}: must be tensors, such as tuple(func.parameters()).")
    once = list({id(p): p for p in params if p.requires_grad}.values())
    if _depend_on_each_other(once):
        raise OptionError(
            f"{call.format(func)} with {spelling}: one of these tensors was computed from another, which would count "
            "its gradient twice. Leave out the other one: autograd passes its gradient on. If both are used, compute "
            "one from the other where they are used."
        )
    return once


def _depend_on_each_other(tensors: Sequence[Tensor]) -> bool:
    """Whether the graph of one of the tensors leads to another one of them."""
    nodes: set[Any] = {x.grad_fn for x in tensors} - {None}
    leaves = {id(x) for x in tensors if x.is_leaf}
    seen: set[Any] = set()
    front = [parent for node in nodes for parent, _ in node.next_functions]
    while front:
        node = front.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in nodes or id(getattr(node, "variable", None)) in leaves:
            return True
        front.extend(parent for parent, _ in node.next_functions)
    return False


def tell(function: str, names: Iterable[str]) -> None:
    """Warn, once a process for each name, that a replay solves nothing backward."""
    new = [name for name in names if f"{function} {name}" not in _told]
    if new:
        _told.update(f"{function} {name}" for name in new)
        warnings.warn(
            f"{function}(..., adjoint_method='aca'): {', '.join(new)} have no effect, since a replay solves nothing "
            "backward. Its gradient is that of the solve's own steps.",
            SteptapeWarning,
            stacklevel=4,
        )


def changed(settings: dict[str, tuple[Any, Any]]) -> list[str]:
    """The names of settings, (value, default), that ask for something else than the default."""
    return [name for name, (value, default) in settings.items() if value is not None and not _same(value, default)]


def _same(value: Any, default: Any) -> bool:
    plain = (bool, int, float)
    return value is default or (isinstance(value, plain) and isinstance(default, plain) and value == default)
