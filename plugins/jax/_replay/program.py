"""A solve as a function of all arrays that it reads, in the terms of ``_autodiff``.

Its Jacobian is that of diffrax's loop, differentiated forward; what is pulled back goes over the tape of the loop.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from steptape._errors import UnsupportedError
from steptape.jax._autodiff.activity import reached
from steptape.jax._autodiff.converted import primitives
from steptape.jax._autodiff.jacobians import Apart, Arrays, Flags, Jacobian, Linear, Native, along, marked, pulled
from steptape.jax._autodiff.modes import Derived
from steptape.jax._replay.recording import Parts, Recording, Settings


class Solve:
    """The final state of a loop, as a function of the arrays in its parts: a ``modes.Function``."""

    def __init__(self, parts: Parts, settings: Settings) -> None:
        leaves, structure = jax.tree.flatten(parts)
        self._structure: Any = structure
        self._is_array = tuple(map(eqx.is_array, leaves))
        self._rest = [None if a else leaf for leaf, a in zip(leaves, self._is_array, strict=True)]
        self._shapes = jax.eval_shape(lambda *x: x, *marked(leaves, self._is_array))
        self._recordings: dict[Flags, Recording] = {}
        self._forward: dict[Flags, bool] = {}
        self._settings = settings

    def parts(self, x: Sequence, rest: Sequence | None = None) -> Parts:
        """The parts, with other arrays."""
        values = iter(x)
        leaves = zip(self._is_array, self._rest if rest is None else rest, strict=True)
        return jax.tree.unflatten(self._structure, [next(values) if a else leaf for a, leaf in leaves])

    def flags(self, mask: Flags) -> Parts:
        """The parts, with flags for leaves: true for the arrays that are marked."""
        return self.parts(mask, [False] * len(self._rest))

    def value(self, x: Arrays) -> Arrays:
        """The arrays of the final state."""
        return jax.tree.leaves(self.parts(x).run())

    def derived(self, mask: Flags) -> Derived:
        """By a run that leaves a tape."""
        recording = self.recording(mask)
        linear = _Swept(self, self, mask, recording.moving, told=recording)
        return Derived(_Taped(self, (mask,)), lambda: linear, recording.moving)

    def recording(self, mask: Flags) -> Recording:
        """How a run is recorded for the gradient in those of x that are marked."""
        if mask not in self._recordings:
            found: list[Recording] = []

            # Only traced, never run.
            def note(*x):
                found.append(Recording(self.flags(mask), self.parts(x), self._settings))

            jax.eval_shape(note, *self._shapes)
            self._recordings[mask] = found[0]
        return self._recordings[mask]

    def reverse_alone(self, mask: Flags) -> bool:
        """Whether what is marked meets a function with a rule for reverse mode alone."""
        if self._settings.reverse_alone and mask not in self._forward:
            self._forward[mask] = _knows_forward_mode(self._along(mask), self._shapes)
        return not self._forward.get(mask, True)

    def _along(self, mask: Flags) -> Callable:
        return lambda *x: along(self.value, x, mask, marked(x, mask))

    @property
    def is_ruled(self) -> bool:
        """Whether a rule of the user's may be no derivative, so that what follows of it has no symmetry."""
        return self._settings.ruled

    def reached(self, function: Callable, mask: Flags) -> Flags:
        """Which values of ``function`` move with the arrays that are marked."""
        found: list[Flags] = []

        # Only traced, never run.
        def note(*x):
            moves = eqx.filter(x, mask)
            values = jax.eval_shape(function, x)
            flags = reached(lambda m: eqx.filter(list(function(eqx.combine(m, x))), eqx.is_inexact_array), moves)
            found.append(tuple(map(bool, [None] * len(values) if flags is None else flags)))

        jax.eval_shape(note, *self._shapes)
        return found[0]

    def push_whole(self, x: Arrays, v: Arrays, mask: Flags) -> Arrays:
        """J(x) v, where x are those marked, in a form that JAX differentiates in any mode."""
        return along(self._whole_moving(mask), x, mask, v)[1]

    def pull_whole(self, x: Arrays, w: Arrays, mask: Flags) -> Arrays:
        """J(x)^T w, where x are those marked and w those that move with them, by JAX's own reverse mode."""
        values, pull = pulled(self._whole_moving(mask), x, mask)
        return pull(w[: len(values)])

    def _whole_moving(self, mask: Flags) -> Callable[[Arrays], Arrays]:
        return lambda x: marked(self.whole(x), self.recording(mask).moving)

    def whole(self, x: Arrays) -> Arrays:
        """The arrays of the final state, in a form that JAX differentiates in any mode."""
        parts = self.parts(x)
        if parts.whole is None:
            raise UnsupportedError(
                "`diffeqsolve(..., max_steps=None, adjoint=AdaptiveCheckpointAdjoint(...))` has no second "
                "derivative in reverse mode through a `jax.custom_vjp` or `jax.custom_jvp` in the vector field: "
                "such a rule need not be a derivative, so that all steps are differentiated at once, and JAX must "
                "know how many there may be. Pass `max_steps=...`."
            )
        return jax.tree.leaves(parts.whole(parts.carry[-1]))

    def sweep(self, x: Arrays, tape: Arrays, w: Arrays, mask: Flags, told: Recording) -> list:
        """J(x)^T w for those of x that are marked, given the cotangents of what moves with them and a tape.

        ``told``: what has made the tape.
        """
        grads = self.recording(mask).sweep(self.parts(x), tape, w, told)
        each = marked(self._structure.flatten_up_to(grads), self._is_array)
        pairs = zip(marked(x, mask), marked(each, mask), strict=True)
        return [jnp.zeros_like(a) if g is None else g for a, g in pairs]


