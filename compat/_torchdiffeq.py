"""torchdiffeq's private names, each with the reason steptape needs it."""

import functools
import inspect
import sys
from typing import Any

import torch

from steptape.compat._unsupported import unsupported

try:
    from torchdiffeq._impl import event_handling, fixed_adams, fixed_grid, interp, misc, rk_common
    from torchdiffeq._impl.adjoint import OdeintAdjointMethod

    # The host's own functions, whatever their names stand for later.
    from torchdiffeq._impl.adjoint import odeint_adjoint as odeint_adjoint

    # Solver classes by name.
    from torchdiffeq._impl.odeint import SOLVERS as SOLVERS
    from torchdiffeq._impl.odeint import odeint as odeint
    from torchdiffeq._impl.odeint import odeint_event as odeint_event

    # The host's normal form of a call and of its result: flat state, increasing t, wrapped func, defaults filled in.
    _check_inputs = misc._check_inputs
    flat_to_shape = misc._flat_to_shape
    # On which side of a time func is evaluated at the ends of a solve.
    AFTER, BEFORE = misc.Perturb.NEXT, misc.Perturb.PREV
    # The solvers that take steps of their own: multistep, and implicit Runge–Kutta where the host has it.
    Adams = fixed_adams.AdamsBashforthMoulton
    ImplicitRungeKutta = getattr(rk_common, "FixedGridFIRKODESolver", None)
    # The adaptive loop that leaves the tape, the tableau it steps with, and the parts that are its own or overridden.
    AdaptiveRungeKutta = rk_common.RKAdaptiveStepsizeODESolver
    _OWN = {
        name: getattr(AdaptiveRungeKutta, name)
        for name in ("integrate", "_advance", "_before_integrate", "_adaptive_step", "_interp_fit")
    }
    # What a lean loop does in its own way, besides; what it takes as it is; and how it knows the default norm.
    _LOOP = {
        name: getattr(AdaptiveRungeKutta, name) for name in (*_OWN, "integrate_until_event", "_advance_until_event")
    }
    # The loop over a fixed grid that a lean one stands in for.
    _FIXED_LOOP = fixed_grid.FixedGridODESolver.integrate
    # What stands for a callback that a func does not have.
    NO_CALLBACK = getattr(misc, "_null_callback", None)
    find_event, interp_evaluate, rms_norm = event_handling.find_event, interp._interp_evaluate, misc._rms_norm
    # What is read of a tableau, of the state between two adaptive steps, of wrapped funcs and multistep solvers; and
    # where a solver of a fixed grid takes its steps.
    _missing = {"alpha", "beta", "c_sol"} - set(rk_common._ButcherTableau._fields)
    _missing |= {"y1", "t0", "t1", "dt", "interp_coeff"} - set(rk_common._RungeKuttaState._fields)
    _missing |= {"base_func"} - set(misc._PerturbFunc.__init__.__code__.co_names)
    _missing |= {"prev_f", "prev_t"} - set(Adams.__init__.__code__.co_names)
    _missing |= {"_step_func", "_linear_interp", "_cubic_hermite_interp"} - set(dir(fixed_grid.FixedGridODESolver))
    # What check_inputs wraps func in, and where the host solves backward: install() tells its own calls by them.
    _WRAPPERS = (misc._PerturbFunc, misc._ReverseFunc, misc._TupleFunc)
    _BACKSOLVE = OdeintAdjointMethod.backward.__qualname__
except (ImportError, AttributeError) as error:
    raise unsupported("torchdiffeq", error, "torch") from error

if _missing:
    raise unsupported("torchdiffeq", f"{', '.join(sorted(_missing))} in its solvers", "torch")

# torchdiffeq 0.2.3 does not call back from its steps: ``attach`` does it there. Doing it twice would tape steps twice.
CALLBACKS = {"callback_step", "callback_accept_step", "callback_reject_step"}
VALID_CALLBACKS = AdaptiveRungeKutta.valid_callbacks() if hasattr(AdaptiveRungeKutta, "valid_callbacks") else set()
_called = CALLBACKS & set(_OWN["_adaptive_step"].__code__.co_names)
if _called != CALLBACKS & VALID_CALLBACKS or _called not in (CALLBACKS, set()):
    raise unsupported("torchdiffeq", f"{', '.join(sorted(CALLBACKS))}, called from its adaptive steps", "torch")

# torchdiffeq 0.2.3 takes steps of any length.
BOUNDS_STEPS = "max_step" in inspect.signature(AdaptiveRungeKutta.__init__).parameters

