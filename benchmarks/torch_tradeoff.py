"""Time against memory of the ways to one gradient in PyTorch: a cell a problem, a row a way.

``held``: bytes still allocated when the forward pass returns, the solution included. ``peak``: the most that both
passes together have allocated. ``ratio``: processor time over back-propagation's in the same rounds. ``error``: of the
gradient, relative, against back-propagation's with its guess of the first step held; that of the ways that are exact is
rounding. ``point``: what a line of points, as of ever fewer checkpoints, is marked with, and ``line`` that line's name.
"""

from __future__ import annotations

import functools

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
        method = Method(ours(checkpoints=k), "steptape")
        ways[f"{OURS}, checkpoints={k}"] = f"{OURS}, checkpoints=k", str(k), method
    for share, parts in SHARES.items():
        method = Method(ours(memory=int(held / parts)), "steptape")
        ways[f"{OURS}, memory: {share}"] = f"{OURS}, memory=a share of back-propagation's", share, method
    rows = raced({way: method for way, (_, _, method) in ways.items()}, setup, _gradient(setup), rounds)
    found: Rows = []
    for row in (row for row in rows if "ratio" in row):
        line, point, method = ways[row["way"]]
        found.append({**row, "line": line, "point": point, **_memory(method, setup)})
    return found


def _gradient(setup: Setup) -> torch.Tensor:
    problem, tries = setup.problem(), list[float]()
    setattr(problem.field, "callback_step", lambda t, y, h: tries.append(h.item()))  # noqa: B010
    problem.solved(METHODS[HOST].solve)
    settings = {"rtol": setup.tolerance, "atol": setup.tolerance, "method": "dopri5"}
    solution = problem.solved(METHODS[HOST].solve, **settings, options={"first_step": tries[0]})
    return torch.cat([x.flatten() for x in torch.autograd.grad(loss_of(solution), problem.inputs())])


def _memory(method: Method, setup: Setup) -> Row:
    problem = setup.problem()
    # What a first run sets up for good is not the solve's.
    torch.autograd.grad(loss_of(setup.problem(batch=2).solved(method.solve)), problem.inputs(), allow_unused=True)
    with meters.Account() as forward:
        solution = problem.solved(method.solve)
    with meters.Account() as backward:
        torch.autograd.grad(loss_of(solution), problem.inputs())
    return {"held": forward.net, "peak": max(forward.peak, forward.net + backward.peak)}