@dataclasses.dataclass(frozen=True, eq=False)
class _Taped:
    """A solve's run that leaves a tape: the final state, and after it the arrays of the tape, ``copies`` times."""

    solve: Solve
    masks: tuple[Flags, ...]  # by which it has been differentiated: the tape is for the first
    copies: int = 1

    def value(self, x: Arrays) -> Arrays:
        """The final state and the tapes."""
        final, tape = self.solve.recording(self.masks[0]).run(self.solve.parts(x))
        return [*final, *tape * self.copies]

    def derived(self, mask: Flags) -> Derived:
        """That of the tape as well, from which nothing is pulled back."""
        after = dataclasses.replace(self, masks=(*self.masks, mask))
        if self.solve.is_ruled or any(map(self.solve.reverse_alone, self.masks)):
            linear, moving = self._by_rule(mask)
            return Derived(after, lambda: linear, moving)
        mine, other = (self.solve.recording(m) for m in (self.masks[0], mask))
        moving, told = other.moving + other.moving_on(mine) * self.copies, mine.kind == other.kind
        swept = _Swept(self.solve, self, mask, moving, mine if told else None)
        return Derived(dataclasses.replace(after, copies=self.copies + told), lambda: swept, moving)

    def _by_rule(self, mask: Flags) -> tuple[Linear, Flags]:
        """The Jacobian as JAX has it, and what moves: of the values that a rule of the user's has given so far."""
        run, whole = (functools.partial(_settled, f, self.masks) for f in (self.value, self.solve.whole))
        moving = self.solve.reached(run, mask)
        forward, back = Native(lambda x: marked(run(x), moving), mask), Native(lambda x: marked(whole(x), moving), mask)
        return Apart(forward, back), moving


@dataclasses.dataclass(frozen=True, eq=False)
class _Swept:
    """The Jacobian of the values of ``function`` that are ``moving``; from those of the solve it is pulled back.

    It is a function of x and, if it is ``told``, of the tape that this recording has made.
    """

    solve: Solve
    function: Solve | _Taped
    mask: Flags
    moving: Flags
    told: Recording | None

    def push(self, x: Arrays, v: Arrays) -> Arrays:
        """By diffrax's loop, differentiated forward."""
        count = len(self.mask)
        return along(self._value, x[:count], self.mask, v)[1]

    def pull(self, x: Arrays, w: Arrays) -> Arrays:
        """By the replay."""
        count = len(self.mask)
        if self.told is None:
            return self._pull_back(x, w, self.mask)[0]
        moving = self.solve.recording(self.mask).moving
        return self.solve.sweep(x[:count], x[count:], w[: sum(moving)], self.mask, self.told)

    def of_push(self, in_x: Flags, in_v: Flags) -> Linear:
        """As if there were no tape to be told; pulled by JAX through a rule of the user's."""
        count, jacobian = len(self.mask), self._untold(in_x).of_push(in_x, in_v)
        if not self.solve.is_ruled:
            return jacobian
        whole = Native(lambda xv: self.solve.push_whole(xv[:count], xv[len(in_x) :], self.mask), in_x + in_v)
        return Apart(jacobian, whole)

    def of_pull(self, in_x: Flags, in_w: Flags) -> Linear:
        """Forward with the tape, and back as if there were none; by JAX through a rule of the user's."""
        count = len(self.mask)
        whole = Native(lambda xw: self.solve.pull_whole(xw[:count], xw[len(in_x) :], self.mask), in_x + in_w)
        if self.solve.reverse_alone(self.mask):
            return whole
        jacobian = self._untold(in_x).of_pull(in_x, in_w)
        jacobian = dataclasses.replace(jacobian, value=lambda xw: self.pull(xw[: len(in_x)], xw[len(in_x) :]))
        return Apart(jacobian, whole) if self.solve.is_ruled else jacobian

    def _untold(self, in_x: Flags) -> Jacobian:
        return Jacobian(self._value, self._pull_back, self.mask + (False,) * (len(in_x) - len(self.mask)))

    def _value(self, x: Arrays) -> Arrays:
        return marked(self.function.value(x[: len(self.mask)]), self.moving)

    def _pull_back(self, x: Arrays, w: Arrays, mask: Flags) -> tuple[Arrays, Arrays]:
        """The gradient of all that is marked, by a run that is recorded for it, and the values."""
        count = len(self.mask)
        x, told, in_x, in_told = x[:count], x[count:], mask[:count], mask[count:]
        recording = self.solve.recording(in_x)
        final, tape = recording.run(self.solve.parts(x))
        each = dict(zip(marked(range(len(self.moving)), self.moving), w, strict=True))
        places = marked(range(len(final)), recording.moving)
        w = [each[i] if i in each else jnp.zeros_like(final[i]) for i in places]
        grads = self.solve.sweep(x, tape, w, in_x, recording)
        # Nothing is pulled back from a tape, and nothing to it.
        nothing = [jnp.zeros_like(a) for a in marked(told, in_told)]
        values = final if self.function is self.solve else [*final, *self.function.value(x)[len(final) :]]
        return [*grads, *nothing], marked(values, self.moving)


def _settled(function: Callable[[Arrays], Arrays], masks: tuple[Flags, ...], x: Arrays) -> Arrays:
    """``function(x)`` as JAX has it once it has been differentiated by each of the masks: see ``activity.settled``."""
    if not masks:
        return function(x)
    return pulled(lambda x: _settled(function, masks[:-1], x), x, masks[-1])[0]


def _knows_forward_mode(function: Callable, shapes: Sequence) -> bool:
    try:
        jaxpr = jax.make_jaxpr(function)(*shapes)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        return False
    # What JAX puts in the place of a tangent that it cannot find, to refuse it when it is compiled.
    return "custom_lin" not in primitives(jaxpr.jaxpr)
