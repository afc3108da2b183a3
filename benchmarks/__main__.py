"""All measurements, one after the other, and one page of their results: ``python -m benchmarks``.

Each runs in a process of its own, on one core where the system can hold it there, and writes its figures as it goes. A
rerun into the same folder skips what was finished there, and of the longest ones also what is there in part. Those
whose times do not repeat by themselves are measured in a second pass, after all others: see ``benchmarks.passes``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import passes

MEASUREMENTS = {
    "torch_speed": "time, memory and error of every way to a gradient in PyTorch",
    "sde_speed": "time and memory of gradients through torchsde",
    "jax_speed": "time of gradients through diffrax",
    "jax_memory": "time at equal memory in diffrax",
    "jax_scaling": "a batch of solves of unequal lengths in diffrax",
    "curves": "work-precision and scaling in both frameworks",
    "tasks": "the seminorm paper's tasks in both frameworks",
    "papers": "the ACA paper's experiments, Hu's theorem, the cost model, the peers' limits",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and was not finished yet, and write the page."""
    texts = "".join(f"\n  {name:<12} {text}" for name, text in MEASUREMENTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{__doc__}\nMeasurements:{texts}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="measurements to run (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases of each")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of results (default: benchmark-report, or quick in there)"
    )
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(MEASUREMENTS))
    if unknown:
        parser.error(f"{unknown[0]}: must be one of {', '.join(MEASUREMENTS)}.")
    # Apart, because the ones that go on where they were would take quick cells for whole ones.
    out = options.out or Path("benchmark-report", *["quick"] * options.quick)
    out.mkdir(parents=True, exist_ok=True)
    names = options.names or list(MEASUREMENTS)
    failed = [name for name in names if not _finish(name, options.quick, out)]
    again = [name for name in names if name in passes.TIMED and name not in failed]
    if again and not options.quick:
        failed += _second_pass(again, out)
    page = [sys.executable, "-m", "benchmarks.results", "--out", str(out), "--docs", str(out)]
    failed += ["results"] * (subprocess.run(page, check=False).returncode != 0)
    _note(f"failed: {', '.join(failed)}" if failed else f"the page: {out / 'results.md'}")
    return bool(failed)


def _stay_on_one_core() -> None:
    """The last of those allowed, for the processes to come too: moving between cores costs time, not always alike."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _second_pass(names: Sequence[str], out: Path) -> list[str]:
    """Measure once more, in a folder of its own, and put the lesser times into ``out``; which of them failed."""
    folder = out / passes.SECOND
    folder.mkdir(exist_ok=True)
    failed = [name for name in names if not _finish(name, False, folder)]
    passes.merge(out)
    for name in names:
        # Nothing is left to measure: this writes the report again.
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--out", str(out)], check=False)
    return failed


def _finish(name: str, quick: bool, out: Path) -> bool:
    """Run one measurement, if it was not finished before; whether it is now."""
    flags = ["--quick"] * quick
    entry, finished = " ".join([name, *flags]), out / "finished.txt"
    if finished.exists() and entry in finished.read_text(encoding="utf-8").splitlines():
        _note(f"{entry}: finished before; without its line in {finished} it is measured again")
        return True
    _note(f"{entry}: {MEASUREMENTS[name]}")
    start = time.monotonic()
    command = [sys.executable, "-m", f"benchmarks.{name}", *flags, "--out", str(out)]
    done = subprocess.run(command, check=False).returncode == 0
    _note(f"{entry}: {'finished' if done else 'failed'} after {(time.monotonic() - start) / 60:.0f} minutes")
    if done:
        with finished.open("a", encoding="utf-8") as lines:
            lines.write(f"{entry}\n")
    return done


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    _stay_on_one_core()
    sys.exit(main())
