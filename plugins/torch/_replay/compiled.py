"""The replay of steps that are compiled together with their vector-Jacobian products.

Between the passes states alone are held, as ever; a step's slopes and what autograd would save of them live inside one
compiled function. Compiled code may round otherwise, so a step that is compiled for the first time is compared with
itself as it is, for cotangents of its own, and each step's end is held against the state that followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from steptape._errors import GradientError, UnsupportedError
from steptape.compat._torch_compile import has_global_hooks
from steptape.torch._autograd.field import Field
from steptape.torch._autograd.graph import Call, is_dense
from steptape.torch._autograd.surroundings import Surroundings
from steptape.torch._hosts.base import Timeline
from steptape.torch._hosts.tableau import Tableau
from steptape.torch._replay.checks import check_end
from steptape.torch._replay.joint import Asked, CannotCompile, Joint, Kind, Own, Pulled, cotangents_of
from steptape.torch._replay.programs import program_of
from steptape.torch._replay.runge_kutta import After, Link, RungeKuttaSweep
from steptape.torch._tape.tape import OdeTape, State, Tape


class How(NamedTuple):
    """How steps are compiled: func, bare and as the user passed it, its autocast, and ``torch.compile``'s options."""

    func: Any
    user_func: Any
    autocast: tuple[Any, ...] | None
    options: dict[str, Any]


class _Bound(NamedTuple):
    """A compiled step with the tensors that func uses; ``gains``: places of the parameters that it is pulled to.

    A parameter that is in two places of func, since it was tied to another one, gains twice.
    """

    joint: Joint
    tensors: Sequence[Tensor]
    gains: Sequence[int]

    @property
    def shares(self) -> list[tuple[int, bool]]:
        """Each of the places, and whether it is there a second time."""
        return [(i, i in self.gains[:n]) for n, i in enumerate(self.gains)]


class CompiledSweep(RungeKuttaSweep):
    """The sweep in which steps are compiled, as far as torch lets them be and all they depend on is a parameter."""

    def __init__(self, tableau: Tableau, tape: OdeTape, timeline: Timeline, field: Field, y0: Tensor, how: How):
        super().__init__(tableau, tape, timeline, field, y0, whole_steps=True)
        self._how, self._shape = how, y0.shape
        self._table = tuple(map(tuple, tableau.rows.tolist()))
        self._times, self._sizes = self.times.unbind(), timeline.sizes.detach().unbind()
        step = torch.tensor(tape.step_of_output, dtype=torch.long, device=y0.device)
        sizes = timeline.sizes.detach()[step, None]
        # What outputs take of the start of their step, and of its slopes.
        self._shares = torch.cat([self.of_start[:, None], self.weights * sizes], dim=1)
        self._bounds: dict[Any, _Bound | None] = {}

    def _step(self, n: int, state: State, outputs: slice, mu: Tensor, after: After) -> After:
        link = after.link
        own = Own(self._times[n], self._sizes[n], *(x.view(self._shape) for x in state))
        bound = self._bound(own, inside=bool(len(mu)) or link is not None)
        if bound is None:
            return super()._step(n, state, outputs, mu, after)
        pulled = self._pulled(bound, own, self._asked(outputs, mu, after))
        self._check_pulled(n, state, pulled)
        left = None if pulled.first is None else Link(pulled.first, None)
        return After(pulled.start.reshape(-1), left)

    def _asked(self, outputs: slice, mu: Tensor, after: After) -> Asked:
        end = after.end.view(self._shape)
        following = self.following[0].view(self._shape) if self.following else end
        if not len(mu) and after.link is None:
            return Asked(end, following)
        block = self._shares[outputs].T @ mu
        if after.link is not None:
            block[-1] += after.link.cotangent.reshape(-1)
        return Asked(end, following, block.view(-1, *self._shape), self._shares[outputs.stop - 1])

    def _pulled(self, bound: _Bound, own: Own, asked: Asked) -> Pulled:
        totals = self.parameters.cotangents
        given = [torch.zeros_like(totals[i]) if again else totals[i] for i, again in bound.shares]
        pulled = bound.joint(own, asked, [*given, *bound.tensors])
        for (i, again), total in zip(bound.shares, pulled.totals, strict=True):
            totals[i] = totals[i] + total if again else total
        return pulled

    def _check_pulled(self, n: int, state: State, pulled: Pulled) -> None:
        left = self.tape.length - 1 - n
        if left > 1:
            self.ends.note_gaps(pulled.gaps)
        elif left == 1:
            check_end(pulled.end, self.tape.fingerprints[0], state[0], self.parameters)
        elif pulled.output is not None:
            check_end(pulled.output, self.tape.fingerprints[1], state[0], self.parameters)

    def _bound(self, own: Own, inside: bool) -> _Bound | None:
        """The compiled step of a kind, for this backward pass; None where it is to be taken as it is."""
        key = (own.first is not None, inside)
        if key not in self._bounds:
            try:
                self._bounds[key] = self._made(own, inside)
            except CannotCompile as error:
                _refuse(self.parameters.call, str(error), error)
        return self._bounds[key]

    def _made(self, own: Own, inside: bool) -> _Bound | None:
        how, parameters, stages = self._how, self.parameters, self.tableau.stages if inside else self.to_end
        kind = Kind(self._table, stages, own.first is not None, inside, how.autocast)
        program = program_of(how.user_func, kind, own.y.shape, own.y.dtype, own.y.device, _frozen(how.options))
        leaf = own._replace(y=own.y.detach().requires_grad_())
        found = program.capture(how.func, leaf)
        if found is None:
            return None
        capture, inputs = found
        places = parameters.places
        joint, tensors, chosen = capture.joint(kind, leaf, inputs, lambda x: id(x) in places)
        if not parameters.cover(tensors):
            return None
        bound = _Bound(joint, [x.detach() for x in tensors], [places[id(x)] for x in chosen])
        if not joint.is_checked:
            self._check_compiled(kind, bound, own)
        parameters.use_at(i for i, used in zip(bound.gains, joint.used, strict=True) if used)
        return bound

    def _check_compiled(self, kind: Kind, bound: _Bound, own: Own) -> None:
        """Compile a step, and compare its cotangents with those of the step as it is: for others, which are not 0."""
        asked = _trial(kind, own)
        rest = [*(torch.zeros_like(self.parameters.cotangents[i]) for i in bound.gains), *bound.tensors]
        bound.joint.compile(own, asked, rest, self._how.options)
        pulled = bound.joint(own, asked, rest)
        start, first, *expected = self._as_it_is(kind, own, asked)
        if not all(x is None or is_dense(x) for x in expected):
            _refuse(self.parameters.call, "a parameter has a sparse gradient")
        gained: dict[int, Tensor] = {}
        for i, share in zip(bound.gains, pulled.totals, strict=True):
            gained[i] = gained[i] + share if i in gained else share
        found = [pulled.start if asked.block is None else pulled.start - asked.block[0], pulled.first]
        found += [gained.get(i) for i in range(len(expected))]
        if not all(x is None or x.isfinite().all() for x in (start, first, *expected)):
            # Nothing to compare with in this solve.
            return
        if not _same(found, [start, first, *expected], self.parameters.rough):
            _refuse_compiled(self.parameters.call)
        bound.joint.is_checked = True

    def _as_it_is(self, kind: Kind, own: Own, asked: Asked) -> list[Tensor | None]:
        """The cotangents of a step's start, of its first slope, and of all parameters, by autograd."""
        with torch.enable_grad():
            y = own.y.detach().requires_grad_()
            first = [] if own.first is None else [own.first.detach().requires_grad_()]
            ends = kind.step()(self.field.slope, own.times, own.h, y, first[0] if first else None)
        pairs = [(x, c) for x, c in zip(ends, cotangents_of(asked), strict=True) if x.requires_grad]
        some_ends, cotangents = zip(*pairs, strict=True)
        grads = self.parameters.taken(some_ends, cotangents, (y, *first, *self.parameters.params))
        return [grads[0], grads[1] if first else None, *grads[1 + len(first) :]]


