"""Random numbers that func draws: a replay draws the same ones again.

The solve notes the states of the generators where an accepted step starts; evaluations in their order do the rest.
Rejected tries have moved the generators too, which is why each step has states of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

Seed = tuple[Tensor, ...]


class Dice:
    """The default generators that func may draw from: the CPU's and that of the state's device."""

    def __init__(self, device: torch.device):
        self._generators = [torch.default_generator]
        if device.type == "cuda":
            self._generators.append(torch.cuda.default_generators[device.index or 0])

    def state(self) -> Seed:
        """The generators' states."""
        return tuple(generator.get_state() for generator in self._generators)

    def set(self, seed: Seed) -> None:
        """Put the generators into these states."""
        for generator, state in zip(self._generators, seed, strict=True):
            generator.set_state(state)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Leave the generators after the block as they were before."""
        before = self.state()
        try:
            yield
        finally:
            self.set(before)


def same(a: Seed, b: Seed) -> bool:
    """Whether no number was drawn between two states."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Draws:
    """The generators as a replay sets them: as they were when the solve took a stage.

    ``seeds``: for each step the states at its first evaluations, as far as the solve noted them; the others follow in
    order. Empty if nothing was drawn.
    """

    def __init__(self, dice: Dice, seeds: Sequence[Sequence[Seed]]):
        self._dice, self._seeds = dice, seeds
        self._step: int | None = None
        self._known: dict[int, Seed] = {}

    def before(self, step: int, stage: int) -> None:
        """Set the generators for a stage; a step's stages come in order, and then again in any order."""
        if not self._seeds:
            return
        if step != self._step:
            self._step, self._known = step, dict(enumerate(self._seeds[step]))
        if stage in self._known:
            self._dice.set(self._known[stage])
        else:
            self._known[stage] = self._dice.state()
