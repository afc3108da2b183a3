"""What JAX notes of a ``custom_jvp`` in a program: where its function and its rule were written.

Read by feature: where nothing is noted, a rule is taken for one of the user's, which need not be a derivative.
"""

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

# Their rules are derivatives. diffrax needs all of them.
_LIBRARIES = ("jax", "equinox", "lineax", "optimistix", "diffrax")
# equinox wraps the functions of others in one of this name; it and optimistix call their own ones here.
_WRAPPED = ("equinox/_ad.py", "fn_wrapper")
_CALLERS = (
    ("equinox/_errors.py", ""),
    ("equinox/internal/_loop/checkpointed.py", ""),
    ("optimistix/_ad.py", "implicit_jvp"),
)
# What JAX wraps a rule in, each in the other.
_DEPTH = 12


def is_of_library(equation: Any) -> bool:
    """Whether a ``custom_jvp_call`` is JAX's or that of a library that diffrax needs: its function, and its rule."""
    program = equation.params["call_jaxpr"]
    note = getattr(getattr(program, "jaxpr", program), "debug_info", None)
    name, _, place = str(getattr(note, "func_src_info", None)).partition(" at ")
    file = place.rpartition(":")[0].replace("\\", "/")
    if name == _WRAPPED[1] and file.endswith(_WRAPPED[0]):
        return _is_called_by_library(equation)
    rule = [*_functions_in(equation.params.get("jvp_jaxpr_fun", equation.params.get("jvp_jaxpr_thunk")), _DEPTH)]
    return bool(rule) and all(map(_is_in_library, (file, *rule)))


def _functions_in(rule: Any, depth: int) -> Iterator[str]:
    """Where the functions were written that a rule consists of, those of JAX around the user's included."""
    if not depth:
        return
    parts: tuple[Any, ...] = (getattr(rule, "__wrapped__", None),)
    if isinstance(rule, FunctionType):
        yield rule.__code__.co_filename.replace("\\", "/")
        parts += tuple(_closure_of(rule))
    elif isinstance(rule, (list, tuple)):
        parts += tuple(rule)
    elif isinstance(rule, functools.partial):
        parts += (rule.func, rule.args)
    elif isinstance(rule, MethodType):
        parts += (rule.__func__,)
    elif type(rule).__name__ == "WrappedFun":
        parts += (rule.f, rule.transforms)
    elif callable(rule) and not isinstance(rule, type):
        parts += (type(rule).__call__,)
    for part in parts:
        yield from _functions_in(part, depth - 1)


def _closure_of(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not filled yet
            yield cell.cell_contents


def _is_in_library(file: str) -> bool:
    return any(file.startswith(folder) for folder in _folders())


@functools.cache
def _folders() -> list[str]:
    found = (importlib.util.find_spec(name) for name in _LIBRARIES)
    return [f"{Path(one.origin).parent.as_posix()}/" for one in found if one is not None and one.origin]


def _is_called_by_library(equation: Any) -> bool:
    frames = getattr(getattr(equation.source_info, "traceback", None), "frames", ())
    files = [frame.file_name.replace("\\", "/") for frame in frames]
    # The innermost of equinox's: those further out called what called this one.
    call = next((i for i, file in enumerate(files) if file.endswith(_WRAPPED[0])), len(files))
    caller = zip(files[call + 1 : call + 2], frames[call + 1 : call + 2], strict=True)
    return any(
        file.endswith(where) and frame.function_name.endswith(name)
        for file, frame in caller
        for where, name in _CALLERS
    )
