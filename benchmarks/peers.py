"""Every way to a gradient that is measured, as a function that is called as ``torchdiffeq.odeint`` is.

Adaptive, all step by Dormand and Prince's method of order 5 with the same tolerances, forward and, where they solve
backward, there too. What a package has no argument for raises ``Absent``.
"""

import dataclasses
import functools
import importlib
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torchdiffeq
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import steptape.torch
from benchmarks.fields import Field, Setup
from benchmarks.ways import COMPILED, GRAPHS, HOST, HOST_ADJOINT, OURS, Absent


@dataclasses.dataclass(frozen=True)
class Method:
    """``solve`` maps func, y0 and t to the solution at ``t``. ``package``: what it needs installed."""

    solve: Callable[..., Any]
    package: str = "torchdiffeq"
    per_sample: bool = False

    def missing(self) -> str | None:
        """Why its package cannot be imported, if so."""
        try:
            importlib.import_module(self.package)
        except ImportError as error:
            return f"not installed ({error})"
        return None

    def why_not(self, setup: Setup) -> str | None:
        """Why it cannot be measured on a set-up, if so."""
        if self.per_sample and setup.batch * setup.parameters > 1e6:
            return f"not run: carries the parameters' gradient once a sample, {setup.batch} x {setup.parameters}"
        return self.missing()


def checkpointed(func: Callable[..., Any], y0: Any, t: Tensor, **settings: Any) -> Any:
    """Back-propagation that computes each evaluation of ``func`` once more instead of keeping what is inside."""
    return torchdiffeq.odeint(lambda t, y: checkpoint(func, t, y, use_reentrant=False), y0, t, **settings)


def ours(method: str = "aca", **options: Any) -> Callable[..., Any]:
    return functools.partial(steptape.torch.odeint_adjoint, adjoint_method=method, adjoint_options=options or None)


def _zuko(func: Any, y0: Any, t: Tensor, rtol: float, atol: float, method: str, options: Any = None) -> Any:
    """Several outputs are several solves."""
    from zuko.utils import odeint

    if method != "dopri5":
        raise Absent
    phi, ys = tuple(func.parameters()), [y0]
    # It hands over the parts of a tuple one by one.
    slope = func if isinstance(y0, Tensor) else lambda t, *y: func(t, y)
    for start, end in itertools.pairwise(t):
        ys.append(odeint(slope, ys[-1], start, end, phi, atol=atol, rtol=rtol))
    return torch.stack(ys) if isinstance(y0, Tensor) else tuple(map(torch.stack, zip(*ys, strict=True)))


def _torchode(
    func: Any, y0: Any, t: Tensor, rtol: float, atol: float, method: str, options: Any = None, *, adjoint: str
) -> Tensor:
    """The state is (batch, features), or one without a batch; the one fixed grid is Euler's with a constant step."""
    import torchode

    if not isinstance(y0, Tensor):
        raise Absent
    if y0.dim() == 1:
        batched = Field(lambda t, y: func(t[0], y[0]).unsqueeze(0), func)
        return _torchode(batched, y0[None], t, rtol, atol, method, adjoint=adjoint)[:, 0]
    term, first = torchode.ODETerm(func), {}
    step: Any = torchode.Dopri5(term=term)
    controller: Any = torchode.IntegralController(atol=atol, rtol=rtol, term=term)
    if method != "dopri5":
        step, controller = torchode.Euler(term=term), torchode.FixedStepController()
        first = {"dt0": torch.full((len(y0),), 1e-3, dtype=t.dtype)}
    own = adjoint == "AutoDiffAdjoint"
    solver = getattr(torchode, adjoint)(*((step, controller) if own else (term, step, controller))).to(t.dtype)
    times = t.expand(len(y0), -1)
    start = torchode.InitialValueProblem(y0=y0, t_start=times[:, 0], t_end=times[:, -1], t_eval=times)
    return solver.solve(start, term=term if own else None, **first).ys.transpose(0, 1)


def _torchdyn(
    func: Any, y0: Any, t: Tensor, rtol: float, atol: float, method: str, options: Any = None, *, adjoint: bool
) -> Tensor:
    """A fixed grid is that of its output times."""
    # Its public door to the adjoint, torchdyn.core.ODEProblem, is this function behind an import of pytorch_lightning.
    from torchdyn.numerics import DormandPrince45, RungeKutta4, odeint
    from torchdyn.numerics.sensitivity import _gather_odefunc_adjoint

    solver: Any = DormandPrince45(t.dtype)
    interpolator: str | None = "4th"
    if method != "dopri5":
        count = round(float(t[-1] - t[0]) / options["step_size"]) + 1
        t = torch.linspace(float(t[0]), float(t[-1]), count, dtype=t.dtype)
        solver, interpolator = RungeKutta4(t.dtype), None
    if not adjoint:
        return odeint(func, y0, t, solver, atol, rtol, interpolator=interpolator)[1]
    params = torch.cat([p.flatten() for p in func.parameters()])
    forward, backward = (solver, atol, rtol, interpolator), (solver, atol, rtol)
    solve = _gather_odefunc_adjoint(func, params, *forward, *backward, None, "standard")
    return solve.apply(params, y0, t, None, ())[1]


# Those named adjoint, backsolve or zuko solve the continuous adjoint. Its error control leaves out the parameters in
# the seminorm's and in torchdyn's; zuko's is by the maximum norm, so that its steps are smaller, and over each step.
# torchode controls errors and steps per sample, but for the joint one: one norm over the batch, and the parameters.
METHODS = {
    HOST: Method(torchdiffeq.odeint),
    OURS: Method(ours(), "steptape"),
    GRAPHS: Method(ours(memory="graphs"), "steptape"),
    COMPILED: Method(ours(compile=True), "steptape"),
    f"{OURS}, checkpoints=8": Method(ours(checkpoints=8), "steptape"),
    f'{OURS}, graph="stage"': Method(ours(graph="stage"), "steptape"),
    f'{OURS}, checkpoints=8, graph="stage"': Method(ours(checkpoints=8, graph="stage"), "steptape"),
    f"{HOST}, checkpointed func": Method(checkpointed),
    HOST_ADJOINT: Method(torchdiffeq.odeint_adjoint),
    f"{HOST_ADJOINT}, seminorm": Method(
        functools.partial(torchdiffeq.odeint_adjoint, adjoint_options={"norm": "seminorm"})
    ),
    "zuko": Method(_zuko, "zuko"),
    "torchode, autograd": Method(functools.partial(_torchode, adjoint="AutoDiffAdjoint"), "torchode"),
    "torchode, joint backsolve": Method(functools.partial(_torchode, adjoint="JointBacksolveAdjoint"), "torchode"),
    "torchode, backsolve": Method(
        functools.partial(_torchode, adjoint="BacksolveAdjoint"), "torchode", per_sample=True
    ),
    "torchdyn, autograd": Method(functools.partial(_torchdyn, adjoint=False), "torchdyn"),
    "torchdyn, adjoint": Method(functools.partial(_torchdyn, adjoint=True), "torchdyn"),
}
