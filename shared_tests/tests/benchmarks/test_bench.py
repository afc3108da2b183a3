"""The command that runs all measurements: what it runs, what it skips, what it says."""

import importlib
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="runs from a checkout")


@pytest.fixture
def bench(monkeypatch):
    """The command, and the modules that it starts, of which ``fails`` may name one that fails."""
    started, fails = [], set()

    def run(command, check):
        name = command[2].removeprefix("benchmarks.")
        started.append(" ".join([name, *(flag for flag in command if flag == "--quick")]))
        return SimpleNamespace(returncode=int(name in fails))

    monkeypatch.syspath_prepend(ROOT)
    main = importlib.import_module("benchmarks.__main__")
    monkeypatch.setattr(subprocess, "run", run)
    return SimpleNamespace(main=main.main, all=list(main.MEASUREMENTS), started=started, fails=fails)


def test_every_measurement_is_a_command_and_a_source_of_the_page(bench):
    sources = importlib.import_module("benchmarks.results.read").SOURCES
    assert set(bench.all) == set(sources) - {"parity"}
    for name in bench.all:
        assert (ROOT / "benchmarks" / f"{name}.py").exists() or (ROOT / "benchmarks" / name / "__main__.py").exists()


def test_all_are_finished_once_and_the_page_each_time(bench, tmp_path, capsys):
    assert bench.main(["--out", str(tmp_path)]) == 0
    again = ["sde_speed", "curves", "tasks"]
    # The second pass comes after all of the first, then the reports of what it changed.
    assert bench.started == [*bench.all, *again, *again, "results"]
    bench.started.clear()
    assert bench.main(["--out", str(tmp_path), "tasks", "papers"]) == 0
    assert bench.started == ["tasks", "results"]
    assert "tasks: finished before" in capsys.readouterr().err


def test_what_failed_is_run_again_and_quick_ones_do_not_count_as_whole(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bench.fails.add("tasks")
    assert bench.main(["tasks", "papers", "--quick"]) == 1
    assert "failed: tasks" in capsys.readouterr().err
    bench.fails.clear()
    assert bench.main(["tasks", "papers", "--quick"]) == 0
    assert bench.main(["papers"]) == 0
    assert bench.started == [
        "tasks --quick",
        "papers --quick",
        "results",
        "tasks --quick",
        "results",
        "papers",
        "results",
    ]
    assert (tmp_path / "benchmark-report" / "quick" / "finished.txt").exists()


def test_of_two_passes_each_way_has_its_lesser_time(bench, tmp_path):
    passes = importlib.import_module("benchmarks.passes")
    times = {tmp_path: (2.0, 3.0, 1.0), tmp_path / passes.SECOND: (5.0, 1.5, 0.5)}
    for folder, (ours, host, other) in times.items():
        folder.mkdir(exist_ok=True)
        ways = [{"way": "ours", "seconds": ours}, {"way": "host", "seconds": host}, {"way": "peer", "without": "no"}]
        cell = {"backend": "torch", "part": "scaling", "name": "steps", "size": 10}
        # A cell that the other pass has not, and a solve of another length, are not compared.
        cells = [{**cell, "rows": ways}, {**cell, "size": folder.name, "rows": [{"way": "ours", "seconds": other}]}]
        (folder / "curves.jsonl").write_text("".join(json.dumps(one) + "\n" for one in cells), encoding="utf-8")
        row = {"sde_type": "ito", "noise": "diagonal", "method": "srk", "known_dt": True}
        sde = {"batch": 2, "state": 3, "rows": [{**row, "ways": {"aca": {"seconds": other, "held": 8}}}]}
        (folder / "sde_speed.json").write_text(json.dumps({**sde, "steps": 10 * ours}), encoding="utf-8")
        task = {"backend": "jax", "task": "cde", "rtol": 1e-3, "atol": 1e-6, "method": "aca", "failed": ""}
        task |= {"parameters": 1, "channels": 2, "seconds": other}
        (folder / "tasks.jsonl").write_text(json.dumps(task) + "\n", encoding="utf-8")
    passes.merge(tmp_path)
    lines = (tmp_path / "curves.jsonl").read_text(encoding="utf-8").splitlines()
    assert [row.get("seconds") for line in lines for row in json.loads(line)["rows"]] == [2.0, 1.5, None, 1.0]
    assert json.loads((tmp_path / "tasks.jsonl").read_text(encoding="utf-8"))["seconds"] == 0.5
    sde = json.loads((tmp_path / "sde_speed.json").read_text(encoding="utf-8"))
    assert sde["rows"][0]["ways"]["aca"]["seconds"] == 1.0


def test_an_unknown_measurement_is_named(bench, capsys):
    with pytest.raises(SystemExit):
        bench.main(["speed"])
    assert "speed: must be one of torch_speed, sde_speed" in capsys.readouterr().err


def test_the_solves_of_sdes_go_on_where_they_were(monkeypatch, tmp_path):
    pytest.importorskip("torchsde")
    monkeypatch.syspath_prepend(ROOT)
    sde_speed = importlib.import_module("benchmarks.sde_speed")
    file, found = tmp_path / "sde_speed.json", dict.fromkeys(sde_speed.WAYS, (1.0, 8.0))
    timed = []
    monkeypatch.setattr(sde_speed, "measured", lambda problem, rounds: timed.append(problem.method) or found)
    for methods, rows in (["euler"], 2), (["euler", "heun"], 4):
        sde_speed.main(["--steps", "9", "--methods", *methods, "--out", str(tmp_path)])
        assert len(json.loads(file.read_text(encoding="utf-8"))["rows"]) == rows
    assert timed == ["euler"] * 2 + ["heun"] * 2
    assert "--methods euler --out" in json.loads(file.read_text(encoding="utf-8"))["command"]
    sde_speed.main(["--steps", "8", "--methods", "euler", "--out", str(tmp_path)])
    assert len(json.loads(file.read_text(encoding="utf-8"))["rows"]) == 2