# The modules that hold a function under its name.
HOLDERS = {
    "odeint_adjoint": ("torchdiffeq", "torchdiffeq._impl", "torchdiffeq._impl.adjoint"),
    "odeint": ("torchdiffeq", "torchdiffeq._impl", "torchdiffeq._impl.odeint", "torchdiffeq._impl.adjoint"),
    "odeint_event": ("torchdiffeq", "torchdiffeq._impl", "torchdiffeq._impl.odeint"),
}

FIXED_GRID_NAMES = {
    getattr(fixed_grid, name): name.lower()
    for name in ("Euler", "Midpoint", "Heun2", "Heun3", "RK4")
    if hasattr(fixed_grid, name)
}


class _Rerouting:
    """What odeint_event calls in place of the host's own, for times that are differentiable themselves."""

    def __init__(self, original: Any, is_differentiable: Any, rerouted: Any):
        self._original, self._is_differentiable, self._rerouted = original, is_differentiable, rerouted

    def apply(self, func: Any, event_fn: Any, event_t: Any, state_t: Any) -> Any:
        if self._is_differentiable(event_t):
            return self._rerouted(func, event_t, state_t)
        return self._original.apply(func, event_fn, event_t, state_t)


# Where odeint_event looks up what differentiates the time of an event.
_events: Any = sys.modules[odeint_event.__module__]
_OWN_REROUTING = getattr(_events, "ImplicitFnGradientRerouting", None)


def reroute_events(is_differentiable: Any, rerouted: Any) -> bool:
    """Let odeint_event keep the derivatives of times that have them; False where it is not the host's own.

    ``rerouted(func, event_t, state_t)``: what it is to return for these.
    """
    found = getattr(_events, "ImplicitFnGradientRerouting", None)
    if found is _OWN_REROUTING and found is not None:
        _events.ImplicitFnGradientRerouting = _Rerouting(found, is_differentiable, rerouted)
        return True
    return isinstance(found, _Rerouting)


def steps_by_tableau(solver_class: type) -> bool:
    """Whether an adaptive solver of the host steps and interpolates by its tableau alone, with nothing overridden."""
    return issubclass(solver_class, AdaptiveRungeKutta) and all(
        getattr(solver_class, name) is own for name, own in _OWN.items()
    )


# What governs the steps of an adaptive solver, as far as a lean loop knows it.
_KNOWN = {"func", "y0", "dtype", "norm", "rtol", "atol", "tableau", "mid", "first_step", "min_step", "max_step"}
_KNOWN |= {"step_t", "jump_t", "safety", "ifactor", "dfactor", "max_num_steps"}


def steps_as_known(solver: Any) -> bool:
    """Whether an adaptive solver is the host's own, and nothing but what a lean loop knows governs its steps."""
    solver_class = type(solver)
    return (
        solver_class.__module__.startswith("torchdiffeq.")
        and all(getattr(solver_class, name, None) is own for name, own in _LOOP.items())
        and vars(solver).keys() == _KNOWN
    )


def fixed_step(solver: Any) -> Any:
    """What takes a step of a fixed grid, given func, its start, size and end and the state: its increment, and a slope.

    None where the solver's loop over its steps, or what it takes them by, is not the host's own.
    """
    solver_class = type(solver)
    known = solver_class in FIXED_GRID_NAMES and solver_class.integrate is _FIXED_LOOP
    return solver._step_func if known and "_step_func" not in vars(solver) else None


def steps_whole(solver_class: type) -> bool:
    """Whether a class is one of the host's own multistep or implicit solvers, which take a step by ``whole_step``."""
    bases = tuple(base for base in (Adams, ImplicitRungeKutta) if base is not None)
    return solver_class.__module__.startswith("torchdiffeq.") and issubclass(solver_class, bases)


def history(solver: Any) -> list[torch.Tensor]:
    """The slopes of earlier steps from which a solver takes its next one, the latest first: none unless multistep."""
    return list(solver.prev_f) if isinstance(solver, Adams) else []


