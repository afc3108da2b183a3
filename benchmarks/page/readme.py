"""The README's tables of figures, filled from the figures between markers: ``<!-- figures: NAME -->``."""

import re
import statistics
from collections.abc import Sequence

from benchmarks.envelope import Entry, Results, Rows
from benchmarks.page import speed, tasks, text
from benchmarks.ways import DEFAULT, REPLAY

# By name, the measurements whose rows make the table; the first opens the page of results by itself.
TABLES = {
    "which": ("tradeoff",),
    "diffrax": ("jax_speed", "jax_memory", "jax_scaling"),
    "continuous adjoints": ("tasks",),
}
_MARKED = re.compile(r"(<!-- figures: ([\w ]+) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def table(figures: Sequence[Entry], name: str) -> str:
    """One of the tables, empty where nothing of it was measured."""
    found = {figure["measurement"]: figure["rows"] for figure in figures if figure["cell"] == "readme"}
    rows = [row for measurement in TABLES[name] for row in found.get(measurement, [])]
    return text.table(rows)


def filled(readme: str, figures: Sequence[Entry]) -> str:
    """The README with the figures between its markers, or what was there where nothing was measured."""

    def fill(marked: re.Match[str]) -> str:
        found = table(figures, marked[2])
        return f"{marked[1]}{found}\n" if found else marked[0]

    return _MARKED.sub(fill, readme)


def _faster(words: str, figure: str) -> dict[str, str]:
    head = "diffrax; 36 cases of three solvers, three sizes, two tolerances, with and without rejected tries"
    return {head: words, "times faster": figure}


def jax_speed(results: Results) -> Rows:
    """Over the default, over its best setting, and where tries are rejected."""
    rows = results.rows("jax_speed", "jax")
    over, best = (text.mean([row[column] for row in rows]) for column in ("over_default", "over_best"))
    found = [_faster("than `RecursiveCheckpointAdjoint()`, geometric mean (least to most)", over)]
    found.append(_faster("than its best number of checkpoints", best))
    third = [row["over_default"] for row in rows if row["rejected"] >= 0.25 * (row["accepted"] + row["rejected"])]
    if third:
        mean = f"{statistics.geometric_mean(third):.1f}"
        found.append(_faster("than the default where a third of the tries is rejected", mean))
    return found


def jax_memory(results: Results) -> Rows:
    rows = [row for row in results.cells("jax_memory", "jax").get("constant", []) if row["ours"]]
    over = {row["checkpoints"]: row["over_host"] for row in rows if "stage" not in row["way"]}
    over.pop(None, None)
    ks, figures = ", ".join(map(str, over)), ", ".join(f"{x:.1f}" for x in over.values())
    return [_faster(f"than the same number of checkpoints, k = {ks}, on 1000 steps", figures)] if over else []


def jax_scaling(results: Results) -> Rows:
    words = "a batch of 256 solves whose step counts differ tenfold"
    faster = [seconds[DEFAULT] / seconds[REPLAY] for seconds in speed.batch(results).values()]
    return [_faster(words, text.ends(faster))]


def adjoints(results: Results) -> Rows:
    """The continuous adjoints in torch over each other."""
    head = "continuous adjoints in torch: a neural CDE, four flows, a symplectic net, three tolerances each; median "
    # What is said, and why its error is as it is.
    words = {
        "seminorm over the host's default norm": "",
        "quadrature over the seminorm": "",
        "the same, absolute tolerance relaxed to the size of the cotangent": "",
        "`aca` over the seminorm": ": the discrete solution's own",
    }
    found = []
    for (name, why), pair in zip(words.items(), tasks.PAIRS, strict=True):
        ratios = tasks.compared(results, "torch", *pair)
        if ratios:
            evaluations, time, error = zip(*ratios.values(), strict=True)
            row = {f"{head}(least to most)": name, "backward evaluations": _changes(evaluations)}
            row |= {"time": _changes(time), "gradient error": text.change(statistics.median(error)) + why}
            found.append(row)
    return found


def _changes(ratios: Sequence[float]) -> str:
    """Changes in per cent, whose range does without the sign of it."""
    middle, _, rest = text.spread(ratios, text.change).partition(" (")
    return f"{middle} ({rest.replace(' %', '')}" if rest else middle
