"""The page of results says what the files of a folder say, whichever are there, and two runs compare as they should."""

import importlib
import json
import os
import re
from pathlib import Path

import pytest

pytest.importorskip("torchdiffeq")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks" / "results").exists(), reason="runs from a checkout")
DEFAULT, OURS = "RecursiveCheckpointAdjoint()", "AdaptiveCheckpointAdjoint()"
SYSTEM = "Linux-6.1.0-x86_64-with-glibc2.36"
MACHINE = {"processor": "Abacus", "system": SYSTEM, "python": "3.11.7", "zuko": "not installed"}


@pytest.fixture
def results(monkeypatch):
    """A module of ``benchmarks.results``, by its name."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.results.{name}")


def speed(method, ratio, error):
    figures = {"problem": "dim 16", "seconds": [1, 2, 3], "spread": [1, 1], "rounds": 3, "evaluations": [1, 1]}
    return {
        "setup": "small",
        "method": method,
        "ratio": ratio,
        "error": error,
        "accepted": 46,
        "without": "",
        **figures,
    }


def task(task, method, backward, seconds):
    row = {"backend": "torch", "task": task, "rtol": 1e-3, "method": method, "backward": backward, "seconds": seconds}
    return {**row, "error": 0.1, "loss": 1.0, "failed": ""}


def filled(folder, ours=1.25, adjoint=2.5):
    """A folder with some results, the figures of which are easy to find."""
    folder.mkdir()
    failed = {"setup": "small", "method": "torchdyn, adjoint", "without": "not installed"}
    speeds = [speed("odeint", 1.0, 1e-5), speed("steptape", ours, 1e-5), speed("odeint_adjoint", adjoint, 3e-6), failed]
    torch = {"command": f"python -m benchmarks.torch_speed --out {folder}", "machine": MACHINE}
    scaling = {"machine": "Linux-6.1.0-x86_64, jax 1.2.3", "counts": [[3, 40], [4, 80]]}
    scaling |= {"seconds": {DEFAULT: [0.2, 0.6], OURS: [0.1, 0.2]}, "exponents": {DEFAULT: 1.5, OURS: 1.0}}
    tasks = [task("cde", "default", 1000, 4.0), task("cde", "seminorm", 600, 3.0), task("cde", "aca", 500, 1.5)]
    checks = [{"promise": "equals the host's back-propagation", "error": 3e-14, "limit": 1e-12, "holds": True}]
    checks += [{**checks[0], "error": None, "holds": False}]
    parity = {"machine": {"platform": SYSTEM}, "steptape": "0.1.0", "versions": {}, "promises": checks}
    files = {
        "parity.json": json.dumps(parity),
        "torch_speed.json": json.dumps({**torch, "speeds": speeds, "memories": []}),
        "jax_scaling.json": json.dumps(scaling),
        "tasks.jsonl": "\n".join(map(json.dumps, tasks)),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def page_of(results, folder, docs):
    docs.mkdir(exist_ok=True)
    return results("page").write(results("read").Results(folder), docs).read_text(encoding="utf-8")


def test_the_page_shows_what_is_in_the_files(results, tmp_path):
    folder = filled(tmp_path / "run")
    os.utime(folder / "torch_speed.json", (86400, 86400))
    page = page_of(results, folder, tmp_path / "docs")
    assert "| `python -m benchmarks.torch_speed` | 1970-01-02 | Abacus, Linux 6.1 x86_64 | Python 3.11.7 |" in page
    assert "| `odeint_adjoint` | 2.50 | 3.0e-06 |" in page
    assert re.search(r"dim 16, width 64.* \| 1\.25; `odeint_adjoint`'s over ours 2\.0 \|", page)
    assert re.search(r"a batch of 256 solves.* \| 2\.0 to 3\.0 \|", page)
    assert "torch: median -40 %, best -40 %" in page
    assert "| 1 of 2 checks hold, to limits of 1e-12; largest difference inf | **does not hold** |" in page
    assert "torchdyn, adjoint" not in page


def test_the_page_names_what_there_was_a_second_pass_of_and_both_days(results, tmp_path):
    folder = filled(tmp_path / "run")
    assert "two passes" not in page_of(results, folder, tmp_path / "docs")
    second = folder / "second-pass" / "tasks.jsonl"
    second.parent.mkdir()
    second.write_text("", encoding="utf-8")
    os.utime(folder / "tasks.jsonl", (86400, 86400))
    os.utime(second, (172800, 172800))
    page = page_of(results, folder, tmp_path / "docs")
    assert "There were two passes of `tasks`: a way's time is that of the pass in which it took less" in page
    assert "| `python -m benchmarks.tasks` | 1970-01-02, 1970-01-03 |" in page


def test_where_a_peer_is_better_comes_before_all_claims(results, tmp_path):
    page = page_of(results, filled(tmp_path / "run"), tmp_path / "docs")
    before = page.partition("### What the README says")[0]
    assert "| time | odeint | 1 of 1 | 0.8 | [torch_speed.py](../benchmarks/torch_speed.py) |" in before
    assert "| error | odeint_adjoint | 1 of 1 | 0.3 |" in before
    assert f"| {DEFAULT} |" not in before


def test_without_files_the_page_says_which_commands_make_them(results, tmp_path):
    (tmp_path / "run").mkdir()
    page = page_of(results, tmp_path / "run", tmp_path / "docs")
    for source in results("read").SOURCES.values():
        assert f"Not measured yet: `{source.command}` makes it." in page
    assert "Nowhere in the results at hand." in page


def test_curves_are_reduced_to_time_at_equal_error_and_growth(results, tmp_path):
    folder = filled(tmp_path / "run")
    host, ours, step = "back-propagation", "steptape ACA", {"backend": "torch", "part": "scaling", "name": "steps"}
    entries = [{"backend": "torch", "part": "machine", "rows": [{"machine": f"processor Abacus, system {SYSTEM}"}]}]
    for size in (1e-3, 1e-6, 1e-9):
        rows = [{"way": way, "seconds": factor / size, "error": size} for way, factor in ((host, 1), (ours, 2))]
        entries.append({"backend": "torch", "part": "precision", "name": "pendulum", "size": size, "rows": rows})
    for size in (10, 100, 1000):
        rows = [{"way": ours, "seconds": size**1.5, "held": size}, {"way": host, "without": "not run"}]
        entries.append({**step, "size": size, "rows": rows})
    text = "\n".join(json.dumps({"name": "", "size": 0, **entry}) for entry in entries)
    (folder / "curves.jsonl").write_text(text, encoding="utf-8")
    os.utime(folder / "curves.jsonl", (86400, 86400))
    page = page_of(results, folder, tmp_path / "docs")
    assert "| `python -m benchmarks.curves` | 1970-01-02 | Abacus, Linux 6.1 x86_64 |" in page
    assert f"| {ours} | 2.00 |" in page
    assert f"| {ours} | 1.50 / 1.00 (1,000) |" in page


@pytest.mark.parametrize("missing", ["torch_speed.json", "jax_scaling.json", "tasks.jsonl"])
def test_any_file_may_be_missing(results, tmp_path, missing):
    folder = filled(tmp_path / "run")
    (folder / missing).unlink()
    page = page_of(results, folder, tmp_path / "docs")
    assert "benchmarks.tasks" in page
    assert ("`odeint_adjoint` | 2.50" in page) == (missing != "torch_speed.json")


def test_an_experiment_is_shown_once_it_is_complete(results, tmp_path):
    folder = filled(tmp_path / "run")
    paper = {f"{name} / paper": 1.5 for name in ("evaluations", "with those pulled back", "memory", "depth")}
    cells = list(importlib.import_module("benchmarks.papers.cost_model").run(False))
    rows = [{"way": way, **paper} for way in ("back-propagation", "adjoint", "ACA")]
    lines = [json.dumps({"experiment": "cost_model", "cell": cell, "rows": rows}) for cell in cells]
    for count in (len(cells) - 1, len(cells)):
        (folder / "papers.jsonl").write_text("\n".join(lines[:count]), encoding="utf-8")
        page = page_of(results, folder, tmp_path / "docs")
        whole = count == len(cells)
        assert ("`python -m benchmarks.papers --only cost_model` makes it" in page) != whole
        assert ("1.5, 1.5, 1.5 times (evaluations)" in page) == whole


def test_plots_are_copied_below_the_limit(results, tmp_path, monkeypatch):
    import numpy as np
    from PIL import Image

    monkeypatch.setattr(results("plots"), "LIMIT", 5_000)
    folder, docs = filled(tmp_path / "run"), tmp_path / "docs"
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "tasks.png")
    assert "](tasks.png)" in page_of(results, folder, docs)
    assert 0 < (docs / "tasks.png").stat().st_size < 5_000 < (folder / "tasks.png").stat().st_size
    assert Image.open(docs / "tasks.png").width > 60


def test_two_runs_are_compared_by_their_ratios(results, tmp_path):
    first, second = filled(tmp_path / "first"), filled(tmp_path / "second", ours=1.3, adjoint=1.2)
    runs = [results("read").Results(folder) for folder in (first, second)]
    found = results("compare").compared(*runs)
    groups = {(group["source"], group["kind"]): group for group in found["groups"]}
    assert set(groups) == {("torch_speed", "time"), ("jax_scaling", "time"), ("tasks", "time")}
    torch = groups["torch_speed", "time"]
    # The base's 1 is compared in no ratio, but has its place in the order: steptape and odeint_adjoint are swapped.
    assert (torch["ratios"], torch["orders"], torch["swapped"], torch["clearly swapped"]) == (2, 3, 1, 1)
    assert torch["most"] == pytest.approx(2.5 / 1.2 - 1)
    assert torch["close"] == 0.5
    (beyond,) = found["beyond"]
    assert (beyond["way"], beyond["first"], beyond["second"]) == ("odeint_adjoint", 2.5, 1.2)
    assert groups["tasks", "time"]["most"] == 0


def test_a_comparison_is_saved_for_the_page(results, tmp_path, capsys):
    first, second, docs = filled(tmp_path / "first"), filled(tmp_path / "second", adjoint=2.6), tmp_path / "docs"
    main = results("__main__").main
    for file in first.iterdir():
        os.utime(file, (0, 0))
    main(["--compare", str(first), str(second), "--save", "--docs", str(docs)])
    printed = capsys.readouterr().out
    assert printed.startswith("The first run is of 1970-01-01 on Abacus, Linux 6.1 x86_64, the second of 2")
    assert "No ratio differs by more than 15 %." in printed
    main(["--out", str(first), "--docs", str(docs)])
    assert printed.strip() in (docs / "results.md").read_text(encoding="utf-8").replace("\n\n\n", "\n\n")


def test_figures_of_the_readme_are_judged_outside_their_ranges(results):
    verdict = results("readme").verdict
    assert verdict("-10 % (-75 to +8)", "-12 % (-50 to +80)").startswith("the same")
    assert verdict("1.9, 1.9, 1.8", "1.9, 1.9, 1.2").startswith("differs by 50 %")
    with pytest.raises(LookupError, match="no longer says"):
        results("readme").sentence("What the README has never said")


def test_the_committed_page_s_links_lead_somewhere(results):
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)", page)
    assert len(links) > 20
    for link in links:
        assert link.startswith("https://") or (ROOT / "docs" / link).exists(), link
    titles = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= anchors
    assert all(image.stat().st_size < results("plots").LIMIT for image in (ROOT / "docs").glob("*.png"))
    assert "docs/results.md" in (ROOT / "README.md").read_text(encoding="utf-8")
