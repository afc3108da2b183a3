"""Time against memory of the ways to one gradient in PyTorch: a cell a problem, a row a way.

``held``: bytes still allocated when the forward pass returns, the solution included. ``peak``: the most that both
passes together have allocated. ``ratio``: processor time over back-propagation's in the same rounds. ``error``: of the
gradient, relative, against back-propagation's with its guess of the first step held; that of the ways that are exact is
rounding. ``point``: what a line of points, as of ever fewer checkpoints, is marked with, and ``line`` that line's name.
"""

import functools
from typing import Any

import torch

from benchmarks import meters, timing
from benchmarks.envelope import Row, Rows
from benchmarks.fields import SPEED, Setup, loss_of
from benchmarks.measurements import Cells, Scope
from benchmarks.peers import METHODS, Method, ours
from benchmarks.torch_speed import raced
from benchmarks.ways import COMPILED, GRAPHS, HOST, HOST_ADJOINT, OURS

CHECKPOINTS = (2, 4, 16)
SHARES = {"1/2": 2, "1/4": 4, "1/8": 8}
# Ways that are one point each; another one is a line here.
LEANEST = f'{OURS}, checkpoints=8, graph="stage"'
SINGLE = {way: METHODS[way] for way in (HOST, HOST_ADJOINT, "torchdyn, autograd", OURS, GRAPHS, COMPILED, LEANEST)}


def cells(scope: Scope) -> Cells:
    """A cell a problem; quick: few rounds."""
    rounds = timing.Rounds(3, 3.0) if scope.quick else timing.Rounds(15, 30.0)
    return {setup.name: functools.partial(_cell, setup, rounds) for setup in SPEED[:3]}


def _cell(setup: Setup, rounds: timing.Rounds) -> Rows:
    held = _memory(METHODS[HOST], setup)["held"]
    ways = {way: (way, "", method) for way, method in SINGLE.items()}
    for k in CHECKPOINTS:
        ways[f"{OURS}, checkpoints={k}"] = f"{OURS}, checkpoints=k", str(k), Method(ours(checkpoints=k), "steptape")
    for share, parts in SHARES.items():
        method = Method(ours(memory=int(held / parts)), "steptape")
        ways[f"{OURS}, memory: {share}"] = f"{OURS}, memory=a share of back-propagation's", share, method
    rows = raced({way: method for way, (_, _, method) in ways.items()}, setup, _gradient(setup), rounds)
    for row in (rows := [row for row in rows if "ratio" in row]):
        row["line"], row["point"], method = ways[row["way"]]
        row |= _memory(method, setup)
    return rows


def _gradient(setup: Setup) -> torch.Tensor:
    problem, tries = setup.problem(), list[float]()
    setattr(problem.field, "callback_step", lambda t, y, h: tries.append(h.item()))  # noqa: B010
    problem.solved(METHODS[HOST].solve)
    how: dict[str, Any] = {"rtol": setup.tolerance, "atol": setup.tolerance, "method": "dopri5"}
    return problem.measured(METHODS[HOST].solve, **how, options={"first_step": tries[0]})[1]


def _memory(method: Method, setup: Setup) -> Row:
    # What a first run sets up for good is not the solve's.
    setup.problem(batch=2).measured(method.solve)
    problem = setup.problem()
    with meters.Account() as forward:
        solution = problem.solved(method.solve)
    with meters.Account() as backward:
        torch.autograd.grad(loss_of(solution), problem.inputs())
    return {"held": forward.net, "peak": max(forward.peak, forward.net + backward.peak)}
