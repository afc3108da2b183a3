"""diffrax's private names, each with the reason it is needed.

Looked up by feature, not by version: a diffrax without one of them is refused with what is installed and what to do.
"""

import copy
import dataclasses
import inspect
from typing import Any

from steptape.compat._unsupported import unsupported

try:
    import diffrax as _diffrax  # noqa: F401  (a missing diffrax and a changed one are told apart by the error)
    from diffrax import diffeqsolve as diffeqsolve  # The host's own, whatever its name stands for later.
    from diffrax._integrate import State as State  # The loop's state: the tape keeps some of its fields.
    from diffrax._integrate import loop as loop  # The solve itself; a custom adjoint hands it an outer loop.
    from diffrax._term import WrapTerm as WrapTerm  # Tells an ODE's term from others, inside a custom adjoint.
except ImportError as error:
    raise unsupported("diffrax", error, "jax") from error

# The module that holds diffeqsolve under its name, and the one where diffrax looks it up itself.
HOLDERS, KEEPERS = ("diffrax",), ("diffrax._integrate",)

_STATE_FIELDS = {
    "y",
    "tprev",
    "tnext",
    "made_jump",
    "solver_state",
    "controller_state",
    "num_steps",
    "num_accepted_steps",
    "save_state",
    "dense_save_index",
}
_LOOP_ARGUMENTS = {"inner_while_loop", "outer_while_loop", "init_state", "progress_meter", "event", "saveat"}


def _check() -> None:
    missing = _STATE_FIELDS - {field.name for field in dataclasses.fields(State)}
    missing |= _LOOP_ARGUMENTS - set(inspect.signature(loop).parameters)
    if missing:
        raise unsupported("diffrax", f"{', '.join(sorted(missing))} in diffrax's loop", "jax")


_check()


def with_fields(state: Any, **fields: Any) -> Any:
    """``state`` with other ``fields``, of whatever type: where a host's types are checked, its constructor checks them.

    Trees of flags and of cotangents have a state's structure, and none of its types.
    """
    state = copy.copy(state)
    for name, value in fields.items():
        object.__setattr__(state, name, value)
    return state


def grows_freely(controller: Any) -> bool:
    """Whether nothing but the error bounds the steps of a PIDController, which in diffrax 0.6 may step to times too."""
    return steps_adjoin(controller) and controller.dtmin is None and controller.dtmax is None


def steps_adjoin(controller: Any) -> bool:
    """Whether no time is jumped over by a PIDController, as in diffrax 0.6 it may be."""
    return all(getattr(controller, name, None) is None for name in ("step_ts", "jump_ts"))
