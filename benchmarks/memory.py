"""Memory of one method on one set-up, each in a fresh process: ``python -m benchmarks.memory SETUP METHOD BATCH``."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.fields import MEMORY, Problem, Setup, loss_of
from benchmarks.measure import Account
from benchmarks.peers import METHODS, Method

_LIMIT = 900
# Every tensor in pages of its own, given back when it is freed: else the peak counts what glibc keeps for later, too:
# a third more for back-propagation, about twice as much for the lean methods.
_RETURN_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536"}


@dataclasses.dataclass(frozen=True)
class Memory:
    """One method on one set-up. ``state``: bytes of y0; ``rss``: peak of resident memory above the start, bytes.

    ``held``: bytes still allocated when the forward pass returns, the solution included. ``backward``: the peak of the
    backward pass above that, and ``evaluation`` the peak of one evaluation of the field, forward and backward; both
    for steptape alone.
    """

    setup: str
    method: str
    problem: str = ""
    state: int = 0
    held: int = 0
    rss: int = 0
    seconds: float = 0
    evaluations: tuple[int, int] = (0, 0)
    accepted: int = 0
    backward: int = 0
    evaluation: int = 0
    without: str = ""


def memory(setup: Setup, method: Method, batch: int, note: Callable[[str], None]) -> Memory:
    """Measure a method in a process of its own."""
    setup = dataclasses.replace(setup, batch=batch)
    why_not = method.why_not(setup)
    note(f"memory, {setup.name}: {method.name}" + (f": {why_not}" if why_not else ""))
    if why_not is not None:
        return Memory(setup.name, method.name, setup.text, without=why_not)
    command = [sys.executable, "-m", "benchmarks.memory", setup.name, method.name, str(batch)]
    try:
        env = {**os.environ, **_RETURN_AT_ONCE}
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT, check=True, env=env)
    except subprocess.TimeoutExpired:
        return Memory(setup.name, method.name, setup.text, without=f"no result within {_LIMIT} s")
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        return Memory(setup.name, method.name, setup.text, without=f"failed: {last}")
    row = json.loads(done.stdout.splitlines()[-1])
    return Memory(**{**row, "evaluations": tuple(row["evaluations"])})


def main(setup_name: str, method_name: str, batch: str) -> None:
    """Measure here, and print a line of JSON."""
    torch.set_num_threads(1)
    setup = dataclasses.replace(next(s for s in MEMORY if s.name == setup_name), batch=int(batch))
    method = next(m for m in METHODS if m.name == method_name)
    _gradient(method, setup.problem(batch=2))
    problem = setup.problem()
    gc.collect()
    base, start = _reset_peak(), time.perf_counter()
    forward = _gradient(method, problem)
    row = Memory(
        setup.name,
        method.name,
        setup.text,
        state=problem.y0.nbytes,
        rss=_peak() - base,
        seconds=time.perf_counter() - start,
        evaluations=(forward, problem.field.counts["evaluations"] - forward),
        accepted=problem.field.counts["accepted"],
    )
    print(json.dumps(dataclasses.asdict(_with_account(row, method, problem))))


def _gradient(method: Method, problem: Problem) -> int:
    """Forward and backward; returns the evaluations of the forward pass."""
    loss = loss_of(method.solve(problem))
    forward = problem.field.counts["evaluations"]
    torch.autograd.grad(loss, problem.inputs())
    return forward


def _with_account(row: Memory, method: Method, problem: Problem) -> Memory:
    with Account() as forward:
        solution = method.solve(problem)
    if not method.ours:
        return dataclasses.replace(row, held=forward.net)
    cotangent = torch.autograd.grad(loss_of(solution), solution)[0]
    with Account() as backward:
        torch.autograd.grad(solution, problem.inputs(), cotangent)
    with Account() as evaluation:
        slope = problem.field(problem.t[0], problem.y0)
        torch.autograd.grad(slope, problem.inputs(), problem.y0.detach())
    return dataclasses.replace(row, held=forward.net, backward=backward.peak, evaluation=evaluation.peak)


def _reset_peak() -> int:
    """Let the peak of resident memory start again, where the system can; return the memory resident now, in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return _peak()
    return _status("VmRSS")


def _peak() -> int:
    if Path("/proc/self/status").exists():
        return _status("VmHWM")
    # In KiB on Linux, in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{field}:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    main(*sys.argv[1:])
