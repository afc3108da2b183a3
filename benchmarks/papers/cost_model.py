"""The ACA paper's table of costs against what is counted: computation, memory and depth of the graph.

The paper counts layers: N_f in the field, N_t accepted steps forward, N_r in the reverse solve, m tries a step. A step
counts as one evaluation there; here the formulas are multiplied by the solver's stages. The field has N_f equal layers
(32 units, batch 512), and a fast spell in the middle of t in [0, 4]; rtol = atol = 1e-5 (dopri5), 1e-3 (Heun).

- computation, in evaluations of the field: naive 2·N_t·m, adjoint (N_t + N_r)·m, ACA N_t·(m + 1), times stages. Counted
  twice: evaluations, and evaluations with those pulled back. The first slope and the guess of the first step are left
  out.
- memory, in states: naive N_f·N_t·m, adjoint N_f, ACA N_f + N_t, with N_f times stages. Counted: the most that torch's
  allocator held, from the start of the forward to the end of the backward pass.
- depth, in layers: naive N_f·N_t·m, adjoint N_f·N_r, ACA N_f·N_t, times stages. Counted: for the naive ways, linear
  layers on the longest path of the graph; for the others, layers pulled back one after the other, of which the graph of
  one step (ACA) or evaluation (adjoint) is in memory at a time.
"""

import functools
from typing import Any

import torch

from benchmarks.envelope import Row, Rows
from benchmarks.measurements import Cells
from benchmarks.meters import Account
from benchmarks.page.panels import panels
from benchmarks.papers.claims import Claim, values
from benchmarks.papers.ways import ACA, ADJOINT, BACKPROP, COLOURS, SEARCH, Counted, odeint

CASES = {"2 layers, dopri5": (2, "dopri5"), "6 layers, dopri5": (6, "dopri5"), "2 layers, Heun": (2, "adaptive_heun")}
# New evaluations in a try; torchdiffeq's solvers begin with the last slope, the search in the graph does not.
STAGES = {("dopri5", False): 6, ("adaptive_heun", False): 1, ("adaptive_heun", True): 2}
UNITS, BATCH, END = 32, 512, 4.0


def _layers(count: int) -> Counted:
    """A field of equal layers, faster in the middle of the interval, so that some tries are rejected."""
    layers = [torch.nn.Linear(UNITS, UNITS, dtype=torch.float64) for _ in range(count)]
    net = torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.Tanh())))
    return Counted(lambda t, y: net(y * (1 + 20 * torch.exp(-200 * (t - END / 2) ** 2))), net)


def run(quick: bool) -> Cells:
    return {name: functools.partial(_cell, name) for name in (list(CASES)[:1] if quick else CASES)}


def _cell(name: str) -> Rows:
    layers, method = CASES[name]
    ways = [BACKPROP, ADJOINT, ACA] + [SEARCH] * (method == "adaptive_heun")
    return [{"case": name, "way": way, **_count(way, layers, method)} for way in ways]


def _count(way: str, layers: int, method: str) -> Row:
    torch.manual_seed(0)
    field = _layers(layers)
    y0 = torch.randn(BATCH, UNITS, dtype=torch.float64, requires_grad=True)
    times = torch.tensor([0.0, END], dtype=torch.float64)
    tolerance = 1e-5 if method == "dopri5" else 1e-3
    with Account() as ahead:
        solution = odeint(way, field, y0, times, (tolerance, tolerance), method)[-1]
    depth = _depth(solution.grad_fn) if way in (BACKPROP, SEARCH) else None
    with Account() as back:
        solution.square().sum().backward()
    counts = field.counts
    found = {
        "evaluations": counts["evaluations"],
        "with those pulled back": counts["evaluations"] + counts["pulled back"],
        "memory": max(ahead.peak, ahead.net + back.peak) / y0.nbytes,
        "depth": depth or layers * counts["pulled back"],
    }
    accepted, returned = counts["accepted"], counts["accepted back"]
    steps = {"N_t": accepted, "tries": accepted + counts["rejected"], "N_r": returned}
    tries_back = returned + counts["rejected back"]
    paper = _paper(way, layers, accepted, steps["tries"], returned, tries_back, STAGES[method, way == SEARCH])
    return {**steps, **found} | {f"{name} / paper": found[name] / value for name, value in paper.items()}


