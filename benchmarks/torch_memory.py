"""Memory of every way to a gradient in PyTorch, each in a fresh process: a cell a set-up and way, of one row.

``state``: bytes of y0; ``rss``: peak of resident memory above the start, bytes. ``held``: bytes still allocated when
the forward pass returns, the solution included. ``backward``: the peak of the backward pass above that, and
``evaluation`` the peak of one evaluation of the field, forward and backward; both for steptape alone.

The process is ``python -m benchmarks.torch_memory SETUP WAY BATCH``.
"""

import dataclasses
import functools
import gc
import json
import os
import subprocess
import sys
import time

import torch

from benchmarks import meters
from benchmarks.envelope import Row, Rows
from benchmarks.fields import MEMORY, Problem, Setup, loss_of
from benchmarks.measurements import Cells, Scope
from benchmarks.peers import METHODS, Method

_LIMIT = 900


def cells(scope: Scope) -> Cells:
    """A cell a set-up and way; quick: with a batch of 256."""
    setups = [dataclasses.replace(setup, batch=256) if scope.quick else setup for setup in MEMORY]
    return {f"{setup.name}: {way}": functools.partial(_cell, setup, way) for setup in setups for way in METHODS}


def _cell(setup: Setup, way: str) -> Rows:
    row: Row = {"setup": setup.name, "way": way, "problem": setup.text}
    if why_not := METHODS[way].why_not(setup):
        return [{**row, "without": why_not}]
    command = [sys.executable, "-m", "benchmarks.torch_memory", setup.name, way, str(setup.batch)]
    environment = {**os.environ, **meters.RETURN_AT_ONCE}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT, check=True, env=environment)
    except subprocess.TimeoutExpired:
        return [{**row, "without": f"no result within {_LIMIT} s"}]
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        return [{**row, "without": f"failed: {last}"}]
    return [row | json.loads(done.stdout.splitlines()[-1])]


def main(setup_name: str, way: str, batch: str) -> None:
    """Measure here, and print a line of JSON."""
    torch.set_num_threads(1)
    setup = dataclasses.replace(next(s for s in MEMORY if s.name == setup_name), batch=int(batch))
    method = METHODS[way]
    _gradient(method, setup.problem(batch=2))
    problem = setup.problem()
    gc.collect()
    base, start = meters.reset_peak(), time.perf_counter()
    forward = _gradient(method, problem)
    row = {
        "state": problem.y0.nbytes,
        "rss": meters.peak() - base,
        "wall": time.perf_counter() - start,
        "evaluations": (forward, problem.field.counts["evaluations"] - forward),
        "accepted": problem.field.counts["accepted"],
    }
    print(json.dumps(row | _account(method, problem)))


def _gradient(method: Method, problem: Problem) -> int:
    """Forward and backward; returns the evaluations of the forward pass."""
    loss = loss_of(problem.solved(method.solve))
    forward = problem.field.counts["evaluations"]
    torch.autograd.grad(loss, problem.inputs())
    return forward


def _account(method: Method, problem: Problem) -> Row:
    with meters.Account() as forward:
        solution = problem.solved(method.solve)
    if method.package != "steptape":
        return {"held": forward.net}
    cotangent = torch.autograd.grad(loss_of(solution), solution)[0]
    with meters.Account() as backward:
        torch.autograd.grad(solution, problem.inputs(), cotangent)
    with meters.Account() as evaluation:
        slope = problem.field(problem.t[0], problem.y0)
        torch.autograd.grad(slope, problem.inputs(), problem.y0.detach())
    return {"held": forward.net, "backward": backward.peak, "evaluation": evaluation.peak}


if __name__ == "__main__":
    main(*sys.argv[1:])
