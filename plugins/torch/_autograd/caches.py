"""Tensors that func computes in its first evaluation and uses in later ones: a solve gives them no history.

``parametrize.cached()`` makes such tensors, and so does ``if self.A is None: self.A = ...``. Back-propagation goes
through them to what they were computed from. The solve of a replay builds no graph, so a replay would take them for
constants.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from steptape._errors import GradientError
from steptape.compat._torch import OperationMode
from steptape.torch._autograd.graph import Call, tensors_of

# Whose values do not depend on those of their tensors, or not in a way that autograd would follow.
_WITHOUT_HISTORY = {"detach", "detach_", "bernoulli", "multinomial", "poisson"}


class CacheWatch:
    """Looks at the first two evaluations of a solve, for what they leave to others.

    Where one leaves something, func is evaluated once more for equal arguments, to see whether it is used: so what is
    kept for a time alone, or for a state, is seen as well. Two, since the first may use what a host's own checks left.
    """

    def __init__(self, call: Call):
        self._call = call
        self._looks = 0
        self._last: tuple[Any, ...] = ()
        self._latest: dict[int, weakref.ref[Tensor]] = {}
        self._made: dict[int, weakref.ref[Tensor]] = {}

    def evaluated(self, unnoticed: Callable[[], Any], evaluate: Callable[..., Any], *args: Any) -> Any:
        """``evaluate(*args)``, or raise ``GradientError``.

        ``unnoticed()``: a block after which what ``evaluate`` changes besides is as before.
        """
        if self._looks == 2:
            return evaluate(*args)
        self._looks, self._last = self._looks + 1, (unnoticed, evaluate, args)
        out = self._looked_at(evaluate, args)
        # What func returned is alive as a rule; that it returns it once more needs no look at its operations.
        others = set(self._latest) - {id(x) for x in tensors_of(out)}
        if any(self._latest[key]() is not None for key in others):
            self._again(*self._last)
        return out

    def finish(self) -> None:
        """After the solve: if one evaluation was all it took, what it returned is tried as well."""
        if self._looks == 1 and any(held() is not None for held in self._latest.values()):
            self._again(*self._last)
        self._last = ()

    def _again(self, unnoticed: Callable[[], Any], evaluate: Callable[..., Any], args: Any) -> None:
        with unnoticed():
            self._looked_at(evaluate, _copied(args))

    def _looked_at(self, evaluate: Callable[..., Any], args: Any) -> Any:
        """``evaluate(*args)``, if it uses nothing that was made before; what it makes is noted."""
        with _Look() as look:
            out = evaluate(*args)
        self._check(args, (*look.entered, *tensors_of(out)))
        self._latest, self._made = look.made, {**self._made, **look.made}
        return out

    def _check(self, args: Any, used: Iterable[Tensor]) -> None:
        own = {id(x) for x in tensors_of(args)}
        # What requires a gradient has its history, as autocast's copies of weights do.
        found = (x for x in used if id(x) not in own and not x.requires_grad)
        reused = next((x for x in found if _held(self._made, x)), None)
        if reused is not None:
            raise GradientError(
                f"{self._call}: {self._call.func} computed a tensor of shape {tuple(reused.shape)} in its first "
                "evaluation and used it again in the next one (parametrize.cached(), `if self.A is None: ...`). The "
                "solve builds no graph, so the gradient of what that tensor was computed from would be lost. Compute "
                "it in each evaluation; or before the solve, and pass it in adjoint_params in place of what it was "
                "computed from; or detach() it, if it needs no gradient."
            )


class _Look(OperationMode):
    """Notes the tensors that ``entered`` operations, and those ``made`` with the derivatives of one that requires any.

    Those that an operation writes to were there before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.entered: list[Tensor] = []
        self.made: dict[int, weakref.ref[Tensor]] = {}

    def operate(self, name: str, run: Callable[[], Any], args: Any) -> Any:
        """Run an operation."""
        out, inputs = run(), list(tensors_of(args))
        self.entered += inputs
        if name.endswith("_like") or name.startswith("new_") or name in _WITHOUT_HISTORY:
            return out
        if any(x.requires_grad or _held(self.made, x) for x in inputs):
            for x in tensors_of(out):
                if (x.is_floating_point() or x.is_complex()) and not any(x is y for y in inputs):
                    self.made[id(x)] = weakref.ref(x)
        return out


def _held(tensors: dict[int, weakref.ref[Tensor]], x: Tensor) -> bool:
    """Whether x is one of them; identifiers are used again, of tensors that are no more."""
    held = tensors.get(id(x))
    return held is not None and held() is x


def _copied(tree: Any) -> Any:
    """Equal tensors, and none of them the same."""
    if isinstance(tree, Tensor):
        return tree.clone()
    return type(tree)(map(_copied, tree)) if isinstance(tree, (tuple, list)) else tree
