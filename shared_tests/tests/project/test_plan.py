"""The checkpoint plan, by a toy machine that executes it, counts, and holds it to its limits."""

from functools import cache

import pytest

from steptape._plan import Keeper, recomputed, reversal

SLOTS = (1, 2, 3, 5, 8, 16)


class Machine:
    """A solve whose state after n steps is the number n; asserts that no more than ``slots`` states are kept."""

    def __init__(self, slots):
        self.slots, self.kept, self.hand, self.advanced, self.replayed = slots, {}, None, 0, []

    def forward(self, steps):
        keeper = Keeper(self.slots)
        for step in range(steps):
            self.kept[step] = step
            dropped = keeper.offer(step)
            if dropped is not None:
                del self.kept[dropped]
            assert self.slots is None or len(self.kept) <= self.slots
            assert sorted(self.kept) == keeper.kept
        return keeper.kept

    def backward(self, kept, steps):
        for action in reversal(kept, steps, self.slots):
            getattr(self, action.kind)(action.step)
            assert self.slots is None or len(self.kept) <= self.slots

    def load(self, step):
        self.hand = self.kept[step]

    def advance(self, step):
        assert self.hand == step
        self.hand += 1
        self.advanced += 1

    def keep(self, step):
        assert self.hand == step
        self.kept[step] = step

    def replay(self, step):
        assert self.hand == step
        self.replayed.append(step)

    def drop(self, step):
        del self.kept[step]


def run(slots, steps):
    machine = Machine(slots)
    machine.backward(machine.forward(steps), steps)
    assert machine.replayed == list(reversed(range(steps)))
    assert not machine.kept
    return machine.advanced


@cache
def least(steps, slots):
    """The least number of recomputed steps, by trying every split."""
    if slots == 1 or steps == 1:
        return steps * (steps - 1) // 2
    return min(first + least(steps - first, slots - 1) + least(first, slots) for first in range(1, steps))


@cache
def offline(steps, slots):
    """The least with the length known in advance: the best places for the states of the forward pass."""
    if slots == 1 or steps == 1:
        return least(steps, 1)
    options = range(1, steps - slots + 2) if steps > slots else (1,)
    return min(least(first, slots) + offline(steps - first, slots - 1) for first in options)


def test_the_closed_form_is_the_least_number_of_recomputed_steps():
    for slots in range(1, 7):
        for steps in range(1, 80):
            assert recomputed(steps, slots) == least(steps, slots)


@pytest.mark.parametrize("slots", [None, *SLOTS])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 100, 333])
def test_every_step_is_replayed_once_and_no_slot_is_exceeded(slots, steps):
    advanced = run(slots, steps)
    if slots is None or steps <= slots:
        assert advanced == 0


@pytest.mark.parametrize("slots", SLOTS)
def test_recomputation_is_the_offline_optimum_within_the_bound(slots):
    for steps in range(1, (slots + 1) * (slots + 2) // 2):
        assert run(slots, steps) == offline(steps, slots) == max(0, steps - slots)


@pytest.mark.parametrize("slots", [3, 5, 8])
def test_beyond_the_bound_it_stays_within_a_tenth_of_the_optimum(slots):
    for steps in range(10, 160):
        assert run(slots, steps) <= 1.1 * offline(steps, slots)


@pytest.mark.parametrize("slots", [1, 2, 3, 7, 12])
def test_the_state_given_up_is_the_one_whose_loss_costs_least(slots):
    def cost(kept, end):
        ends = [*kept[1:], end]
        return sum(recomputed(ends[i] - start, slots - i) for i, start in enumerate(kept))

    keeper, kept = Keeper(slots), []
    for step in range(400):
        kept.append(step)
        dropped = keeper.offer(step)
        # Within the bound several cost as little, and any of them will do.
        if len(kept) > slots and step >= (slots + 1) * (slots + 2) // 2 - 1:
            costs = [cost([*kept[:i], *kept[i + 1 :]], step + 1) for i in range(1, slots + 1)]
            assert dropped == kept[1 + costs.index(min(costs))]
        if dropped is not None:
            kept.remove(dropped)


def test_at_most_two_more_tries_of_a_step_for_a_thousand_steps_in_sixteen_slots():
    assert run(16, 1000) < 2 * 1000