def _trial(kind: Kind, own: Own) -> Asked:
    """Cotangents to compare by."""
    numbers = torch.linspace(0.5, 1.5, own.y.numel(), dtype=own.y.real.dtype, device=own.y.device)
    end = numbers.to(own.y.dtype).view(own.y.shape)
    if not kind.inside:
        return Asked(end, own.y)
    weights = torch.arange(1 + kind.stages, device=end.device).to(end.dtype)
    return Asked(end, own.y, torch.stack([end * (1 + i) for i in range(len(weights))]), weights)


def _same(found: Sequence[Tensor | None], expected: Sequence[Tensor | None], rough: bool) -> bool:
    """Whether these are the same to rounding; None is 0."""
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a is not None and b is not None]
    lost = [b for a, b in zip(found, expected, strict=True) if a is None and b is not None]
    eps = torch.finfo(pairs[0][0].dtype).eps
    # The gradient in one tensor may be 0 but for the rounding of the others.
    least = 1e3 * eps * max(float(b.abs().max()) for _, b in pairs if b.numel())
    relative = 0.05 if rough else 10 * eps**0.5
    close = all(float((a - b).abs().max()) <= relative * float(b.abs().max()) + least for a, b in pairs if b.numel())
    return close and all(float(b.abs().max()) <= least for b in lost if b.numel())


def check_compilable(call: Call, tape: Tape, surroundings: Surroundings) -> None:
    """Raise where evaluations do what a compiled step would not do again as the solve did."""
    if tape.notes:
        why = "it draws random numbers (dropout?) or changes buffers (batch norm?), and would do so otherwise"
        _refuse(call, why)
    if any(module._backward_hooks or module._backward_pre_hooks for module in surroundings.modules):
        _refuse(call, "backward hooks on its modules would not run")
    if has_global_hooks():
        _refuse(call, "hooks on all modules would not run")


def refuse_parts(call: Call) -> NoReturn:
    """Raise where a compiled step would clip the parts of a cotangent."""
    _refuse(call, "it clips or scales cotangents, which come in parts there")


def _refuse(call: Call, why: str, error: Exception | None = None) -> NoReturn:
    raise UnsupportedError(
        f"{call} with adjoint_options={{'compile': ...}}: {call.func} cannot be compiled: {why}. Leave out 'compile', "
        "and it is replayed as it is."
    ) from error


def _refuse_compiled(call: Call) -> NoReturn:
    raise GradientError(
        f"{call} with adjoint_options={{'compile': ...}}: compiled, a step has another gradient than as it is. Leave "
        "out 'compile', or compile with another backend."
    )


def _frozen(options: Any) -> Any:
    """As a key."""
    if isinstance(options, dict):
        return tuple(sorted((name, _frozen(value)) for name, value in options.items()))
    return tuple(map(_frozen, options)) if isinstance(options, list) else options