def _paper(
    way: str, layers: int, accepted: int, tries: int, returned: int, tries_back: int, stages: int
) -> dict[str, float]:
    """The table's row: by what is counted, the paper's formula."""
    if way == ADJOINT:
        computation, memory, depth = tries + tries_back, layers, layers * returned * stages
    elif way == ACA:
        computation, memory, depth = tries + accepted, layers * stages + accepted, layers * accepted * stages
    else:
        computation, memory, depth = 2 * tries, layers * tries * stages, layers * tries * stages
    both = dict.fromkeys(("evaluations", "with those pulled back"), stages * computation)
    return {**both, "memory": memory, "depth": depth}


def _depth(root: Any) -> int:
    """The most linear layers on a path of a graph."""
    depths: dict[Any, int] = {}
    stack = [root]
    while stack:
        node = stack[-1]
        below = [after for after, _ in node.next_functions if after is not None]
        waiting = [after for after in below if after not in depths]
        stack.extend(waiting)
        if not waiting:
            depths[stack.pop()] = max((depths[after] for after in below), default=0) + ("Addmm" in node.name())
    return depths[root]


def claims(rows: Rows) -> list[Claim]:
    def found(way: str) -> str:
        evaluations, pulled, memory, depth = (
            ", ".join(f"{ratio:.2g}" for ratio in values(rows, f"{name} / paper", way=way))
            for name in ("evaluations", "with those pulled back", "memory", "depth")
        )
        counted = f"{evaluations} times (evaluations), {pulled} (pullbacks too)"
        return f"{counted}; memory {memory} times, depth {depth} times"

    naive = "naive: computation 2·N_f·N_t·m, memory and depth N_f·N_t·m"
    told = [
        Claim(
            f"{naive} (torchdiffeq's back-propagation)",
            found(BACKPROP),
            "torchdiffeq's rejected tries and step sizes are not on the gradient's path: m is no factor of its depth, "
            "nor of what is pulled back.",
        ),
        Claim(
            f"{naive} (through the search)",
            found(SEARCH),
            "The method that the formulas describe; each try's error estimate is held as well.",
        ),
        Claim(
            "adjoint: computation N_f·(N_t + N_r)·m, memory N_f, depth N_f·N_r",
            found(ADJOINT),
            "The formula leaves out that every evaluation of the reverse solve is pulled back as well, and that its "
            "augmented state, of solution, cotangent and parameters, is held once a stage.",
        ),
        Claim(
            "ACA: computation N_f·N_t·(m + 1), memory N_f + N_t, depth N_f·N_t",
            found(ACA),
            "The formula counts the replay's evaluations and not their pullbacks, which it does count for naive: by "
            "that rule ACA's is N_t·(m + 2), the 3NsLM of the symplectic adjoint's paper at m = 1.",
        ),
    ]
    return told if values(rows, "depth", way=SEARCH) else [told[0], *told[2:]]


def draw(rows: Rows) -> Any:
    names = ("evaluations / paper", "with those pulled back / paper", "memory / paper", "depth / paper")
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, [axes] = panels(1, len(names), 11, 4)
    for axis, name in zip(axes, names, strict=True):
        for way in dict.fromkeys(row["way"] for row in rows):
            points = [(cases.index(row["case"]), row[name]) for row in rows if row["way"] == way]
            axis.plot(*zip(*points, strict=True), "o", color=COLOURS[way], label=way)
        axis.axhline(1, color="#888888", linestyle=":")
        axis.set(title=name, yscale="log" if name.startswith("memory") else "linear")
        axis.set_xticks(range(len(cases)), cases, rotation=30, fontsize=7, ha="right")
    axes[-1].legend(fontsize=7)
    return figure
