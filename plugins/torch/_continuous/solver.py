"""The host's solver that a continuous adjoint runs backward in time, as the user asked for it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from steptape._errors import OptionError, UnsupportedError
from steptape.compat import _torchdiffeq as host
from steptape.torch._hosts.scheme import Adaptive, scheme_of
from steptape.torch._hosts.tableau import Tableau
from steptape.torch._options import keep_of
from steptape.torch._seminorm import Seminorm
from steptape.torch._tape.checkpoints import Keep

POINTS = ("step_t", "jump_t")


@dataclasses.dataclass(frozen=True)
class BackwardSolver:
    """A solver of the host's, its tolerances and its options, in the host's normal form for s = -t.

    ``tableau``: that of the solver. ``nodes``: of a Gauss–Legendre quadrature in each of its steps; None: by the
    tableau's own weights.
    """

    method: str
    tableau: Tableau
    rtol: Any
    atol: Any
    options: dict[str, Any]
    nodes: int | None

    @classmethod
    def from_call(
        cls, y0: Any, t: Tensor, forward: dict[str, Any], adjoint: dict[str, Any]
    ) -> tuple[BackwardSolver, Keep]:
        """Read the arguments of odeint_adjoint; what ``adjoint`` leaves out is as in the ``forward`` solve.

        Both hold ``rtol``, ``atol`` and ``options``, and ``forward`` holds ``method``. Also gives what to tape.
        """
        if not host.BOUNDS_STEPS:
            raise UnsupportedError(
                f"{_CALL}): the steps of this torchdiffeq have no 'max_step' to bound them by, as they must be where "
                "the parameters' integrand varies fast. Use torchdiffeq 0.2.4 or later, or adjoint_method='aca'."
            )
        given = dict(adjoint["options"] or {})
        keep = {name: given.pop(name) for name in ("checkpoints", "checkpoint_device", "lean") if name in given}
        nodes = given.pop("nodes", None)
        if nodes is not None and (type(nodes) is not int or nodes < 1):
            raise OptionError(
                f"{_CALL}, adjoint_options={{'nodes': {nodes!r}}}): must be a positive number of Gauss–Legendre nodes "
                "in each backward step, or None for the quadrature of the backward solver's own scheme."
            )
        forward_method = forward["method"] or "dopri5"
        method = given.pop("method", forward_method)
        _adaptive(forward_method, f"{_CALL}, method={forward_method!r}")
        tableau = _adaptive(method, f"{_CALL}, adjoint_options={{'method': {method!r}}}")
        names = host.option_names(host.SOLVERS[method]) - {"first_step"}
        for name, value in given.items():
            if name not in names:
                raise OptionError(
                    f"{_CALL}, adjoint_options={{{name!r}: {value!r}}}): unknown option. The quadrature adjoint takes "
                    f"'checkpoints', 'checkpoint_device', 'lean', 'nodes' and 'method', and {method!r} takes "
                    f"{', '.join(map(repr, sorted(names)))}."
                )
        given = _with_norm_of_state(given)
        shared = {name: value for name, value in (forward["options"] or {}).items() if name in names}
        if "max_num_steps" in shared:
            # Its steps are as many as the forward ones, and a few more where they end at an output.
            shared["max_num_steps"] = 2 * shared["max_num_steps"] + 2
        rtol, atol = (forward[name] if adjoint[name] is None else adjoint[name] for name in ("rtol", "atol"))
        _, _, _, _, rtol, atol, _, options, _, _ = host.check_inputs(
            lambda t, y: y, y0, t, rtol, atol, method, {**shared, **given}, None, host.SOLVERS
        )
        for name in POINTS:
            if options.get(name) is not None:
                options[name] = -torch.as_tensor(options[name])
        kept = keep_of(keep, adjoint_method="quadrature")
        return cls(method, tableau, rtol, atol, options, nodes), kept.for_dense_output()

    def run(self, field: Any, a: Tensor, start: Tensor, end: Tensor, first_step: float) -> Tensor:
        """a at ``end``, from that at ``start`` before it, with steps that end at the points between and there.

        Of a batch each member keeps to the tolerances, in steps that all of them take together.
        """
        given = [torch.as_tensor(self.options[name]).to(end) for name in POINTS if self.options.get(name) is not None]
        between = [x for points in given for x in points.unbind() if start < x < end]
        # One solve from point to point: of several, the host loses sight where a step happens to end at one.
        for to in (*sorted(between), end):
            a, start, first_step = self._steps_to(to, field, a, start, first_step), to, field.proposed
        return a

    def _steps_to(self, end: Tensor, field: Any, a: Tensor, start: Tensor, first_step: float) -> Tensor:
        options = {name: value for name, value in self.options.items() if name not in POINTS}
        if field.is_batch:
            options["norm"] = functools.partial(_largest, options["norm"])
        func = host.with_sides(field)
        for name in host.CALLBACKS:
            setattr(func, name, getattr(field, name))
        solver = host.SOLVERS[self.method](
            func=func, y0=a, rtol=self.rtol, atol=self.atol, **options, step_t=end[None], first_step=first_step
        )
        host.attach(solver, func, seeks_event=False)
        longest = solver.max_step

        def accepted(interpolant: Any) -> None:
            field.note_interpolant(interpolant)
            solver.max_step = longest.clamp(max=field.reach(sum(field.step)))

        solver.max_step = longest.clamp(max=field.reach(start.item()))
        host.call_after_steps(solver, accepted)
        solver.integrate(torch.stack([start, end]))
        # Not the solution's last entry: an interpolant's value at the step's end is many roundings off.
        return host.last_state(solver)


def _largest(norm: Any, members: Tensor) -> Tensor:
    return torch.stack([torch.as_tensor(norm(member)) for member in members]).max()


_CALL = "odeint_adjoint(..., adjoint_method='quadrature'"


def _with_norm_of_state(options: dict[str, Any]) -> dict[str, Any]:
    """The options with a norm that is for the host's adjoint as one for the cotangent of the state alone."""
    norm = options.get("norm")
    if isinstance(norm, Seminorm):
        return {**options, "norm": norm.of_cotangent}
    if isinstance(norm, str) and norm != "seminorm":
        raise OptionError(
            f"{_CALL}, adjoint_options={{'norm': {norm!r}}}): must be a norm of a state, seminorm(y0) or 'seminorm'."
        )
    # The state of this backward solve has no integrals to leave out.
    return {name: value for name, value in options.items() if name != "norm" or value != "seminorm"}


def _adaptive(method: str, call: str) -> Tableau:
    """The tableau of an adaptive solver."""
    schemes = {name: scheme_of(solver) for name, solver in host.SOLVERS.items()}
    able = {name: scheme.tableau for name, scheme in schemes.items() if isinstance(scheme, Adaptive)}
    if method not in host.SOLVERS:
        raise OptionError(f"{call}): no solver of torchdiffeq. Use one of {', '.join(able)}.")
    if method not in able:
        raise UnsupportedError(
            f"{call}): the quadrature adjoint reads y(t) from the dense output of an adaptive solver, which {method!r} "
            f"has not. Use one of {', '.join(able)}, or adjoint_method='aca', which is exact."
        )
    return able[method]
