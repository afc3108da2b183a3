"""What is differentiated: a solve, its loss and what the gradient is in; and all of it as it was after each run."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from steptape._compare.clock import Clock, TimeUp
from steptape._errors import OptionError
from steptape.torch._autograd.graph import tensors_of
from steptape.torch._autograd.looks import Inside, look
from steptape.torch._autograd.modules import modules_of
from steptape.torch._autograd.surroundings import Surroundings, Untouched

State = Any


class Problem:
    """A gradient to be taken in the state ``y0`` where it requires one and in ``params``, of the ``loss`` of a solve.

    ``func``: the vector field, or the SDE. ``seconds``: those of the last gradient. ``device``, ``eps``: where, and the
    rounding of the roughest of these.
    """

    seconds = 0.0

    def __init__(self, function: str, func: Any, y0: State, params: Sequence[Tensor], loss: Callable[[Any], Tensor]):
        self._call, self.func, self.params, self._loss = function, func, list(params), loss
        states = list(tensors_of(y0))
        self._y0, self._is_tuple = [(x.detach(), x.requires_grad) for x in states], not isinstance(y0, Tensor)
        self.device = states[0].device
        inputs = [*(x for x in states if x.requires_grad), *self.params]
        if not inputs:
            raise OptionError(
                f"{function}(...): neither y0 nor anything that is used in the solve requires a gradient."
            )
        self.eps = max(torch.finfo(x.dtype).eps for x in [*states, *inputs])
        # The graph behind a tensor that was computed before is the caller's, for another backward pass.
        self._retains = any(x.grad_fn is not None for x in self.params)

    def state(self) -> State:
        """y0 with no history."""
        made = [x.clone().requires_grad_(needs) for x, needs in self._y0]
        return tuple(made) if self._is_tuple else made[0]

    def gradient(
        self,
        solve: Callable[[Any, State], Any],
        func: Any = None,
        between: Callable[[Any, Any], None] | None = None,
    ) -> Tensor:
        """The gradient by both passes of a ``solve``, in one vector. ``between``: called with y0 and the solution."""
        with self.unchanged(), torch.enable_grad():
            y0 = self.state()
            start = self._now()
            ys = solve(self.func if func is None else func, y0)
            if between is not None:
                between(y0, ys)
            loss = self.loss_of(ys)
            inputs = [*(x for x in tensors_of(y0) if x.requires_grad), *self.params]
            grads = torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=self._retains or None)
            self.seconds = self._now() - start
        return _flat(grads, inputs)

    def loss_of(self, ys: Any) -> Tensor:
        """The loss of a solution."""
        loss = self._loss(ys)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise OptionError(f"{self._call}(..., loss=...): must map the solution to a scalar tensor.")
        return loss.sum()

    def unchanged(self) -> AbstractContextManager[None]:
        """A block after which all that func and loss refer to is as it was."""
        return unchanged(self.device, self.func, self._loss)

    @contextmanager
    def in_time(self, clock: Clock) -> Iterator[None]:
        """A block with the first solve, without which there is nothing to compare."""
        try:
            yield
        except TimeUp:
            more = f" {note}" if (note := self.waiting(clock)) else ""
            raise OptionError(
                f"{self._call}(..., time_limit={clock.limit:.3g}): the solve alone, without a gradient, takes longer. "
                f"Give it more time, or a smaller problem.{more}"
            ) from None

    def waiting(self, clock: Clock) -> str:
        """What to do where torch's threads wait for each other most of the time; nothing where they do not."""
        threads = torch.get_num_threads()
        if self.device.type != "cpu" or threads == 1 or clock.busy > 0.5:
            return ""
        return (
            f"note: this program had a processor {clock.busy:.0%} of the time. Where others take the rest, torch's "
            f"{threads} threads wait for each other in each operation: torch.set_num_threads(1) before the call may be "
            "many times faster"
        )

    def _now(self) -> float:
        """Where one thread computes, the processor's time, which other programs do not share in; else the clock's."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        is_alone = self.device.type == "cpu" and torch.get_num_threads() == 1
        return time.process_time() if is_alone else time.perf_counter()


@contextmanager
def unchanged(device: torch.device, *used: Any) -> Iterator[None]:
    """A block after which generators, and the modules and what else is ``used``, are as they were."""
    around = [Surroundings(device, x) for x in used]
    kept = [Untouched(one, x) for one, x in zip(around, used, strict=True)]
    params = [(p, p._version, p.detach().clone()) for one in around for p in one.parameters]
    own, numpy = random.getstate(), sys.modules.get("numpy")
    of_numpy = None if numpy is None else numpy.random.get_state()
    try:
        yield
    finally:
        for one in kept:
            one.restore()
        for p, version, value in params:
            if p._version != version:
                p.data.copy_(value)
        random.setstate(own)
        if numpy is not None:
            numpy.random.set_state(of_numpy)


def _flat(grads: Iterable[Tensor | None], inputs: Sequence[Tensor]) -> Tensor:
    parts = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, inputs, strict=True)]
    real = [torch.view_as_real(g) if g.is_complex() else g for g in parts]
    return torch.cat([g.detach().reshape(-1).double().cpu() for g in real])


def distance(found: Tensor, exact: Tensor) -> float:
    """Of one gradient from another, relative to that."""
    scale = exact.norm()
    return float((found - exact).norm() / (scale if scale > 0 else 1.0))


def params_of(func: Any, evaluate: Callable[..., Any], given: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that an evaluation of func uses and that require a gradient, and its modules' parameters."""
    untouched = Untouched(Surroundings(given[0].device, func), func)
    used = look(lambda n, *inputs: evaluate(*inputs), 0, given, Inside(), untouched.restore).used
    own = [x for module in modules_of(func) for x in module.parameters()] if isinstance(func, torch.nn.Module) else []
    return list({id(x): x for x in (*own, *used) if x.requires_grad}.values())


def last_square(ys: Any) -> Tensor:
    """The loss where none is given: the mean square of the last of the outputs."""
    ends = [x[-1] for x in tensors_of(ys)]
    total = ends[0].abs().square().mean()
    for end in ends[1:]:
        total = total + end.abs().square().mean()
    return total
