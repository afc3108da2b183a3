"""The sections on time and memory: torch, SDEs, JAX."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.peers import HOST
from benchmarks.results import text
from benchmarks.results.ratios import ADAPTIVE, RECURSIVE
from benchmarks.results.read import Results


def torch(results: Results) -> Iterator[str]:
    """Times of all set-ups in one table, memory in another."""
    found = results.data("torch_speed")
    yield from _times([row for row in found["speeds"] if not row["without"]])
    yield from _memory([row for row in found["memories"] if not row["without"]])


def _setups(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    setups: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        setups.setdefault(row["setup"], {})[row["method"]] = row
    return setups


def _described(setups: dict[str, dict[str, dict[str, Any]]]) -> Iterator[str]:
    for setup, rows in setups.items():
        steps = max(row["accepted"] for row in rows.values())
        yield f"- {setup}: {next(iter(rows.values()))['problem']}; {steps} accepted steps"


def _by(rows: Sequence[dict[str, Any]], first: dict[str, dict[str, Any]], column: str) -> list[str]:
    """The methods, those with the least on the first set-up first."""
    methods = dict.fromkeys(row["method"] for row in rows)
    return sorted(methods, key=lambda method: first[method][column] if method in first else math.inf)


def _times(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    setups = _setups(rows)
    first = next(iter(setups.values()))
    yield (
        f"Time of forward and backward pass over that of torchdiffeq's own back-propagation (`{HOST}`), fastest on "
        f"the first set-up first; error of the gradient there, against float64 at 1e-12. Empty: fails or was not run."
    )
    head = ("", *setups, "error")
    methods = _by(rows, first, "ratio")
    yield from text.table(
        head,
        (
            (
                f"`{method}`",
                *(f"{group[method]['ratio']:.2f}" if method in group else "" for group in setups.values()),
                f"{first[method]['error']:.1e}" if method in first else "",
            )
            for method in methods
        ),
    )
    yield from (*_described(setups), "")


def _memory(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    setups = _setups(rows)
    first = next(iter(setups.values()))
    yield (
        "Memory: states held between the passes / peak of the process above its base in MiB, each in a process of its "
        "own, least peak on the first set-up first."
    )
    methods = _by(rows, first, "rss")

    def cell(row: dict[str, Any] | None) -> str:
        return f"{text.figure(row['held'] / row['state'])} / {row['rss'] / 2**20:.0f}" if row else ""

    cells = ((f"`{method}`", *(cell(group.get(method)) for group in setups.values())) for method in methods)
    yield from text.table(("", *setups), cells)
    yield from (*_described(setups), "")


def sde(results: Results) -> Iterator[str]:
    """A line a method, where the Brownian object is not told the step."""
    found = results.data("sde_speed")
    rows = [row for row in found["rows"] if not row["known_dt"]]
    ways = list(rows[0]["ways"])
    yield (
        f"torchsde, {found['steps']} fixed steps, batch {found['batch']}, a state of {found['state']}: time over "
        "back-propagation / MiB held between the passes, on the same Brownian path. The Brownian object is not told "
        "the step; the command measures that as well."
    )
    cells = ((f"{row['sde_type']} `{row['method']}`, {row['noise']}", *_sde_cells(row["ways"])) for row in rows)
    yield from text.table(("method", *ways), cells)
    if any(row["method"] == "log_ode" for row in rows):
        yield (
            "For back-propagation `log_ode` differentiates in each step with respect to a new leaf, for which autograd "
            "searches the whole graph so far: its time grows with the square of the steps and more, at any batch size."
        )


def _sde_cells(ways: dict[str, dict[str, float]]) -> Iterator[str]:
    base = ways["back-propagation"]["seconds"]
    return (f"{way['seconds'] / base:.2f} / {text.figure(way['held'] / 2**20)}" for way in ways.values())


def jax(results: Results) -> Iterator[str]:
    """The cases by size and by whether tries are rejected, and by solver."""
    rows = results.data("jax_speed")["rows"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        size, solver, *rest = row["case"].split(", ")
        for name in (f"{size}{', pulses' * ('pulses' in rest)}", solver, "all"):
            groups.setdefault(name, []).append(row)
    yield (
        "Times that a gradient through `diffrax.diffeqsolve` is faster with `AdaptiveCheckpointAdjoint()`, geometric "
        "mean (least to most); its compile time and XLA's temporary memory over the default's, medians. Pulses: the "
        "field is fast for a moment now and then, so that tries are rejected."
    )
    head = ("", "cases", "than `RecursiveCheckpointAdjoint()`", "than its best setting", "compiling", "memory")
    order = sorted(groups, key=lambda name: (name == "all", "," not in name and name[0].isupper()))
    yield from text.table(head, ((name, *_jax_cells(groups[name])) for name in order))


def _jax_cells(rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    means = (text.mean([row[column] for row in rows]) for column in ("over_default", "over_best"))
    compiling = statistics.median(row["compiling"] for row in rows)
    memory = statistics.median(row["memory"] / row["memory_default"] for row in rows)
    return str(len(rows)), *means, f"{compiling:.2f}", f"{memory:.2f}"


def jax_memory(results: Results) -> Iterator[str]:
    """Time and temporary memory by number of checkpoints."""
    setups = results.data("jax_memory")["setups"]
    yield "XLA's temporary memory in KiB / milliseconds / times faster than diffrax's adjoint with as many checkpoints:"
    found = {setup["setup"]: {row["method"]: row for row in setup["methods"]} for setup in setups}

    def cell(row: dict[str, Any] | None) -> str:
        return f"{row['temporary'] / 1024:.0f} / {row['seconds'] * 1e3:.0f} / {row['over_host']:.2f}" if row else ""

    methods = dict.fromkeys(method for rows in found.values() for method in rows)
    cells = ((f"`{method}`", *(cell(rows.get(method)) for rows in found.values())) for method in methods)
    yield from text.table(("", *found), cells)
    for setup in setups:
        yield f"- {setup['setup']}: {setup['text']}; {setup['accepted']} accepted steps, {setup['rejected']} rejected"
    yield ""


def jax_scaling(results: Results) -> Iterator[str]:
    """How a batch's time grows with its longest solve."""
    found = results.data("jax_scaling")
    yield "A batch of 256 diffrax solves whose step counts differ tenfold, under `vmap`: milliseconds, both passes."
    head = ("steps of the longest", *(f"`{name}`" for name in found["seconds"]), "times faster")
    times = zip(*(found["seconds"][name] for name in (RECURSIVE, ADAPTIVE)), strict=True)
    rows = (
        (str(longest), f"{host * 1e3:.1f}", f"{ours * 1e3:.1f}", f"{host / ours:.2f}")
        for (_, longest), (host, ours) in zip(found["counts"], times, strict=True)
    )
    yield from text.table(head, rows)
    grown = (f"`{name}` as steps^{exponent:.2f}" for name, exponent in found["exponents"].items())
    yield f"Time grows: {', '.join(grown)}."
