"""steptape's sdeint_adjoint: torchsde's, and one more way to differentiate."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy
import torch
from torch import Tensor

from steptape._errors import OptionError, UnsupportedError
from steptape.compat import _torchsde as host
from steptape.compat._torch import between_graphs, place_in_order, transforms_active
from steptape.torch._autograd.stored import replayed_or
from steptape.torch._autograd.surroundings import Surroundings, Untouched
from steptape.torch._hosts.torchsde import SdeSolve
from steptape.torch._options import changed, keep_of, tell, with_parameters
from steptape.torch._seminorm import with_seminorm
from steptape.torch._stats import recorded
from steptape.torch._tape.checkpoints import Keep
from steptape.torch._types import No, SdeOptions, Tensors, Times, Yes

if TYPE_CHECKING:
    from typing_extensions import Unpack


@overload
def sdeint_adjoint(
    sde: Any, y0: Tensor, ts: Times, bm: Any = None, *, logqp: No = False, extra: No = False, **rest: Unpack[SdeOptions]
) -> Tensor: ...
@overload
def sdeint_adjoint(
    sde: Any, y0: Tensor, ts: Times, bm: Any = None, *, logqp: Yes, extra: No = False, **rest: Unpack[SdeOptions]
) -> tuple[Tensor, Tensor]: ...
@overload
def sdeint_adjoint(
    sde: Any, y0: Tensor, ts: Times, bm: Any = None, *, logqp: No = False, extra: Yes, **rest: Unpack[SdeOptions]
) -> tuple[Tensor, Tensors]: ...
@overload
def sdeint_adjoint(
    sde: Any, y0: Tensor, ts: Times, bm: Any = None, *, logqp: Yes, extra: Yes, **rest: Unpack[SdeOptions]
) -> tuple[Tensor, Tensor, Tensors]: ...
@overload
def sdeint_adjoint(
    sde: Any,
    y0: Tensor,
    ts: Times,
    bm: Any = None,
    *,
    logqp: bool = False,
    extra: bool = False,
    **rest: Unpack[SdeOptions],
) -> Any: ...
@between_graphs
def sdeint_adjoint(
    sde: Any,
    y0: Tensor,
    ts: Any,
    bm: Any = None,
    method: str | None = None,
    adjoint_method: str | None = None,
    dt: Any = 1e-3,
    adaptive: bool = False,
    adjoint_adaptive: bool = False,
    rtol: Any = 1e-5,
    adjoint_rtol: Any = 1e-5,
    atol: Any = 1e-4,
    adjoint_atol: Any = 1e-4,
    dt_min: Any = 1e-5,
    options: dict[str, Any] | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
    names: dict[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: Sequence[Tensor] | None = None,
    **unused_kwargs: Any,
) -> Any:
    """Solve dY = f(t, Y) dt + g(t, Y) dW with torchsde; with ``adjoint_method="aca"``, differentiate its very steps.

    Every other ``adjoint_method`` is torchsde's own ``sdeint_adjoint``, called with the arguments as given, but for one
    option: with ``adjoint_options={"norm": "seminorm"}`` and ``adjoint_adaptive=True``, the gradients of the parameters
    have no say in the backward solve's step sizes (as in torchdiffeq; not for second derivatives). With
    ``"aca"`` the solution is that of ``torchsde.sdeint`` with the same Brownian object, bit for bit, and the gradient
    is the exact one of that discrete solution, as by back-propagation through ``torchsde.sdeint``: the backward pass
    takes the accepted steps again, one at a time, from their taped states and with the increments of the solve. It
    needs no other SDE and no other noise, and is as exact for Itô as for Stratonovich.

    Args:
        sde: with methods ``f(t, y)`` and ``g(t, y)``, or others the host takes, and attributes ``noise_type`` and
            ``sde_type``. A step is taken once before the solve, with a graph, which shows the tensors it uses, and all
            are taken again in the backward pass, so it must return the same for the same arguments.
        y0: the state at ``ts[0]``: a floating-point tensor (batch, channels).
        ts: the output times: a 1-D tensor or a sequence of floats, strictly increasing; without gradients.
        bm: the Brownian object; a new ``torchsde.BrownianInterval`` by default.
        method, dt, adaptive, rtol, atol, dt_min, options, names, logqp, extra, extra_solver_state: as in
            ``torchsde.sdeint``.
        adjoint_method: ``"aca"``, or one of the host's methods.
        adjoint_adaptive, adjoint_rtol, adjoint_atol: without effect with ``"aca"``, which solves nothing backward, as
            the host's adjoint options; a ``SteptapeWarning`` says so once.
        adjoint_options: with ``"aca"``, any of ``"memory"`` (``"states"``, the default, or ``"graphs"``: the graph of
            the solve as well, which the backward pass pulls once and frees, so that nothing is evaluated twice, or the
            host's own where a replay is refused, unless adjoint_params are given; not with the next two),
            ``"checkpoints"`` (int: keep at most so many states, take the steps between them again, and ask ``bm`` for
            their increments again; None, the default, keeps all, and the increments) and ``"checkpoint_device"`` (keep
            them on another device, such as ``"cpu"``).
        adjoint_params: the tensors besides ``y0`` and ``extra_solver_state`` to differentiate with respect to, and no
            others: ``()`` for none. By default every tensor that the first step uses and that requires a gradient, be
            it a leaf or computed before the solve or by that step, and the parameters of an sde that is a
            ``nn.Module``. A ``SteptapeWarning`` names, once, what a list leaves out. What is not used has no gradient.

    Returns:
        The solution at ``ts``, shape (len(ts), batch, channels), in the dtype of ``y0``. With ``logqp``, also the
        log-ratio penalties, (len(ts) - 1, batch); with ``extra``, also the solver's extra state at ``ts[-1]``, a tuple
        of tensors with their gradients.

    Exact:
        The gradient is that of the discrete solution that is returned, along the very increments of the solve, the size
        of each accepted step held. What sde computes from the state and keeps, such as a penalty, is refused where it
        is differentiated.

    Memory:
        Held between forward and backward: one state and one increment per accepted step (those of its two halves if
        ``adaptive``), with the Lévy areas where the method uses them; or ``checkpoints`` states and a few numbers per
        increment; besides the solution itself. A state of ``reversible_heun`` has its drift and diffusion with it. The
        backward pass adds the graph of one step. With ``{"memory": "graphs"}`` the graphs of all accepted steps are
        held, as by back-propagation, and the increments, but few states; not where hooks act on saved tensors, or a
        parameter was computed from another.

    Supports:
        Every method of the host, with each kind of noise it takes, on fixed and adaptive steps; every Brownian object;
        gradients in ``y0``, parameters and ``extra_solver_state``; hooks on parameters; autocast; parameters lent by
        ``torch.func.functional_call``; second derivatives (``create_graph=True``), for which the whole chain of steps
        is rebuilt with its graph; random numbers drawn in sde from the default generators (dropout); several cotangents
        at once (``is_grads_batched=True``, ``vectorize=True``, ``check_batched_grad=True``), at the evaluations of one
        backward pass. Not gradients in times or in the Brownian object, nor the transforms of ``torch.func``.

    Raises:
        OptionError: an argument is wrong, such as an unknown option or adjoint method.
        UnsupportedError: a use whose steps cannot be replayed exactly: increments that require a gradient, increments
            or states that sde changes in place, and the transforms of ``torch.func``.
        GradientError: where a gradient would be wrong: after the solve, if what the first step computed, and the next
            one used, was then computed anew; in the backward pass, if sde uses a tensor that the first step did not,
            and that is neither named nor a parameter of an sde that is a module; or if sde returns other values than
            before, or, with ``checkpoints``, bm.

    Source:
        Zhuang et al., arXiv 2006.02493 (the tape and its replay); Li et al., arXiv 2001.01328 (the host's adjoint);
        Kidger et al., arXiv 2009.09457 (the seminorm).

    Example:
        >>> import torch
        >>> from steptape.torch import sdeint_adjoint
        >>> class Growth(torch.nn.Module):
        ...     noise_type, sde_type = "diagonal", "ito"
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.rate = torch.nn.Parameter(torch.tensor(1.0))
        ...     def f(self, t, y):
        ...         return self.rate * y
        ...     def g(self, t, y):
        ...         return 0.0 * y
        >>> sde = Growth()
        >>> ys = sdeint_adjoint(sde, torch.ones(1, 1), [0.0, 1.0], dt=1e-2, method="euler", adjoint_method="aca")
        >>> ys[-1].sum().backward()
        >>> print(f"{sde.rate.grad:.2f}")  # d(1 + a h)^(1 / h) / da at a = 1
        2.68
    """
    if adjoint_method == "quadrature":
        raise UnsupportedError(
            "sdeint_adjoint(..., adjoint_method='quadrature'): the quadrature adjoint reads y(t) from the dense output "
            "of an ODE solver, and an SDE's solution has none. Use adjoint_method='aca', which is exact."
        )
    call = {
        "bm": bm,
        "method": method,
        "dt": dt,
        "adaptive": adaptive,
        "rtol": rtol,
        "atol": atol,
        "dt_min": dt_min,
        "options": options,
        "names": names,
        "logqp": logqp,
        "extra": extra,
        "extra_solver_state": extra_solver_state,
    }
    if adjoint_method != "aca":
        _check_name(adjoint_method)
        call |= {
            "adjoint_method": adjoint_method,
            "adjoint_adaptive": adjoint_adaptive,
            "adjoint_rtol": adjoint_rtol,
            "adjoint_atol": adjoint_atol,
            "adjoint_options": adjoint_options,
            "adjoint_params": adjoint_params,
        }
        if adjoint_options is not None and "norm" in adjoint_options:
            call["adjoint_params"] = params = _named_or_own(sde, adjoint_params)
            call = with_seminorm(call, y0, params)
        return host.sdeint_adjoint(sde, y0, ts, **call, **unused_kwargs)
    host.handle_unused_kwargs(unused_kwargs, msg="`sdeint_adjoint`")
    _check_transforms()
    backward = {"adjoint_adaptive": adjoint_adaptive, "adjoint_rtol": adjoint_rtol, "adjoint_atol": adjoint_atol}
    tell("sdeint_adjoint", changed({name: (value, _DEFAULTS[name]) for name, value in backward.items()}))
    keep = _keep_of(adjoint_options)
    call |= {"sde": sde, "y0": y0, "ts": ts}
    replay = functools.partial(_replayed, call, keep, adjoint_params)
    if keep.memory == "graphs" and adjoint_params is None and torch.is_grad_enabled():
        # The host keeps graphs too.
        return replayed_or_not(call, replay, is_plain=False)
    return replay()


_CHECKED = ("sde", "y0", "ts", "bm", "method", "adaptive", "options", "names", "logqp")
_NUMBERS = ("dt", "rtol", "atol", "dt_min")


def _replayed(call: dict[str, Any], keep: Keep, adjoint_params: Iterable[Tensor] | None) -> Any:
    """``torchsde.sdeint`` of the arguments of a ``call``, whose backward pass is ours."""
    since = place_in_order()
    sde, y0, ts, bm, method, options = host.check_contract(*(call[name] for name in _CHECKED))
    numbers = {name: call[name] for name in _NUMBERS}
    host.assert_no_grad(["ts", *numbers], [ts, *numbers.values()])
    settings, extras = {**numbers, "adaptive": call["adaptive"], "options": options}, call["extra_solver_state"]
    count = None if extras is None else len(extras)
    # A copy of the times, which may be moved on in place before the backward pass.
    solve = SdeSolve(sde, call["sde"], bm, ts.clone(), method, settings, keep, count)
    given = (y0, *(extras or ()))
    solve, params = with_parameters(solve, given, adjoint_params, since=since)
    ys, *at_end = recorded(solve, *given, *params)
    return host.parse_return(y0, ys, tuple(at_end), call["extra"], call["logqp"])


def replayed_or_not(call: dict[str, Any], replay: Callable[[], Any], is_plain: bool = True) -> Any:
    """``replay()``, or ``torchsde.sdeint`` of the arguments of a ``call``, as ``replayed_or`` has it."""
    sde, drawn = call["sde"], numpy.random.get_state()

    def by_host() -> Any:
        # Where no Brownian motion is given, its seed has been drawn already.
        numpy.random.set_state(drawn)
        return host.sdeint(**call)

    def as_it_is() -> Untouched:
        # The host evaluates it before there is a solve.
        device = getattr(call["y0"], "device", torch.device("cpu"))
        return Untouched(Surroundings(device, sde), sde)

    return replayed_or(by_host, sde, replay, is_plain, as_it_is)


def _check_name(adjoint_method: Any) -> None:
    if adjoint_method is not None and adjoint_method not in host.METHODS:
        names = ", ".join(map(repr, host.METHODS.all()))
        raise OptionError(
            f"sdeint_adjoint(..., adjoint_method={adjoint_method!r}): no such adjoint. steptape's is 'aca'; the host's "
            f"own, by the method that it solves backward with, {names}."
        )


def _check_transforms() -> None:
    if transforms_active():
        raise UnsupportedError(
            "torch.func over sdeint_adjoint(..., adjoint_method='aca'): the transforms see no backward pass of ours. "
            "Use torch.autograd.grad or backward(), or differentiate torchsde.sdeint."
        )


_DEFAULTS = {"adjoint_adaptive": False, "adjoint_rtol": 1e-5, "adjoint_atol": 1e-4}


def _keep_of(adjoint_options: dict[str, Any] | None) -> Keep:
    keep = keep_of(adjoint_options, "sdeint_adjoint", of_hosts={"norm", *host.OPTION_NAMES})
    if keep.graph == "stage":
        raise UnsupportedError(
            "sdeint_adjoint(..., adjoint_method='aca', adjoint_options={'graph': 'stage'}): a step of an SDE solver is "
            "replayed as a whole. Leave out 'graph'."
        )
    if not isinstance(keep.memory, str):
        raise UnsupportedError(
            f"sdeint_adjoint(..., adjoint_method='aca', adjoint_options={{'memory': {keep.memory}}}): a size, of a "
            "tape of which the increments are the most. Use 'memory': 'graphs' or 'states', or 'checkpoints', which "
            "asks the Brownian object for them again."
        )
    return keep


def _named_or_own(sde: Any, adjoint_params: Iterable[Tensor] | None) -> list[Tensor]:
    if adjoint_params is None and not isinstance(sde, torch.nn.Module):
        raise OptionError(
            f"sdeint_adjoint(sde={sde!r}, ..., adjoint_options={{'norm': 'seminorm'}}): sde is no torch.nn.Module, so "
            "its parameters are unknown. Make it one, or pass adjoint_params=(...), which is () if there are none."
        )
    params = sde.parameters() if adjoint_params is None else adjoint_params
    return list({id(p): p for p in params if p.requires_grad}.values())
