"""steptape's odeint_adjoint: torchdiffeq's, and one more way to differentiate."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from steptape._errors import OptionError
from steptape.compat import _torchdiffeq as host
from steptape.compat._torch import between_graphs, transforms_active
from steptape.torch._autograd.graph import Call
from steptape.torch._autograd.stored import replayed_or
from steptape.torch._continuous.backward import QuadratureBack, check_supported
from steptape.torch._continuous.solver import BackwardSolver
from steptape.torch._hosts.event import differentiable_time
from steptape.torch._hosts.scheme import Scheme, scheme_of
from steptape.torch._hosts.torchdiffeq import OdeSolve
from steptape.torch._options import changed, keep_of, tell, with_parameters
from steptape.torch._stats import recorded
from steptape.torch._tape.checkpoints import Keep
from steptape.torch._types import Event, Field, OdeOptions, Tensors, TupleEvent, TupleField

if TYPE_CHECKING:
    from typing_extensions import Unpack


@overload
def odeint_adjoint(
    func: Field, y0: Tensor, t: Tensor, *, event_fn: None = None, **rest: Unpack[OdeOptions]
) -> Tensor: ...
@overload
def odeint_adjoint(
    func: TupleField, y0: Tensors, t: Tensor, *, event_fn: None = None, **rest: Unpack[OdeOptions]
) -> Tensors: ...
@overload
def odeint_adjoint(
    func: Field, y0: Tensor, t: Tensor, *, event_fn: Event, **rest: Unpack[OdeOptions]
) -> tuple[Tensor, Tensor]: ...
@overload
def odeint_adjoint(
    func: TupleField, y0: Tensors, t: Tensor, *, event_fn: TupleEvent, **rest: Unpack[OdeOptions]
) -> tuple[Tensor, Tensors]: ...


def odeint_adjoint(
    func: Any,
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Any = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> Any:
    """Solve dy/dt = func(t, y) with torchdiffeq; with ``adjoint_method="aca"``, differentiate its very steps.

    The solution is that of ``torchdiffeq.odeint``, bit for bit. With ``adjoint_method="aca"`` the gradient is the exact
    one of that discrete solution, the size of each accepted step held: the backward pass replays the accepted steps
    from their taped states, one at a time, and never the search for their sizes.

    With ``"quadrature"`` it is the gradient of the ODE itself, to the backward solve's tolerance: backward in time an
    adaptive solver integrates the cotangent of the state alone, y(t) is read from the forward solve's dense output, and
    the parameters' gradient is an integral along the way, in no state and no norm.

    Every other ``adjoint_method`` is torchdiffeq's own ``odeint_adjoint``, called with the arguments as given.

    Args:
        func: maps a scalar ``t`` and the state ``y`` to dy/dt, in shape and dtype of ``y``: any callable. The host's
            ``callback_*`` methods on it work as ever; with ``"quadrature"`` the ``callback_*_adjoint`` ones are called
            with (t, a, dt), where a is the cotangent of the state in its shape; with ``"aca"``, which takes no backward
            steps, they are not, and a ``SteptapeWarning`` says so once. func is called once before the solve, with a
            graph, which shows the tensors it uses, and again in the backward pass, so it must return the same for the
            same arguments.
        y0: the state at ``t[0]``: a floating-point tensor of any shape, or a tuple of them.
        t: the output times, 1-D, floating point, strictly increasing or decreasing.
        rtol, atol, method, options: the forward solve's, as in ``torchdiffeq.odeint``.
        event_fn: as in ``torchdiffeq.odeint``: the solve ends where it is zero. That time has its gradient, in all that
            the solution and event_fn depend on, by the implicit function theorem; the solution there is one at a fixed
            time, and with ``torchdiffeq.odeint_event(..., odeint_interface=odeint_adjoint)`` one that moves with it.
        adjoint_rtol, adjoint_atol: the backward solve's, by default those of the forward solve; ``adjoint_atol`` is for
            a cotangent scaled to a largest entry of 1. With ``"aca"``, which solves nothing backward, they have no
            effect, nor have options of the host's solvers in ``adjoint_options``; a ``SteptapeWarning`` says so once.
        adjoint_method: ``"aca"``, ``"quadrature"``, or one of the host's methods.
        adjoint_options: with ``"aca"``, any of ``"memory"`` (``"states"``, the default: one state per accepted step, of
            which the backward pass takes each again; ``"graphs"``: the graphs of its evaluations as well, which the
            solve builds and the backward pass pulls once and frees, so that nothing is evaluated twice, or the host's
            own of the solve where a replay is refused, unless event_fn or adjoint_params are given; or a size, such as
            ``"2 GiB"``, ``"500 MB"`` or a number of bytes, for both together: graphs while they fit, then states alone,
            then as many states as fit; not with the next two), ``"checkpoints"`` (int: keep at most so many states,
            recompute the others with their known step sizes; None, the default, keeps all),
            ``"checkpoint_device"`` (keep them on another device, such as ``"cpu"``), ``"graph"`` (``"step"``, the
            default: build the graphs of one step at a time; ``"stage"``: of one evaluation of func at a time, which
            takes each one twice), ``"compile"`` (False, the default; True, or a dict of ``torch.compile``'s
            ``"backend"``, ``"mode"`` and ``"options"``: the steps of explicit Runge–Kutta methods are compiled together
            with their vector-Jacobian products, once for all solves of func with states of this shape; with states
            alone; see below) and ``"lean"`` (True, the default: adaptive solvers step in a loop of ours, equal to
            the host's to the bit, which leaves out what no one looks at, such as interpolants without an output; False:
            in the host's own). With ``"quadrature"``, ``"checkpoints"``, ``"checkpoint_device"`` and ``"lean"``;
            ``"method"``, the solver of the backward solve, by default that of the forward one, and any option of its
            own, by default that of the forward solve; and ``"nodes"`` (int: integrate for the parameters by so many
            Gauss–Legendre nodes in each backward step; None, the default: by the scheme of the backward solver, at the
            stages it evaluates anyway). Its ``"norm"`` is of a cotangent in the shape of the state; ``"seminorm"`` and
            ``seminorm(y0)`` are understood.
        adjoint_params: the tensors besides ``y0`` and ``t`` to differentiate with respect to, and no others: ``()`` for
            none. By default every tensor that func's first evaluation uses and that requires a gradient, be it a leaf
            or computed before the solve or by that evaluation, and the parameters of a func that is a ``nn.Module``.
            A ``SteptapeWarning`` names, once, what a list leaves out. What is not used has no gradient (None).

    Returns:
        The solution at the times ``t``, shape ``(len(t), *y0.shape)``, or a tuple of such. With ``event_fn``, the time
        of the event and the solution at ``t[0]`` and there.

    Exact:
        With ``"aca"`` the gradient is that of the discrete solution that is returned, to the rounding of its dtype: the
        size of each accepted step is held, at the very times of the solve. Where ``options["first_step"]`` is not
        given, the host's own back-propagation also differentiates its guess of that step. What a callback keeps of the
        solve has no gradient; what func computes from the state and keeps, such as a penalty, is refused where it is
        differentiated. Times of events have first derivatives alone.

    Approximate:
        With ``"quadrature"`` it is that of the ODE, to the tolerance of the backward solve. Steps are as long as the
        cotangent and the forward solve let them be, and no error norm sees the parameters' integrand: where a term is 0
        that varies fast in its parameter, such as b cos(ωt) at b = 0, give ``adjoint_options={"max_step": ...}``.

    Memory:
        Held between forward and backward: one state per accepted step, or ``checkpoints`` states, and a scalar per
        stage of each step, besides the solution itself. With ``{"memory": "graphs"}`` also what autograd saves of each
        accepted evaluation of func, and its result, but none of the solver's arithmetic; graphs of rejected tries go
        with them. On a fixed grid whose times need no gradient it is the graph of the solve, as by back-propagation,
        and few states; where it goes by states, the solve is taken again. States alone are kept, and steps taken again,
        where a parameter was computed from another one, where hooks act on saved tensors (``save_on_cpu``,
        ``torch.utils.checkpoint``), and where a grid or ``step_size`` has a gradient; so they are with
        ``create_graph=True``, and for a batch of cotangents that an operation does not take. A size counts storages,
        each once, and not those of the inputs, parameters and buffers; besides there is the evaluation at hand. Where
        steps start from slopes they cannot recompute, these are held too: one per state for ``fehlberg2``,
        ``adaptive_heun`` and ``tsit5``, one per step or up to eleven per checkpoint for the Adams solvers. The backward
        pass adds the graph of one step or stage; on a fixed grid, of a state of at most 16,384 entries, that of six
        evaluations.
        ``"quadrature"`` holds the dense output, five states per accepted step, or ``checkpoints`` states. Of n
        cotangents at once, the backward pass holds n states for each stage, and n times each gradient that is asked
        for.

    Supports:
        Several cotangents at once (``is_grads_batched=True``, ``jacobian`` and ``hessian`` with ``vectorize=True``,
        ``gradcheck(check_batched_grad=True)``, ``torch.vmap`` around ``torch.autograd.grad``), at the evaluations of
        func of one backward pass, or with ``"quadrature"`` of one whose steps suit them all. Where an operation of func
        takes no batch in its backward pass, there are as many passes as cotangents.

        With ``"quadrature"``: the adaptive Runge–Kutta solvers; gradients in ``y0``, parameters and ``t``; events;
        autocast; ``jump_t`` that needs no gradient itself; hooks on parameters. Not second derivatives,
        ``torch.func``, nor random numbers in func, but for those it draws once, in its first evaluation, and keeps.

        With ``"aca"``: every solver of the host but ``scipy_solver``, with all their options; gradients in ``y0``,
        parameters, ``t``, ``step_t`` and ``jump_t``, in every dtype, at the very times of the solve; hooks on
        parameters, which see the whole gradient, once; events; autocast; second derivatives (``create_graph=True``),
        for which the whole chain of steps is rebuilt with its graph; random numbers drawn in func from the default
        generators (dropout) and buffers that it changes (batch norm), of which the tape keeps notes, but not with a
        cubic ``interp`` on a fixed grid; a compiled func or model; DistributedDataParallel and FSDP around the model
        that contains the solve; the transforms of ``torch.func``, in forward mode as well, at the memory of
        back-propagation, but not ``vmap`` over solves.

        With ``{"compile": ...}`` the forward solve stays as it is. A step is compiled in the first backward pass, which
        takes from seconds to a minute, and anew where flags, numbers or shapes that func reads have changed; it is then
        compared with the step as it is. Python in func, such as a count, runs when it is compiled and not at each
        evaluation. What cannot be compiled is refused: branches by values, what func stores or changes in place,
        random numbers, buffers that change, backward hooks on modules. Second derivatives, batches of cotangents,
        gradients in times and ``torch.func`` take the steps as they are.

    Raises:
        OptionError: an argument is wrong, such as times that are not monotone or an unknown option.
        UnsupportedError: a solver or a use whose steps cannot be replayed exactly, or whose dense output not be read;
            in the backward pass, a func that cannot be compiled where that was asked for.
        GradientError: where a gradient would be wrong: after the solve, if what the first evaluation of func computed,
            and the next one used, was then computed anew; in the backward pass, if func uses a tensor that its first
            evaluation did not, and that is neither named nor a parameter of a func that is a module; if func returns
            other values than before; or, with ``{"memory": ...}``, if it uses the state of an earlier evaluation.

    Source:
        Zhuang et al., arXiv 2006.02493 (the tape and its replay); Hu, arXiv 2402.15141 (the step's adjoint, and the
        gradient as an integral).

    Example:
        >>> import torch
        >>> from steptape.torch import odeint_adjoint
        >>> rate = torch.tensor(1.0, requires_grad=True)
        >>> t = torch.tensor([0.0, 1.0])
        >>> ys = odeint_adjoint(lambda t, y: -rate * y, torch.ones(1), t, adjoint_method="aca")
        >>> ys[-1].sum().backward()
        >>> print(f"{rate.grad:.3f}")  # -exp(-1)
        -0.368
    """
    rest: dict[str, Any] = {
        "rtol": rtol,
        "atol": atol,
        "method": method,
        "options": options,
        "event_fn": event_fn,
        "adjoint_rtol": adjoint_rtol,
        "adjoint_atol": adjoint_atol,
        "adjoint_method": adjoint_method,
        "adjoint_options": adjoint_options,
        "adjoint_params": adjoint_params,
    }
    if adjoint_method not in ("aca", "quadrature"):
        _check_name(adjoint_method)
        return host.odeint_adjoint(func, y0, t, **rest)
    if torch.compiler.is_compiling():
        return _between_graphs(func, y0, t, **rest)
    _check_times(t)
    if not torch.is_grad_enabled():
        # Nothing that is said of a backward pass counts.
        if scheme_of_call(method, options) is None:
            return host.odeint(func, y0, t, rtol=rtol, atol=atol, method=method, options=options, event_fn=event_fn)
        if adjoint_method == "quadrature":
            adjoint_method, adjoint_options = "aca", None
    forward = {"rtol": rtol, "atol": atol, "method": method, "options": options}
    solver = None
    if adjoint_method == "aca":
        tell("odeint_adjoint", changed({"adjoint_rtol": (adjoint_rtol, rtol), "adjoint_atol": (adjoint_atol, atol)}))
        tell("odeint_adjoint", (f"func.{name}_adjoint" for name in adjoint_callbacks(func)))
        keep = keep_of(adjoint_options, of_hosts=host.all_option_names())
        keep = keep if torch.is_grad_enabled() else Keep(lean=keep.lean)
    else:
        adjoint = {"rtol": adjoint_rtol, "atol": adjoint_atol, "options": adjoint_options}
        solver, keep = BackwardSolver.from_call(y0, t, forward, adjoint)
    replay = functools.partial(_replayed, func, y0, t, forward, event_fn, keep, solver, adjoint_params)
    if keep.memory == "graphs" and event_fn is None and adjoint_params is None and not transforms_active():
        # The host keeps graphs too.
        return replayed_or(functools.partial(host.odeint, func, y0, t, **forward), func, replay, is_plain=False)
    return replay()


def _replayed(
    func: Any,
    y0: Any,
    t: Tensor,
    forward: dict[str, Any],
    event_fn: Any,
    keep: Keep,
    solver: BackwardSolver | None,
    adjoint_params: Iterable[Tensor] | None,
) -> Any:
    """The host's solve by the settings of its ``forward`` pass, whose backward pass is ours, by a ``solver`` if any."""
    user_func = func
    shapes, func, y0, t, rtol, atol, method, options, event_fn, reverse = host.check_inputs(
        func, y0, t, *forward.values(), event_fn, host.SOLVERS
    )
    # A copy, since a window of times may be moved on in place before the backward pass.
    t = t.clone()
    solve, points = OdeSolve.from_call(func, y0, t, rtol, atol, method, options, keep, event_fn)
    if solver is not None:
        check_supported(points)
        callbacks = {
            name: _in_terms_of_user(callback, shapes, reverse)
            for name, callback in adjoint_callbacks(user_func).items()
        }
        back = functools.partial(QuadratureBack, solver, callbacks)
        solve = dataclasses.replace(solve, back=back, call=Call(method="quadrature"))
    solve, params = with_parameters(solve, (y0, t, points), adjoint_params)
    solution, end = recorded(solve, y0, t, points, *params)
    if event_fn is not None:
        end = differentiable_time(solve, end.to(t), solution[-1], params)
    if shapes is not None:
        solution = host.flat_to_shape(solution, (len(t),), shapes)
    if event_fn is None:
        return solution
    return -end if reverse else end, solution


_between_graphs = between_graphs(odeint_adjoint)


def scheme_of_call(method: str | None, options: dict[str, Any] | None) -> Scheme | None:
    """How the solver of a call is replayed; None also where there is no such solver, which is the host's to say."""
    solver = host.SOLVERS.get("dopri5" if method is None else method)
    return None if solver is None else scheme_of(solver, (options or {}).get("interp", "linear"))


def _check_name(adjoint_method: Any) -> None:
    if adjoint_method is not None and adjoint_method not in host.SOLVERS:
        raise OptionError(
            f"odeint_adjoint(..., adjoint_method={adjoint_method!r}): no such adjoint. steptape's are 'aca' and "
            f"'quadrature'; the host's own, by the solver that it solves backward with, "
            f"{', '.join(repr(name) for name in host.SOLVERS if name != 'aca')}."
        )


def adjoint_callbacks(func: Any) -> dict[str, Any]:
    """The callbacks for the steps of a backward solve that a func has, by the names of the forward solve's."""
    found = {name: getattr(func, f"{name}_adjoint", None) for name in sorted(host.CALLBACKS)}
    return {name: callback for name, callback in found.items() if callback is not None}


def _in_terms_of_user(callback: Any, shapes: Any, reverse: bool) -> Any:
    """A callback of the user's for a backward solve in s = -t of the host's normal form."""

    def called(s: Tensor, a: Tensor, h: Tensor) -> None:
        callback(s if reverse else -s, a if shapes is None else host.flat_to_shape(a, (), shapes), h)

    return called


def _check_times(t: Any) -> None:
    if not isinstance(t, Tensor) or not t.is_floating_point() or t.ndim != 1 or len(t) == 0:
        raise OptionError(f"odeint_adjoint(func, y0, t={t!r}): t must be a non-empty 1-D floating-point tensor.")
    gaps = t.diff()
    if not ((gaps > 0).all() or (gaps < 0).all()):
        raise OptionError(
            f"odeint_adjoint(func, y0, t={t.tolist()}): t must be strictly increasing or strictly decreasing. "
            "Sort it and drop repeated times."
        )
