"""The figures behind what the README says in words, and beside what the papers say."""

import math
import statistics

from benchmarks.envelope import Results, Rows
from benchmarks.measurements import MEASUREMENTS
from benchmarks.page import papers, tasks, text
from benchmarks.ways import BACKPROP, BASE, HOST, OURS
from steptape.shared_tests.parity.promises import EQUALS_HOST

_ACA, _SEMINORM, _HU, _REVERSIBLE = (
    f"[{name}](https://arxiv.org/abs/{paper})"
    for name, paper in (
        *(("ACA", "2006.02493"), ("Seminorm", "2009.09457"), ("Hu", "2402.15141")),
        ("Reversible solvers", "2410.11648"),
    )
)


def _said(claimed: str, measured: str, verdict: str | bool) -> dict[str, str]:
    if isinstance(verdict, bool):
        verdict = "holds" if verdict else "**does not hold**"
    return {"claimed": claimed, "measured here": measured, "the same, or why not": verdict}


def parity(results: Results) -> Rows:
    """The promises that every gradient and every solution is held to."""
    words = {
        EQUALS_HOST: "the gradient is that of back-propagation through the host's own solver, to rounding",
        "forward bit-identical": "the solution stays the host's, bit for bit",
    }
    found = []
    for promise, claimed in words.items():
        judged = [check for check in results.rows("parity", "both") if check["promise"].startswith(promise)]
        if judged:
            held = sum(check["holds"] for check in judged)
            worst = max(math.inf if check["error"] is None else check["error"] for check in judged)
            limits = dict.fromkeys(f"{end(check['limit'] for check in judged):.1g}" for end in (min, max))
            measured = f"{held} of {len(judged)} checks hold, to limits of {' to '.join(limits)}"
            found.append(_said(claimed, f"{measured}; largest difference {worst:.2g}", held == len(judged)))
    return found


def sdes(results: Results) -> Rows:
    """What a replay of an SDE costs and holds."""
    rows = results.rows("sde_speed", "torch")
    base = {row["cell"]: row["seconds"] for row in rows if row["way"] == BACKPROP}
    time = [row["seconds"] / base[row["cell"]] for row in rows if row["way"] == "aca"]
    ways = dict.fromkeys(row["way"] for row in rows)
    held = {way: statistics.median(row["held"] for row in rows if row["way"] == way) / 2**20 for way in ways}
    kept = ", ".join(f"{way} {text.figure(mib)} MiB" for way, mib in held.items())
    measured = f"time over back-propagation {text.spread(time)}; held, median: {kept}"
    claimed = "an SDE's replay holds one state and one increment per step, or as many states as it is told"
    return [_said(claimed, measured, "no figure is claimed")]


def held(results: Results) -> Rows:
    """The states between the passes, of back-propagation and of the replay."""
    rows = [row for row in results.rows("torch_memory", "torch") if row["setup"] == "404 evaluations"]
    states = {row["way"]: row["held"] / row["state"] for row in rows}
    few = f"{OURS}, checkpoints=8"
    if not {HOST, OURS, few} <= states.keys():
        return []
    accepted = max(row["accepted"] for row in rows)
    measured = f"{states[HOST]:.0f} states at {accepted} accepted steps, the replay {states[OURS]:.0f}, or "
    measured += f"{states[few]:.0f} with `checkpoints=8`"
    claimed = "between the passes a replay holds a state per step, or as many as it is told; back-propagation holds"
    return [_said(claimed, measured, states[OURS] < accepted + 4)]


