"""Which graphs of a solve are kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steptape.compat._torch_graphs import hooks_act_on_saved_tensors, saved_tensors_are_hooked
from steptape.torch._autograd.graph import leads_to
from steptape.torch._autograd.surroundings import Surroundings
from steptape.torch._hosts.base import Solve
from steptape.torch._tape.graphs import Graphs
from steptape.torch._tape.ledger import Ledger


def graphs_of(
    solve: Solve, inputs: Sequence[Tensor], needed: Sequence[bool], surroundings: Surroundings
) -> Graphs | None:
    """What keeps the graphs of a solve that is given these inputs, if any are kept; ``needed``: their gradients.

    States alone are kept where parameters have stand-ins, which func does not see in the solve; where func stores what
    it computes, whose graphs are not the solve's to free; and where hooks act on what is saved: they are to act on the
    states. Within a size also where none can act, by which it is counted.
    """
    keep, params = solve.keep, inputs[solve.given :]
    if keep.memory == "states" or solve.back is not None:
        return None
    limit = None if keep.memory == "graphs" else keep.memory
    alive = (*inputs, *solve.others, *surroundings.side.buffers)
    # A step adds a state, and a few numbers.
    reserve = 2 * sum(x.untyped_storage().nbytes() for x in inputs[:1]) + 1024
    ledger = Ledger(alive, limit, reserve) if limit is not None or keep.counts else None
    graphs = Graphs(in_time=any(needed[1 : solve.given]), ledger=ledger)
    assert solve.before is not None
    uncounted = limit is not None and (solve.before.traits.transforms or not hooks_act_on_saved_tensors())
    apart = solve.before.stores or saved_tensors_are_hooked() or any(leads_to(p, params) for p in params)
    if uncounted or apart:
        graphs.let_go()
        return graphs if limit is not None else None
    if surroundings.autocast:
        # Copies of weights that were made without a graph would be used again.
        torch.clear_autocast_cache()
    return graphs
