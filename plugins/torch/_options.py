"""``adjoint_options`` and ``adjoint_params``, read and checked, and what of a call has no effect."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from steptape._errors import GradientError, OptionError, SteptapeWarning
from steptape._sizes import bytes_of
from steptape.compat._torch import gathers_parameters, transforms_active
from steptape.torch._autograd.graph import Call, is_one_of, refuse_hooks, refuse_written
from steptape.torch._autograd.held import Held
from steptape.torch._autograd.looks import Inside, Traits
from steptape.torch._autograd.modules import modules_of
from steptape.torch._autograd.side import same
from steptape.torch._autograd.stored import check_stored, tried
from steptape.torch._autograd.surroundings import FirstValues, Surroundings, Untouched
from steptape.torch._autograd.used import (
    First,
    Used,
    computed_before,
    parameters_used,
    piled_up,
    tensors_used,
    used_later,
    with_graph,
)
from steptape.torch._hosts.base import Before, Solve
from steptape.torch._replay.first import Repeats
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
    takes_memory = adjoint_method == "aca"
    memory = options.pop("memory", "states") if takes_memory else "states"
    checkpoints = options.pop("checkpoints", None)
    device = options.pop("checkpoint_device", None)
    graph = options.pop("graph", "step")
    lean = options.pop("lean", True) if function != "sdeint_adjoint" else True
    compiles = options.pop("compile", False) if takes_memory and function != "sdeint_adjoint" else False
    call = f"{function}(..., adjoint_method={adjoint_method!r}, adjoint_options={{"
    if options:
        name, value = next(iter(options.items()))
        raise OptionError(
            f"{call}{name!r}: {value!r}}}): unknown option. The adaptive checkpoint adjoint takes 'memory', "
            f"'checkpoints', 'checkpoint_device'{',' if function == 'odeint_adjoint' else ', and for ODEs'} 'graph', "
            "'compile' and 'lean'."
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
    size = _memory(memory, call)
    if size != "states" and not (checkpoints is None and device is None):
        other = "checkpoints" if checkpoints is not None else "checkpoint_device"
        raise OptionError(
            f"{call}'memory': {memory!r}, {other!r}: ...}}): each says what is kept, and where. Leave out 'memory' for "
            f"states alone, or leave out {other!r}."
        )
    compile = _compile(compiles, call)
    if compile is not None and (size != "states" or graph == "stage"):
        other = f"'memory': {memory!r}" if size != "states" else "'graph': 'stage'"
        raise OptionError(
            f"{call}'compile': ..., {other}}}): a compiled step is taken again as a whole, from its state. Leave out "
            "one of them."
        )
    return Keep(checkpoints, device, graph, lean=lean, memory=size, compile=compile)


def _compile(compiles: Any, call: str) -> dict[str, Any] | None:
    """The arguments of ``torch.compile``, or None for no compiling."""
    if isinstance(compiles, bool):
        return {} if compiles else None
    if isinstance(compiles, dict) and set(compiles) <= {"backend", "mode", "options"}:
        return compiles
    raise OptionError(
        f"{call}'compile': {compiles!r}}}): must be True, False, or a dict of torch.compile's 'backend', 'mode' and "
        "'options'."
    )


def _memory(memory: Any, call: str) -> Any:
    """``"states"``, ``"graphs"``, or a number of bytes."""
    if memory in ("states", "graphs"):
        return memory
    if (count := bytes_of(memory)) is not None:
        return count
    raise OptionError(
        f"{call}'memory': {memory!r}}}): must be 'states', 'graphs', or a size, such as '2 GiB', '500 MB', or a number "
        "of bytes."
    )


# What computes in another way, and to other values, where no graph is built.
_BY_GRAPH = (
    torch.nn.RNNBase,
    torch.nn.MultiheadAttention,
    torch.nn.TransformerEncoderLayer,
    torch.nn.TransformerEncoder,
)


def with_parameters(
    solve: Any,
    given: Sequence[Tensor],
    adjoint_params: Iterable[Tensor] | None,
    spelling: str = "adjoint_params=(...)",
    since: int | None = None,
) -> tuple[Any, list[Tensor]]:
    """A ``Solve``, and what it is differentiated in besides what it is given: ``adjoint_params``, or all func uses.

    Each once, and only those that require a gradient. ``spelling``, of the argument they are passed in, words a
    refusal. ``since``: the place in the order of nodes where the call began, if the host has evaluated anything before.
    """
    named = None if adjoint_params is None else _named(solve, adjoint_params, spelling)
    if not torch.is_grad_enabled() or transforms_active():
        return solve, []
    func = solve.user_func
    inside, surroundings = Inside(), Surroundings(given[0].device, func)
    _check_sharding(solve.call, surroundings.modules)
    untouched = Untouched(surroundings, func)
    if (call := tried(func)) is not None:
        call.untouched = call.untouched or untouched
    with surroundings.looked_at():
        enclosed = solve.around(inside)
        used = tensors_used(enclosed.evaluated, given, since, inside, untouched, enclosed.grid)
        piled: Sequence[Any] = ()
        if used.stored and call is not None:
            piled = piled_up(used, enclosed.evaluated, given, inside, untouched.side)
    check_stored(func, bool(used.stored), piled, solve.calls_back)
    logged = untouched.gained.tensors
    used = used._replace(after=untouched.follow(used.after))
    _check_traits(solve.call, used.traits)
    by_graph = untouched.held.asks_for_graphs or any(isinstance(x, _BY_GRAPH) for x in surroundings.modules)
    if used.traits.needs_graph or by_graph:
        solve = solve.around(with_graph)
    held, is_taken = _after_look(solve, surroundings, untouched, used)
    own = surroundings.parameters
    near = [*held.tensors, *own]
    params = parameters_used(used, given, own if isinstance(func, torch.nn.Module) else (), near, named)
    if named is None:
        params += [x for x in solve.in_options if not is_one_of(x, params)]
    if named is None and (late := computed_before(near, params)):
        with surroundings.looked_at(), held.as_it_was():
            params += used_later(late, lambda: solve.integrate(*(x.detach() for x in given)))
    if named:
        _tell_missed(solve, [x for x in used.tensors if not is_one_of(x, params)], spelling)
    # Of what its first evaluation has stored without a history, a later one may store more.
    apart = None
    if used.stored or not all(is_one_of(x, surroundings.side.buffers) for x in logged):
        solve, apart = solve.apart([*given, *params])
    own_ids = set(map(id, params))
    kept_ones, first = ([x for x in xs if id(x) in own_ids] for xs in (used.kept, used.first))
    begun = untouched if held is untouched.held and not logged else untouched.after_look(held)
    before = Before(surroundings, begun, first, kept_ones, used.traits, bool(used.stored), apart)
    solve = dataclasses.replace(solve, before=before, call=solve.call._replace(named=named is not None))
    surroundings.first = FirstValues(untouched.note, used.values, solve.around)
    if used.values and is_taken:
        solve = solve.beginning_with(
            First(given[0].detach().clone(), used.values[0], used.after, held is untouched.held)
        )
    elif used.values and solve.keep.memory != "states":
        solve = solve.around(Repeats(used.values[0], inside.place, solve.call, surroundings.autocast), first=True)
    return solve, params


def _after_look(solve: Any, surroundings: Surroundings, untouched: Untouched, used: Used) -> tuple[Held, bool]:
    """What func refers to where the solve begins, and whether that is after the evaluation that was looked at.

    It is where that evaluation has drawn random numbers, has made parameters, or computed something that func keeps:
    with a graph, or without one in a solve that is replayed by states. Else all is as if func had not been evaluated,
    as it is where no ``solve`` begins with an evaluation that was taken before, and others use nothing that it has
    computed.
    """
    if any(x.grad_fn is not None for x in untouched.gained.elsewhere):
        # It has the history of each look.
        untouched.restore()
        return untouched.held, False
    is_taken = not same(untouched.note, used.after)
    if untouched.holds:
        return untouched.held, is_taken
    held = untouched.held_now
    if untouched.made_one_of(used.tensors, held):
        surroundings.note_modules()
        return held, True
    if not (solve.begins or used.kept):
        untouched.restore()
        return untouched.held, False
    gained = not set(map(id, held.tensors)) <= set(map(id, untouched.held.tensors))
    if is_taken or used.leaves or (gained and solve.keep.memory == "states"):
        return held, True
    untouched.restore()
    return untouched.held, False


def _check_sharding(call: Call, modules: Iterable[torch.nn.Module]) -> None:
    if any(map(gathers_parameters, set(map(type, modules)))):
        raise GradientError(
            f"{call}: {call.func} is sharded by FSDP, or a part of it is, which gathers its parameters for "
            "each evaluation and reduces their gradients after it, as often as it is evaluated. Wrap the model that "
            f"contains the solve, not {call.func}."
        )


def _check_traits(call: Call, traits: Traits) -> None:
    if traits.hooks_given:
        refuse_hooks(call)
    if traits.writes_given:
        refuse_written(call)
    if traits.whole:
        raise GradientError(
            f"{call}: {call.func} uses torch.utils.checkpoint with use_reentrant=True, which torch cannot ask for the "
            "gradient of one evaluation alone. Pass it use_reentrant=False; or leave it out, since states alone are "
            "kept of a solve."
        )


def _named(solve: Solve, adjoint_params: Iterable[Tensor], spelling: str) -> list[Tensor]:
    named = list(adjoint_params)
    if not all(isinstance(p, Tensor) for p in named):
        call = solve.call
        raise OptionError(
            f"{call.function}({call.func}={solve.user_func!r}, ...) with {spelling}: must be tensors, such as "
            f"tuple({call.func}.parameters())."
        )
    return [p for p in named if p.requires_grad]


def _tell_missed(solve: Solve, missed: Sequence[Tensor], spelling: str) -> None:
    names = {id(p): name for module in modules_of(solve.user_func) for name, p in module.named_parameters()}
    told = ", ".join(f"{tuple(x.shape)} {_origin(x, names)}" for x in missed)
    call = solve.call
    if missed:
        _warn_once(
            f"{call.function}({call.func}, ...) with {spelling}: {call.func} also uses tensors that require a gradient "
            f"and are not named there, so they get none from this solve: {told}. Name them, or none at all, which "
            "means every tensor that is used."
        )


def _origin(x: Tensor, names: dict[int, str]) -> str:
    if x.grad_fn is not None:
        return f"computed by {x.grad_fn.name()}"
    return f"(parameter {names[id(x)]!r})" if id(x) in names else "(a leaf)"


def _warn_once(text: str) -> None:
    if text not in _told:
        _told.add(text)
        warnings.warn(text, SteptapeWarning, stacklevel=6)


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
