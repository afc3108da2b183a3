"""``steptape compare script.py:name``: a comparison that a function of a script describes."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steptape._compare.comparison import Comparison
from steptape._errors import OptionError, UnsupportedHostVersion

# By the key that tells them apart: where the function that takes the others is, and what it needs.
_FUNCTIONS = {
    "func": ("steptape.torch", "compare", "torchdiffeq", "torch"),
    "sde": ("steptape.torch", "compare_sde", "torchsde", "sde"),
    "loss": ("steptape.jax", "compare", "diffrax", "jax"),
}
_WANTED = (
    "the keyword arguments of steptape.torch.compare (func, y0, t, ...) or compare_sde (sde, y0, ts, ...) as a dict, "
    "or for diffrax {'loss': lambda adjoint, model: ..., 'inputs': (model,)}"
)


def described(target: str) -> Callable[[], Any]:
    """The function that ``script.py:name`` names; the script runs, but not as ``__main__``."""
    script, _, name = target.rpartition(":")
    if not script:
        raise OptionError(f"steptape compare {target}: name a script and a function in it: {target}:name.")
    if not Path(script).is_file():
        raise OptionError(f"steptape compare {target}: no such file as {script}. Name a script: script.py:name.")
    sys.path.insert(0, str(Path(script).resolve().parent))
    names = runpy.run_path(script, run_name="steptape_compare")
    own = [key for key, value in names.items() if getattr(value, "__module__", None) == "steptape_compare"]
    there = f"It defines {', '.join(own)}." if own else "It defines no function."
    if name not in names:
        raise OptionError(f"steptape compare {target}: {script} has no function {name!r}. {there}")
    found = names[name]
    if not callable(found):
        raise OptionError(
            f"steptape compare {target}: {name} is a {type(found).__name__}, no function. Make it one that returns it."
        )
    return found


def compared(target: str, describe: Callable[[], Any], **options: Any) -> Comparison:
    """The comparison that ``describe`` returns the keyword arguments of, ``options`` in place of its own."""
    try:
        inspect.signature(describe).bind()
    except TypeError as error:
        raise OptionError(f"steptape compare {target}: it is called without arguments, and {error}.") from None
    call = describe()
    if not isinstance(call, dict):
        raise OptionError(f"steptape compare {target}: returns a {type(call).__name__}, and must return {_WANTED}.")
    kinds = [key for key in ("func", "sde") if key in call] or [key for key in ("loss",) if key in call]
    if len(kinds) != 1:
        told = " and ".join(map(repr, kinds)) or f"neither 'func', 'sde' nor 'loss', but {_names(call)}"
        raise OptionError(f"steptape compare {target}: returns {told}, and must return {_WANTED}.")
    function, of_host = _function(target, kinds[0]), kinds[0] == "loss"
    given = {**call, **{name: value for name, value in options.items() if value is not None}}
    _check_keys(target, given, function)
    inputs = given.pop("inputs", ()) if of_host else ()
    if not isinstance(inputs, (tuple, list)):
        raise OptionError(
            f"steptape compare {target}: 'inputs' is a {type(inputs).__name__}, and must be a tuple, as the arguments "
            "of loss after the adjoint: (model,) for one of them."
        )
    return function(given.pop("loss"), *inputs, **given) if of_host else function(**given)


def _function(target: str, key: str) -> Callable[..., Comparison]:
    module, name, host, extra = _FUNCTIONS[key]
    if importlib.util.find_spec(host) is None:
        raise UnsupportedHostVersion(
            f"steptape compare {target}: {key!r} is for {host}, which is not installed: pip install 'steptape[{extra}]'"
        )
    return getattr(importlib.import_module(module), name)


def _check_keys(target: str, given: dict[Any, Any], function: Callable[..., Any]) -> None:
    """Refuse a key that is no argument, and look for those that must be there."""
    arguments = inspect.signature(function).parameters.values()
    known = [one.name for one in arguments]
    needed = [one.name for one in arguments if one.default is one.empty and one.kind is not one.VAR_POSITIONAL]
    wrong, missing = [key for key in given if key not in known], [key for key in needed if key not in given]
    if wrong or missing:
        what = f"{wrong[0]!r} is no key of" if wrong else f"{missing[0]!r} is missing for"
        name = f"{function.__module__.split('._')[0]}.{function.__name__}"
        raise OptionError(f"steptape compare {target}: {what} {name}, which takes {_names(known)}.")


def _names(keys: Any) -> str:
    return ", ".join(map(str, keys)) or "nothing"
