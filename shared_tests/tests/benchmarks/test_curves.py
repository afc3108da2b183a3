"""The curves can be trusted: their fits, their reruns, and what a cell of each framework measures."""

import dataclasses
import importlib
import json
import math
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks" / "curves").exists(), reason="runs from a checkout")
TORCH = pytest.mark.skipif(not all(map(find_spec, ("zuko", "torchode"))), reason="needs the peers")


@pytest.fixture
def curves(monkeypatch):
    """A module of ``benchmarks.curves``, by its name."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.curves.{name}")


@pytest.mark.parametrize("power", [-0.5, 0.0, 1.0, 1.5])
def test_a_power_law_has_its_exponent(curves, power):
    sizes = [10.0**i for i in range(6)]
    # The lower part is another law, and a size is missing.
    values = [7.0, 9.0, *(3 * size**power for size in sizes[2:4]), None, 3 * sizes[5] ** power]
    found, count = curves("fits").exponent(sizes, values)
    assert math.isclose(found, power, abs_tol=1e-12)
    assert count == 3


def test_one_point_has_no_exponent(curves):
    assert curves("fits").exponent([1.0, 10.0], [None, 5.0]) is None


def test_the_time_at_an_error_lies_on_the_line_between_two_tolerances(curves):
    # seconds = error^(-1/5), the law of a method of order 5.
    points = [(error, error**-0.2) for error in (1e-2, 1e-4, 1e-8)]
    assert math.isclose(curves("fits").at_error(points, 1e-5), 10.0, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([(1e-2, 1.0), (1e-4, 2.0)], "not reached"),
        ([(1e-2, 1.0), (1e-6, 2.0), (math.nan, math.nan)], "not reached"),
        ([(math.nan, math.nan), (1e-6, 2.0)], "not reached"),
        ([(1e-6, 1.0), (1e-7, 2.0)], "reached at every tolerance"),
        ([], "not measured"),
    ],
)
def test_a_way_without_two_such_tolerances_has_no_time(curves, points, words):
    assert curves("fits").at_error(points, 1e-5) == words


def test_an_error_that_comes_back_is_not_reached_before_it_stays_away(curves):
    points = [(1e-3, 1.0), (1e-6, 2.0), (1e-4, 3.0), (1e-6, 4.0)]
    assert 3.0 < curves("fits").at_error(points, 1e-5) < 4.0


def test_a_slow_way_takes_part_in_fewer_rounds_which_are_spread_over_all(curves):
    seconds, order = {"fast": 0.1, "takes half the rounds": 0.4, "slow": 3.0, "once is enough": 20.0}, []
    runs = {way: lambda way=way: order.append(way) or {"seconds": seconds[way]} for way in seconds}
    curves("rounds").race(runs, 21)
    # One run to see that it works, and one to measure all but its time, come first.
    counts = {way: order.count(way) for way in seconds}
    assert counts == {"fast": 2 + 21, "takes half the rounds": 2 + 10, "slow": 2 + 3, "once is enough": 1}
    rounds = order[7:]
    assert [rounds[:i].count("fast") for i, way in enumerate(rounds) if way == "slow"] == [4, 11, 18]


class Fake:
    """A framework whose second way takes half the time of the first, and whose cells can be made to fail."""

    precision_ways = scaling_ways = ("back-propagation", "steptape ACA")
    tolerances = (1e-3, 1e-6)

    def __init__(self, fails_at=None):
        self.measured, self._fails_at = [], fails_at

    def machine(self):
        return "a machine"

    def precision(self, case, tolerance, ways, rounds):
        return self._rows(ways, tolerance**-0.2, tolerance)

    def scaling(self, case, axis, steps, ways, rounds):
        return self._rows(ways, 2.0 * case.y0.size * steps, None)

    def _rows(self, ways, seconds, error):
        if len(self.measured) == self._fails_at:
            raise KeyboardInterrupt
        self.measured.append(ways)
        times = dict(zip(self.scaling_ways, (seconds, seconds / 2), strict=True))
        return [
            {"way": way, "seconds": times[way], "error": error, "held": None, "evaluations": (1, None)} for way in ways
        ]


@pytest.fixture
def run(curves, tmp_path):
    """Measure all cells of ``--quick`` that are not there yet, and return the file."""

    def measure(framework):
        plan, store = curves("plan"), curves("store")
        file = tmp_path / "curves.jsonl"
        plan.run(framework, store.Store(file, "torch"), ("precision", "scaling"), plan.Extent.of(True), tmp_path / "-")
        return file

    return measure


def test_a_rerun_goes_on_where_the_last_one_ended(run):
    first, second, third = Fake(fails_at=3), Fake(), Fake()
    with pytest.raises(KeyboardInterrupt):
        run(first)
    run(second)
    lines = run(third).read_text(encoding="utf-8").splitlines()
    assert (len(first.measured), len(second.measured), len(third.measured)) == (3, 3, 0)
    # Two tolerances, two sizes of two axes, and the machine.
    assert len(lines) == 7


def test_a_way_that_would_take_too_long_is_not_run(run):
    framework = Fake()
    entries = [json.loads(line) for line in run(framework).read_text(encoding="utf-8").splitlines()]
    # Of 10 steps of two numbers the slower way takes 40 s, so it is not tried with 100; the other takes 20 s.
    without = {(entry["name"], entry["size"]): [row.get("without") for row in entry["rows"]] for entry in entries}
    assert without["steps", 10] == [None, None]
    assert without["steps", 100] == [f"not run: about {seconds} s, by the size before" for seconds in (400, 200)]


def test_the_report_says_how_long_a_way_takes_to_equal_error(curves, run, tmp_path):
    file = run(Fake())
    table, jsonl = curves("table"), importlib.import_module("benchmarks.jsonl")
    text = table.write(jsonl.read(file), "command", tmp_path / "curves.md").read_text(encoding="utf-8")
    assert "| steptape ACA | 0.50 |" in text
    assert "| steptape ACA | not reached |" in text
    assert {"curves-precision-torch.png", "curves-scaling-torch.png"} <= {path.name for path in tmp_path.iterdir()}


@TORCH
def test_a_cell_in_torch_measures_the_gradient(curves):
    side, cases = curves("torch_side"), curves("cases")
    case = cases.precision("lotka_volterra", None)
    rows = side.Torch(True).precision(case, 1e-7, (side.BACKPROP, side.ADJOINT, side.ACA, side.QUADRATURE), 1)
    host, adjoint, ours, _ = rows
    assert all(1e-9 < row["error"] < 1e-5 for row in rows)
    assert math.isclose(ours["error"], host["error"], rel_tol=1e-2)
    assert host["evaluations"][1] == 0
    # Each accepted step again, by its six stages without the one that the next step begins with, or with it.
    assert 5 * ours["accepted"] <= ours["evaluations"][1] <= 6 * ours["accepted"] + 5
    assert host["held"] > 50 * ours["held"] > 50 * adjoint["held"]
    wrong = dataclasses.replace(case, reference=1.01 * case.reference)
    (row,) = side.Torch(True).precision(wrong, 1e-7, (side.ACA,), 0)
    assert math.isclose(row["error"], 0.01 / 1.01, rel_tol=1e-2)


@TORCH
def test_seconds_in_torch_are_those_of_both_passes(curves):
    side, cases = curves("torch_side"), curves("cases")
    case, steps = cases.AXES[0].case(20)

    def slow(t, y, params):
        end = time.process_time() + 2e-3
        while time.process_time() < end:
            pass
        return cases.spinning(t, y, params)

    rows = side.Torch(True).scaling(dataclasses.replace(case, field=slow), "steps", steps, (side.BACKPROP, side.ACA), 1)
    assert [row["accepted"] for row in rows] == [steps, steps]
    for row in rows:
        assert 1 < row["seconds"] / (2e-3 * sum(row["evaluations"])) < 2


@TORCH
@pytest.mark.skipif(sys.platform != "linux", reason="the C library's account is glibc's")
def test_bytes_held_in_torch_are_its_allocators_where_tensors_outweigh_the_graph(curves):
    side, cases = curves("torch_side"), curves("cases")
    account = importlib.import_module("benchmarks.measure").Account
    case, steps = cases.AXES[1].case(40_000)
    rows = side.Torch(True).scaling(case, "state", steps, (side.BACKPROP, side.ACA), 1)
    for row, kept in zip(rows, (6 * steps, steps), strict=True):
        problem = side._problem(case, 1e-3, 10**6)
        solve = side._SCALING[row["way"]]
        with account() as account_of:
            solution = solve(problem, settings=side._LIMITED[1])
        del solution
        assert math.isclose(row["held"], account_of.net, rel_tol=0.05)
        assert row["held"] > kept * case.y0.nbytes


JAX = """
import json
from benchmarks.curves import cases
from benchmarks.curves.jax_side import ACA, BACKPROP, Jax

case = cases.precision("lotka_volterra", None)
rows = Jax(True).precision(case, 1e-7, (BACKPROP, ACA), 1)
case, steps = cases.AXES[1].case(10_000)
print(json.dumps([*rows, *Jax(True).scaling(case, "state", steps, (ACA,), 1)]))
"""


@pytest.mark.skipif(not find_spec("diffrax"), reason="needs diffrax")
def test_a_cell_in_jax_measures_the_gradient():
    done = subprocess.run([sys.executable, "-c", JAX], cwd=ROOT, check=True, capture_output=True, text=True)
    host, ours, large = json.loads(done.stdout.splitlines()[-1])
    assert all(1e-9 < row["error"] < 1e-5 for row in (host, ours))
    assert math.isclose(ours["error"], host["error"], rel_tol=1e-6)
    assert host["max_steps"] / 2 < host["tries"] <= host["max_steps"]
    assert ours["evaluations"][0] == 6 * ours["tries"]
    assert 0 < ours["seconds"] < 0.5
    # A state a step, and what one step takes.
    assert large["accepted"] == 50
    assert 50 < large["held"] / (8 * 10_000) < 100