def refusals(results: Results) -> Rows:
    """What steptape refuses, and whether it is ever wrong; and where the quadrature is stable."""
    found = []
    if rows := [*papers.rows(results, "limits"), *papers.rows(results, "jax_limits")]:
        words = [word for row in rows if row["peer"].startswith("steptape") for word, _ in row["why"].values()]
        right, refused, wrong = (sum(word.startswith(kind) for word in words) for kind in ("yes", "refused", "wrong"))
        measured = f"of {len(words)} cases {right} are right, {refused} refused, {wrong} wrong"
        claimed = "what cannot be differentiated exactly is refused, never approximated"
        found.append(_said(claimed, measured, wrong == 0))
    if stiff := [row for row in papers.rows(results, "van_der_pol") if row["form"].startswith("stiff")]:
        ways = ("quadrature", "adjoint")
        errors = {way: [r.get("gradient error") for r in stiff if r["way"] == way] for way in ways}
        shown = {way: ", ".join("fails" if x is None else text.figure(x) for x in each) for way, each in errors.items()}
        where = f"stiff van der Pol equation, rtol {stiff[0]['rtol']:g} to {stiff[-1]['rtol']:g}"
        measured = f"relative gradient error, {where}: {'; '.join(map(' '.join, shown.items()))}"
        claimed = "in the quadrature nothing is integrated in reverse that was not stable to begin with"
        found.append(_said(claimed, measured, all(x is not None and x < 1 for x in errors["quadrature"])))
    return found


def of_papers(results: Results) -> Rows:
    """What the papers of the experiments say, but for what has a section of its own."""
    found = []
    for name in ("toy", "van_der_pol", "three_body", "digits", "latent_ode", "schemes"):
        what = f"{_HU if name == 'schemes' else _ACA}, {name.replace('_', ' ')}"
        for claimed, measured, why in papers.with_figures(results, name):
            said = _said(f"{what}: {claimed}", measured, why)
            found.append({**said, "script": f"{MEASUREMENTS['papers'].script}/{name}.py"})
    return found


def of_tasks(results: Results) -> Rows:
    saved = tasks.compared(results, "torch", "seminorm", "default")
    over = tasks.compared(results, "torch", "quadrature", "seminorm")
    if not saved or not over:
        return []
    best = "; ".join(filter(None, (_saved(results, framework) for framework in BASE)))
    shares = {task: [ratio[0] for (name, _), ratio in saved.items() if name == task] for task, _ in saved}
    each = ", ".join(f"{task} {text.change(statistics.median(values))}" for task, values in shares.items())
    losses = [x for (x,) in tasks.compared(results, "torch", "seminorm", "default", ("loss",)).values()]
    columns = zip(("backward evaluations", "time", "gradient error"), zip(*over.values(), strict=True), strict=True)
    measured = ", ".join(f"{name} {text.spread(values, text.change)}" for name, values in columns)
    return [
        _said(
            f"{_SEMINORM}: backward evaluations, median -40 %, best -62 %",
            best,
            f"In torch by task: {each}. It saves the steps that the parameters' channels gate; the task sets how many.",
        ),
        _said(
            f"{_SEMINORM}: no loss of accuracy",
            f"error of the gradient {text.spread([ratio[2] for ratio in saved.values()], text.change)}; loss after the "
            f"training {text.spread(losses, text.change)}",
            "In torch. Errors are of the first gradient, losses of the last batch of a short training.",
        ),
        _said(
            f"{_HU}: the gradient in the parameters is an integral along the trajectory, not an ODE, and wants a "
            "quadrature",
            f"over the seminorm: {measured}",
            "The paper has no figure for it. No parameter gates a step of the backward solve, for the cotangent alone.",
        ),
    ]


def _saved(results: Results, framework: str) -> str:
    found = [x for (x,) in tasks.compared(results, framework, "seminorm", "default", ("backward",)).values()]
    if not found:
        return ""
    return f"{framework}: median {text.change(statistics.median(found))}, best {text.change(min(found))}"


def reversible(results: Results) -> Rows:
    return [
        _said(
            f"{_REVERSIBLE}: 2.0 to 3.4 times faster than diffrax's recursive checkpointing with 31 to 44 checkpoints "
            "on about 430 to 1000 steps",
            f"not measured here; the replay, with 44 checkpoints on 1000 steps, {row['over_host']:.1f} times",
            "They keep no steps, and are solvers of their own; the replay takes any.",
        )
        for row in results.cells("jax_memory", "jax").get("constant", [])
        if row["way"] == "AdaptiveCheckpointAdjoint(checkpoints=44)"
    ]
