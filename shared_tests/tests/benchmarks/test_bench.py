"""The command that runs all measurements: what it runs, what it skips, what it writes, and how it times."""

import importlib
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="runs from a checkout")


@pytest.fixture
def load(monkeypatch):
    """A module of ``benchmarks``, by its name."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def bench(load, monkeypatch):
    """The command with measurements of one cell, and the processes it starts, of which ``fails`` may name some."""
    pytest.importorskip("matplotlib")
    runner, envelope = load("runner"), load("envelope")
    started, fails = [], set()

    def run(command, env, check):
        assert env["OMP_NUM_THREADS"] == "1"
        name, framework, number, file = command[3:7]
        started.append(
            " ".join([name, framework, *["again"] * (number == "2"), *(f for f in command if f == "--quick")])
        )
        if name in fails:
            return SimpleNamespace(returncode=1)
        done = envelope.done(envelope.read(Path(file)), name, framework, int(number))
        new = [envelope.entry(name, "cell", framework, int(number), [])] * ("cell" not in done)
        envelope.write(Path(file), new, "a")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(runner, "subprocess", SimpleNamespace(run=run))
    main = load("__main__")
    monkeypatch.setattr(main, "_page_of", lambda results, folder: started.append("page"))
    return SimpleNamespace(main=main.main, all=load("measurements").MEASUREMENTS, started=started, fails=fails)


def test_every_measurement_has_code_and_figures_and_a_line_of_the_readme(load):
    for module in ("tabulate", "torchdiffeq"):
        pytest.importorskip(module)
    measurements, figures = load("measurements").MEASUREMENTS, load("page.figures").FIGURES
    assert set(figures) == {name for name, one in measurements.items() if one.usual}
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for name, one in measurements.items():
        assert f"python -m benchmarks {name}`" in readme
        assert (ROOT / one.script).exists()
        for module in one.modules.values():
            assert (ROOT / "benchmarks" / (module.replace(".", "/") + ".py")).exists()


def test_each_framework_has_a_process_and_the_second_pass_comes_after_all_of_the_first(bench, tmp_path):
    assert bench.main(["--out", str(tmp_path)]) == 0
    usual = {name: one for name, one in bench.all.items() if one.usual}
    first = [f"{name} {framework}" for name, one in usual.items() for framework in one.modules]
    second = [
        f"{name} {framework} again"
        for name in ("torch_speed", "sde_speed", "curves", "tasks")
        for framework in usual[name].modules
    ]
    assert bench.started == [*first, *second, "page"]
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert set(lines[0]) == {"measurement", "cell", "framework", "pass", "day", "machine", "versions", "rows"}


def test_what_failed_is_named_and_quick_results_are_apart(bench, tmp_path, capsys):
    bench.fails.add("tasks")
    assert bench.main(["tasks", "jax_speed", "--quick", "--out", str(tmp_path)]) == 1
    assert "failed: tasks, torch; tasks, jax" in capsys.readouterr().err
    assert bench.main(["jax_speed", "--out", str(tmp_path)]) == 0
    assert bench.started == [
        "tasks torch --quick",
        "tasks jax --quick",
        "jax_speed jax --quick",
        "page",
        "jax_speed jax",
        "page",
    ]
    assert {file.name for file in tmp_path.iterdir()} == {"quick.jsonl", "results.jsonl"}


def test_one_framework_can_be_asked_for(bench, tmp_path):
    assert bench.main(["curves", "--framework", "jax", "--quick", "--out", str(tmp_path)]) == 0
    assert bench.started == ["curves jax --quick", "page"]


def test_an_unknown_measurement_is_named(bench, capsys):
    with pytest.raises(SystemExit):
        bench.main(["speed"])
    assert "speed: must be one of torch_speed, torch_memory" in capsys.readouterr().err


@pytest.fixture
def work(load, monkeypatch, tmp_path):
    """Measure cells that note their names, of which one may fail, in this process; and the file."""
    runner, measured, file = load("runner"), [], tmp_path / "results.jsonl"

    def run(fails="", only=""):
        def cells(scope):
            def measure(cell):
                measured.append((cell, sorted(scope.done)))
                if cell == fails:
                    raise RuntimeError("no")
                return [{"way": cell, "seconds": 1.0}]

            return {cell: lambda cell=cell: measure(cell) for cell in ("a 1", "a 2", "b 1")}

        one = SimpleNamespace(modules={"both": ""}, cells=lambda framework, scope: cells(scope))
        monkeypatch.setitem(runner.MEASUREMENTS, "parity", one)
        return runner.work("parity", "both", 1, file, False, only)

    return SimpleNamespace(run=run, measured=measured, file=file)


def test_a_cell_that_is_in_the_file_is_not_run_again(work):
    assert not work.run(fails="a 2")
    assert [cell for cell, _ in work.measured] == ["a 1", "a 2", "b 1"]
    assert work.run()
    # It sees the rows of those before it.
    assert work.measured[3:] == [("a 2", ["a 1", "b 1"])]
    assert len(work.file.read_text(encoding="utf-8").splitlines()) == 3


def test_cells_can_be_chosen_by_their_name(work):
    assert work.run(only="b")
    assert [cell for cell, _ in work.measured] == ["b 1"]


def test_of_two_passes_each_way_has_its_lesser_time_and_the_mean_ratio(load):
    envelope = load("envelope")
    first = [
        {"way": "ours", "seconds": 2.0, "ratio": 0.5},
        {"way": "host", "seconds": 3.0},
        {"way": "peer", "without": "no"},
    ]
    second = [
        {"way": "ours", "seconds": 5.0, "ratio": 2.0},
        {"way": "host", "seconds": 1.5},
        {"way": "other", "seconds": 9.0},
    ]
    entries = [
        envelope.entry("curves", "cell", "torch", 1, first),
        envelope.entry("curves", "cell", "torch", 2, second),
    ]
    entries += [envelope.entry("curves", "one pass only", "torch", 1, first[:1])]
    cells = envelope.Results(entries).cells("curves", "torch")
    assert [row.get("seconds") for row in cells["cell"]] == [2.0, 1.5, None]
    assert [row.get("ratio") for row in cells["cell"]] == [pytest.approx(1.0), None, None]
    assert [row["seconds"] for row in cells["one pass only"]] == [2.0]
    assert envelope.origin(entries)["pass"] == 2


def test_a_slow_way_takes_part_in_fewer_rounds_which_are_spread_over_all(load):
    timing = load("timing")
    seconds, order = {"fast": 0.1, "takes half the rounds": 0.4, "slow": 3.0, "once is enough": 20.0}, []
    runs = {way: lambda way=way: order.append(way) or seconds[way] for way in seconds}
    times = timing.race(runs, timing.Rounds(21, 4.0, alone=8.0))
    # One run of each to warm up comes first.
    assert {way: order.count(way) for way in seconds} == {
        "fast": 1 + 21,
        "takes half the rounds": 1 + 10,
        "slow": 1 + 3,
        "once is enough": 1,
    }
    assert sorted(times["slow"]) == [4, 11, 18]
    assert timing.median(times["once is enough"]) == 20.0
    assert math.isclose(timing.ratio(times["slow"], times["fast"]), 30.0)


def test_ratios_are_those_of_the_same_rounds(load):
    timing = load("timing")
    assert timing.ratios({1: 2.0, 3: 30.0}, {1: 1.0, 2: 5.0, 3: 10.0}) == [2.0, 3.0]


def test_the_solves_of_sdes_are_cells(load, monkeypatch):
    pytest.importorskip("torchsde")
    sde_speed, scope = load("sde_speed"), load("measurements").Scope(quick=True)
    monkeypatch.setattr(sde_speed, "_seconds", lambda problem, way: 1.0)
    monkeypatch.setattr(sde_speed, "_held", lambda problem, way: 8.0)
    cells = sde_speed.cells(scope)
    assert len(cells) == 2 * len(sde_speed.SETUPS)
    rows = cells["ito euler, diagonal, dt told to bm"]()
    assert [(row["way"], row["seconds"], row["known_dt"]) for row in rows] == [
        (way, 1.0, True) for way in sde_speed.WAYS
    ]
