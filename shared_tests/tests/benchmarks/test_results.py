"""The page of results says what the results say, whichever are there, and two runs compare as they should."""

import importlib
import json
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torchdiffeq")
pytest.importorskip("matplotlib")
pytest.importorskip("tabulate")

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks" / "page").exists(), reason="runs from a checkout")
DEFAULT, OURS = "RecursiveCheckpointAdjoint()", "AdaptiveCheckpointAdjoint()"


@pytest.fixture
def load(monkeypatch):
    """A module of ``benchmarks``, by its name."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def line(measurement, cell, framework, rows, number=1, day="2026-01-02"):
    versions = {"Python": "3.11.7", framework: "1.2.3"}
    place = {"machine": "Abacus, Linux 6.1 x86_64", "versions": versions}
    return {
        "measurement": measurement,
        "cell": cell,
        "framework": framework,
        "pass": number,
        "day": day,
        **place,
        "rows": rows,
    }


def speed(way, ratio, error):
    return {"way": way, "problem": "dim 16", "ratio": ratio, "error": error, "accepted": 46, "seconds": 1.0}


def task(task, way, backward, seconds):
    row = {"task": task, "rtol": 1e-3, "way": way, "backward": backward, "seconds": seconds, "steps": 10}
    return {**row, "error": 0.1, "loss": 1.0}


def some(ours=1.25, adjoint=2.5):
    """Some results, the figures of which are easy to find."""
    speeds = [speed("odeint", 1.0, 1e-5), speed("steptape", ours, 1e-5), speed("odeint_adjoint", adjoint, 3e-6)]
    speeds += [{"way": "torchdyn, adjoint", "without": "not installed"}]
    batch = [
        {"way": way, "shortest": 3, "longest": longest, "seconds": seconds}
        for longest, both in ((40, (0.2, 0.1)), (80, (0.6, 0.2)))
        for way, seconds in zip((DEFAULT, OURS), both, strict=True)
    ]
    tasks = [task("cde", "default", 1000, 4.0), task("cde", "seminorm", 600, 3.0), task("cde", "aca", 500, 1.5)]
    tasks += [task("cde", "quadrature", 550, 2.0)]
    checks = [{"promise": "equals the host's back-propagation", "error": 3e-14, "limit": 1e-12, "holds": True}]
    checks += [{**checks[0], "error": None, "holds": False}]
    return [
        line("torch_speed", "small", "torch", speeds),
        line("jax_scaling", "batch", "jax", batch),
        line("tasks", "cde 0.001", "torch", tasks),
        line("parity", "promises", "both", checks),
    ]


def page_of(load, entries, folder):
    figures = load("page.figures").reduced(load("envelope").Results(entries))
    return load("page.sections").write(figures, folder).read_text(encoding="utf-8")


def test_the_page_shows_what_was_found(load, tmp_path):
    page = page_of(load, some(), tmp_path)
    assert "| `python -m benchmarks torch_speed` | 2026-01-02 | Abacus, Linux 6.1 x86_64 | Python 3.11.7, torch" in page
    assert "| `odeint_adjoint` | 2.50 | 3.0e-06 |" in page
    assert re.search(r"a batch of 256 solves.* \| 2\.0 to 3\.0 \|", page)
    assert "torch: median -40 %, best -40 %" in page
    assert "| 1 of 2 checks hold, to limits of 1e-12; largest difference inf | **does not hold** |" in page
    assert "torchdyn, adjoint" not in page


def test_the_page_names_what_there_was_a_second_pass_of_and_both_days(load, tmp_path):
    assert "two passes" not in page_of(load, some(), tmp_path)
    again = [task("cde", "aca", 500, 1.0)]
    page = page_of(load, [*some(), line("tasks", "cde 0.001", "torch", again, 2, "2026-01-03")], tmp_path)
    assert "There were two passes of `tasks`: a way's time is that of the pass in which it took less" in page
    assert "| `python -m benchmarks tasks` | 2026-01-02, 2026-01-03 |" in page


def test_where_a_peer_is_better_comes_before_all_claims(load, tmp_path):
    before = page_of(load, some(), tmp_path).partition("## Trained to the end")[0]
    why = 'It keeps its graphs and evaluates nothing twice: that is ours with `memory="graphs"`.'
    assert f"| time | odeint | 1 of 1 | 0.8 | {why} | [torch_speed.py](../benchmarks/torch_speed.py) |" in before
    assert "| error | odeint_adjoint | 1 of 1 | 0.3 |" in before
    assert f"| {DEFAULT} |" not in before


def test_without_results_the_page_says_which_commands_make_them(load, tmp_path):
    page = page_of(load, [], tmp_path)
    for name in set(load("page.figures").FIGURES) - {"parity"}:
        assert f"Not measured yet: `python -m benchmarks {name}` makes it." in page
    assert "Nowhere in the results at hand." in page


def test_curves_are_reduced_to_time_at_equal_error_and_growth(load, tmp_path):
    host, ours, entries = "back-propagation", "steptape ACA", some()
    for size in (1e-3, 1e-6, 1e-9):
        place = {"part": "precision", "name": "pendulum", "size": size}
        rows = [{**place, "way": way, "seconds": x / size, "error": size} for way, x in ((host, 1), (ours, 2))]
        entries.append(line("curves", f"precision, pendulum {size:g}", "torch", rows))
    for size in (10, 100, 1000):
        place = {"part": "scaling", "name": "steps", "size": size}
        rows = [
            {**place, "way": ours, "seconds": size**1.5, "held": size, "error": None},
            {**place, "way": host, "without": "not run"},
        ]
        entries.append(line("curves", f"scaling, steps {size}", "torch", rows))
    page = page_of(load, entries, tmp_path)
    assert f"| {ours} | 2.00 |" in page
    assert f"| {ours} | 1.50 / 1.00 (1,000) |" in page
    load("page.plots").draw(load("envelope").Results(entries), tmp_path)
    plots = {"curves-precision-torch.png", "curves-scaling-torch.png", "jax_scaling.png", "tasks.png"}
    assert {file.name for file in tmp_path.glob("*.png")} == plots
    assert "](curves-precision-torch.png)" in page_of(load, entries, tmp_path)


@pytest.mark.parametrize("missing", ["torch_speed", "jax_scaling", "tasks"])
def test_any_measurement_may_be_missing(load, tmp_path, missing):
    page = page_of(load, [entry for entry in some() if entry["measurement"] != missing], tmp_path)
    assert "benchmarks tasks" in page
    assert ("`odeint_adjoint` | 2.50" in page) == (missing != "torch_speed")


def test_an_experiment_is_shown_once_it_is_complete(load, tmp_path):
    paper = {f"{name} / paper": 1.5 for name in ("evaluations", "with those pulled back", "memory", "depth")}
    rows = [{"way": way, **paper} for way in ("back-propagation", "adjoint", "ACA")]
    cells = list(load("papers.cost_model").run(False))
    lines = [line("papers", f"cost_model/{cell}", "torch", rows) for cell in cells]
    for count in (len(cells) - 1, len(cells)):
        page = page_of(load, lines[:count], tmp_path)
        assert ("1.5, 1.5, 1.5 times (evaluations)" in page) == (count == len(cells))


def test_plots_are_kept_below_the_limit(load, tmp_path, monkeypatch):
    import numpy as np
    from PIL import Image

    plots, file = load("page.plots"), tmp_path / "tasks.png"
    monkeypatch.setattr(plots, "LIMIT", 5_000)
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    assert file.stat().st_size > 5_000
    plots.shrink(file)
    assert 0 < file.stat().st_size < 5_000
    assert Image.open(file).width > 60


def test_new_figures_replace_those_of_the_same_name_and_fill_the_readme(load, tmp_path, capsys):
    envelope, figures, main = load("envelope"), load("page.figures"), load("__main__").main
    (tmp_path / "docs").mkdir()
    (tmp_path / "run").mkdir()
    shutil.copy(ROOT / "docs" / "figures.jsonl", tmp_path / "docs")
    readme, marks = tmp_path / "README.md", "<!-- figures: diffrax -->\nold\n<!-- end -->\nkept\n"
    readme.write_text(marks, encoding="utf-8")
    envelope.write(tmp_path / "run" / "results.jsonl", some()[1:2])
    before = envelope.read(ROOT / "docs" / "figures.jsonl")
    assert main(["page", str(tmp_path / "run"), "--root", str(tmp_path)]) == 0
    after = envelope.read(tmp_path / "docs" / "figures.jsonl")
    assert {(f["measurement"], f["cell"]) for f in before} <= {(f["measurement"], f["cell"]) for f in after}
    assert figures.rows(after, "jax_scaling", "batch")[0]["steps of the longest"] == "40"
    assert figures.rows(after, "tasks", "readme") == figures.rows(before, "tasks", "readme")
    assert "tenfold | 2.0 to 3.0 |\n<!-- end -->\nkept\n" in readme.read_text(encoding="utf-8")


def test_two_runs_are_compared_by_their_ratios(load):
    envelope = load("envelope")
    found = load("page.compare").compared(*map(envelope.Results, (some(), some(ours=1.3, adjoint=1.2))))
    cells = {figure["cell"]: figure["rows"] for figure in found}
    groups = {(group["measurement"], group["kind"]): group for group in cells["groups"]}
    assert set(groups) == {("torch_speed", "time"), ("jax_scaling", "time"), ("tasks", "time")}
    torch = groups["torch_speed", "time"]
    # The base's 1 is compared in no ratio, but has its place in the order: steptape and odeint_adjoint are swapped.
    assert (torch["ratios"], torch["orders"], torch["swapped"], torch["clearly swapped"]) == (2, 3, 1, 1)
    assert torch["most"] == pytest.approx(2.5 / 1.2 - 1)
    assert torch["close"] == 0.5
    (beyond,) = cells["beyond"]
    assert (beyond["way"], beyond["first"], beyond["second"]) == ("odeint_adjoint", 2.5, 1.2)
    assert groups["tasks", "time"]["most"] == 0


def test_a_comparison_is_kept_for_the_page(load, tmp_path, capsys):
    main, write = load("__main__").main, load("envelope").write
    (tmp_path / "docs").mkdir()
    folders = [tmp_path / name for name in ("first", "second")]
    for folder, adjoint in zip(folders, (2.5, 2.6), strict=True):
        write(folder / "results.jsonl", some(adjoint=adjoint))
    assert main(["compare", *map(str, folders), "--keep", "--root", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("The first run is of 2026-01-02 on Abacus, Linux 6.1 x86_64, the second of 2026-01-02 on")
    assert "No ratio differs by more than 15 %." in printed
    kept = load("envelope").read(tmp_path / "docs" / "figures.jsonl")
    assert printed.strip() in load("page.sections").write(kept, tmp_path).read_text(encoding="utf-8")


def test_a_comparison_of_some_measurements_leaves_what_was_found_of_others(load):
    envelope, compare = load("envelope"), load("page.compare")

    def compared(entries, adjoint):
        changed = [e for e in some(adjoint=adjoint) if e["measurement"] in {entry["measurement"] for entry in entries}]
        return compare.compared(envelope.Results(entries), envelope.Results(changed))

    earlier = compared(some(), 1.2)
    later = compared([entry for entry in some() if entry["measurement"] == "torch_speed"], 2.5)
    runs, groups, beyond = (figure["rows"] for figure in compare.joined(earlier, later))
    found = {(group["measurement"], group["kind"]): group["close"] for group in groups}
    assert found == {("torch_speed", "time"): 1, ("jax_scaling", "time"): 1, ("tasks", "time"): 1}
    assert not beyond
    assert runs == earlier[0]["rows"]
    assert compare.joined([], later) == later


def test_the_committed_page_is_the_figures_and_its_links_lead_somewhere(load, tmp_path):
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for image in (*(ROOT / "docs").glob("*.png"), *(ROOT / "docs").glob("*.svg")):
        shutil.copy(image, tmp_path)
    kept = load("envelope").read(ROOT / "docs" / "figures.jsonl")
    assert load("page.sections").write(kept, tmp_path).read_text(encoding="utf-8") == page
    links = re.findall(r"\]\(([^)#]+)", page)
    assert len(links) > 20
    for link in links:
        assert link.startswith("https://") or (ROOT / "docs" / link).exists(), link
    titles = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    linked = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"results\.md#([^)]+)\)", linked)) <= anchors
    assert all(image.stat().st_size < load("page.plots").LIMIT for image in (ROOT / "docs").glob("*.png"))
    assert "docs/results.md" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_kept_figure_is_shown(load, tmp_path):
    kept = load("envelope").read(ROOT / "docs" / "figures.jsonl")
    parts = load("page.sections").Page(kept, tmp_path).asked
    elsewhere = {"better", "promises", "papers", "readme"}
    for figure in kept:
        name = figure["measurement"], figure["cell"]
        assert name in parts or name[1] in elsewhere or name[0] == "repeatability", json.dumps(name)


def tradeoffs():
    """Two ways as points and one as a line of two, in both frameworks."""
    found = []
    for framework, (host, ours) in {"torch": ("odeint", "steptape"), "jax": (DEFAULT, OURS)}.items():
        ways = (
            (host, host, ""),
            (ours, ours, ""),
            (f"{ours}, 2", f"{ours}, k", "2"),
            (f"{ours}, 4", f"{ours}, k", "4"),
        )
        rows = [
            {"way": way, "line": name, "point": point, "ratio": 1.0 + 0.5 * n, "held": (4 - n) * 2**20, "error": 1e-15}
            for n, (way, name, point) in enumerate(ways)
        ]
        rows[0]["error"] = 3e-4
        same = {"problem": "float64", "accepted": 46, "peak": 2**22}
        found.append(line("tradeoff", "small", framework, [{**row, **same} for row in rows]))
    return found


def test_the_page_opens_with_time_against_memory_at_one_gradient(load, tmp_path):
    load("page.plots").draw(load("envelope").Results(tradeoffs()), tmp_path)
    page = page_of(load, tradeoffs(), tmp_path)
    assert page.startswith("# Results\n\n## Which way to take\n\n![Time over memory of each way to the gradient")
    assert "](tradeoff-torch.png)" in page
    assert "](tradeoff-jax.png)" in page
    assert '| `odeint` | in a fraction of the memory | `adjoint_method="aca"` | 1.50 | 1.00 | 3e-04 |' in page
    assert "| `odeint` | 1.00 / 4 / 4 / 3e-04 |\n| `steptape` | 1.50 / 3 / 4 |" in page
    # What a way asks for is no peer of its own.
    assert "| time | odeint | 1 of 1 | 0.667 |" in page
    assert f"| time | {OURS}, 2 |" not in page


def test_where_a_host_is_wrong_is_told_with_the_true_value(load, tmp_path):
    page = page_of(load, others(), tmp_path)
    assert "| `odeint` | dy/dt = y | 2 | closed form | 5.0e-01 | 1.0e-09 | [docs/host-issues/a.py]" in page
    assert "| closed form | fails | 0.0e+00 |" in page


def others():
    """One row or so of each measurement that ``some`` has not."""
    solve = {"case": "tiny, Tsit5, 1e-06", "accepted": 70, "rejected": 30, "compiling": 1.1}
    solve |= {"over_default": 1.5, "over_best": 1.4, "memory": 8, "memory_default": 4}
    held = [
        {"setup": "404 evaluations", "way": way, "problem": "dim 64", "held": states * 10.0, "state": 10, "rss": 2**20}
        for way, states in (("odeint", 3700), ("steptape", 69), ("steptape, checkpoints=8", 9))
    ]
    checkpoints = [
        {"setup": "constant", "way": f"{name}(checkpoints=44)", "checkpoints": 44, "ours": name[0] == "A"}
        for name in (DEFAULT[:-2], OURS[:-2])
    ]
    stats = {"text": "1000 steps", "accepted": 1000, "rejected": 0, "seconds": 0.1, "temporary": 1024, "over_host": 1.2}
    path = {"sde_type": "ito", "method": "srk", "noise": "diagonal", "known_dt": False}
    ways = ("back-propagation", "host's adjoint", "aca", "aca, 32 states")
    fault = {"call": "`odeint`", "solve": "dy/dt = y", "right": 2.0, "known": "closed form", "file": "a.py"}
    return [
        *tradeoffs(),
        line("faults", "stiff", "torch", [{**fault, "host": 0.5, "ours": 1e-9}, {**fault, "host": None, "ours": 0.0}]),
        line("jax_speed", "tiny", "jax", [solve]),
        line("torch_memory", "held", "torch", [{**row, "accepted": 68} for row in held]),
        line("jax_memory", "constant", "jax", [{**row, **stats} for row in checkpoints]),
        line("sde_speed", "srk", "torch", [{**path, "way": way, "seconds": 1.0, "held": 2.0**20} for way in ways]),
    ]


def test_new_figures_have_the_columns_of_the_kept_ones(load):
    envelope, figures = load("envelope"), load("page.figures")
    kept = envelope.read(ROOT / "docs" / "figures.jsonl")
    compared = 0
    for figure in figures.reduced(envelope.Results([*some(), *others()])):
        measurement, cell, rows = (figure[name] for name in ("measurement", "cell", "rows"))
        before = figures.rows(kept, measurement, cell)
        # Those with a column a set-up have as many as were measured.
        if rows and before and not cell.startswith(("times", "memory", "checkpoints")):
            assert list(rows[0]) == list(before[0]), (measurement, cell)
            compared += 1
    assert compared > 15