def whole_step(
    solver: Any, slopes: Any, func: Any, t0: Any, t1: Any, h: Any, y: Any
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """A solver's own step from (y, slopes): its increment, the slope at its start, and the slopes after it."""
    if isinstance(solver, Adams):
        solver.prev_f.clear()
        solver.prev_f.extend(slopes)
        solver.prev_t = None
    increment, slope = solver._step_func(func, t0, h, t1, y)
    return increment, slope, history(solver)


def interpolated(solver: Any, t0: Any, y0: Any, f0: Any, t1: Any, y1: Any, f1: Any, t: Any) -> torch.Tensor:
    """The state at t in a step of a fixed grid; ``f1`` is read for a cubic alone."""
    if solver.interp == "linear":
        return solver._linear_interp(t0, t1, y0, y1, t)
    return solver._cubic_hermite_interp(t0, y0, f0, t1, y1, f1, t)


def without_sides(func: Any) -> Any:
    """The func in normal form without the wrapper that moves t to one side of a discontinuity."""
    return func.base_func


def with_sides(func: Any) -> Any:
    """The wrapper around a func that ``without_sides`` takes off."""
    return misc._PerturbFunc(func)


def original_func(func: Any) -> Any:
    """The func the user passed, from its normal form."""
    while isinstance(func, _WRAPPERS):
        func = func.base_func
    return func


def is_backsolve(func: Any) -> bool:
    """Whether a func in normal form is the augmented system that the host's own odeint_adjoint solves backward."""
    return getattr(original_func(func), "__qualname__", "").startswith(_BACKSOLVE)


def option_names(solver_class: type) -> set[str]:
    """The names of the options that a solver class reads; the host only warns of others."""
    inits = [vars(base)["__init__"] for base in solver_class.__mro__[:-1] if "__init__" in vars(base)]
    parameters = [p for init in inits for p in inspect.signature(init).parameters.values()]
    names = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    return names - {"self", "func", "y0", "rtol", "atol"} | {"norm"}


@functools.cache
def all_option_names() -> frozenset[str]:
    """The names of the options of all solvers of the host."""
    own = [solver_class for solver_class in SOLVERS.values() if solver_class.__module__.startswith("torchdiffeq.")]
    return frozenset(name for solver_class in own for name in option_names(solver_class))


def call_after_steps(solver: Any, note: Any) -> None:
    """Let an adaptive solver call ``note(interpolant)`` after each accepted step.

    ``interpolant``: the coefficients, by powers, of y as a polynomial of the relative place in the step.
    """
    step = solver._adaptive_step

    def noted_step(state: Any) -> Any:
        after = step(state)
        # A rejected try leaves a state whose step has no length.
        if after.t1 > after.t0:
            note(after.interp_coeff)
        return after

    solver._adaptive_step = noted_step


def last_state(solver: Any) -> torch.Tensor:
    """The state at the end of the last step that an adaptive solver took."""
    return solver.rk_state.y1


def check_inputs(*args: Any) -> tuple[Any, ...]:
    """The host's normal form of a call, its func with callbacks also where the host knows none."""
    checked = _check_inputs(*args)
    with_callbacks(checked[1])
    return checked


def with_callbacks(func: Any) -> Any:
    """A func in normal form, with callbacks also where the host knows none."""
    if not VALID_CALLBACKS:
        for name in CALLBACKS:
            setattr(func, name, lambda t, y, h: None)
    return func


def attach(solver: Any, func: Any, seeks_event: bool) -> None:
    """Let a solver integrate ``func`` and call it back from each step, also where the host itself does not."""
    solver.func = func
    if isinstance(solver, AdaptiveRungeKutta):
        if not VALID_CALLBACKS:
            _call_back(solver)
    elif seeks_event or not VALID_CALLBACKS:
        _call_before_steps(solver, func.callback_step)


def _call_back(solver: Any) -> None:
    """Let an adaptive solver call back as torchdiffeq's do from 0.2.4 on."""
    step, fit = solver._adaptive_step, solver._interp_fit

    def noted_step(state: Any) -> Any:
        solver.func.callback_step(state.t1, state.y1, state.dt)
        after = step(state)
        if not after.t1 > after.t0:
            solver.func.callback_reject_step(state.t1, state.y1, state.dt)
        return after

    def noted_fit(y0: Any, y1: Any, k: Any, h: Any) -> Any:
        # The first thing done for an accepted try, and for no other; it knows the size that was taken.
        solver.func.callback_accept_step(solver.rk_state.t1, y0, h)
        return fit(y0, y1, k, h)

    solver._adaptive_step, solver._interp_fit = noted_step, noted_fit


def _call_before_steps(solver: Any, note: Any) -> None:
    """Let a fixed-grid solver call ``note(t, y, h)`` before each step: seeking an event, it does not call back."""
    step = solver._step_func

    def noted_step(func: Any, t0: Any, dt: Any, t1: Any, y0: Any) -> Any:
        note(t0, y0, torch.as_tensor(dt, dtype=torch.float64, device=t0.device))
        return step(func, t0, dt, t1, y0)

    solver._step_func = noted_step
