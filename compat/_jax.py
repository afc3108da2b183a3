"""What JAX notes of a ``custom_jvp`` in a program: where its function was written.

Read by feature: where nothing is noted, a rule is taken for one of the user's, which need not be a derivative.
"""

import functools
import importlib.util
from pathlib import Path
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


def is_of_library(equation: Any) -> bool:
    """Whether the function that a ``custom_jvp_call`` calls is JAX's own, or that of a library that diffrax needs."""
    program = equation.params["call_jaxpr"]
    note = getattr(getattr(program, "jaxpr", program), "debug_info", None)
    name, _, place = str(getattr(note, "func_src_info", None)).partition(" at ")
    file = place.rpartition(":")[0].replace("\\", "/")
    if name == _WRAPPED[1] and file.endswith(_WRAPPED[0]):
        return _is_called_by_library(equation)
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
