"""The curves can be trusted: their fits, what is not run, and what a cell of each framework measures."""

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


@pytest.fixture
def fits(curves):
    """Where the curves are reduced to figures."""
    return importlib.import_module("benchmarks.page.curves")


@pytest.mark.parametrize("power", [-0.5, 0.0, 1.0, 1.5])
def test_a_power_law_has_its_exponent(fits, power):
    sizes = [10.0**i for i in range(6)]
    # The lower part is another law, and a size is missing.
    values = [7.0, 9.0, *(3 * size**power for size in sizes[2:4]), None, 3 * sizes[5] ** power]
    found, count = fits.exponent(sizes, values)
    assert math.isclose(found, power, abs_tol=1e-12)
    assert count == 3


def test_one_point_has_no_exponent(fits):
    assert fits.exponent([1.0, 10.0], [None, 5.0]) is None


def test_the_time_at_an_error_lies_on_the_line_between_two_tolerances(fits):
    # seconds = error^(-1/5), the law of a method of order 5.
    points = [(error, error**-0.2) for error in (1e-2, 1e-4, 1e-8)]
    assert math.isclose(fits.at_error(points, 1e-5), 10.0, rel_tol=1e-12)


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
def test_a_way_without_two_such_tolerances_has_no_time(fits, points, words):
    assert fits.at_error(points, 1e-5) == words


def test_an_error_that_comes_back_is_not_reached_before_it_stays_away(fits):
    points = [(1e-3, 1.0), (1e-6, 2.0), (1e-4, 3.0), (1e-6, 4.0)]
    assert 3.0 < fits.at_error(points, 1e-5) < 4.0


def test_a_way_is_run_twice_by_itself_and_one_that_fails_says_why(curves):
    order = []

    def fails():
        raise ValueError("no  such\n thing")

    runs = {way: lambda way=way: order.append(way) or {"seconds": 1.0, "held": 1} for way in ("a", "b")}
    rows = curves("plan").measured({**runs, "c": fails}, 2)
    assert order == ["a", "a", "b", "b", "a", "b", "a", "b"]
    assert rows[:2] == [{"way": way, "seconds": 1.0, "held": 1} for way in ("a", "b")]
    assert rows[2] == {"way": "c", "without": "failed: ValueError: no such thing"}


class Fake:
    """A framework whose second way takes half the time of the first."""

    precision_ways = scaling_ways = ("back-propagation", "steptape ACA")
    tolerances = (1e-3, 1e-6)

    def precision(self, case, tolerance, ways, rounds):
        return self._rows(ways, tolerance**-0.2, tolerance)

    def scaling(self, case, axis, steps, ways, rounds):
        return self._rows(ways, 2.0 * case.y0.size * steps, None)

    def _rows(self, ways, seconds, error):
        times = dict(zip(self.scaling_ways, (seconds, seconds / 2), strict=True))
        return [
            {"way": way, "seconds": times[way], "error": error, "held": None, "evaluations": (1, None)} for way in ways
        ]


@pytest.fixture
def entries(curves, tmp_path):
    """The results of all cells of ``--quick``."""
    envelope, measurements = (importlib.import_module(f"benchmarks.{name}") for name in ("envelope", "measurements"))
    done = {}
    scope = measurements.Scope(quick=True, done=done, folder=tmp_path)
    for cell, measure in curves("plan").cells(Fake(), scope).items():
        done[cell] = measure()
    return envelope.Results([envelope.entry("curves", cell, "torch", 1, rows) for cell, rows in done.items()])


def test_a_way_that_would_take_too_long_is_not_run(entries):
    # Of 10 steps of two numbers the slower way takes 40 s, so it is not tried with 100; the other takes 20 s.
    cells = entries.cells("curves", "torch")
    # Two tolerances, and two sizes of two axes.
    assert len(cells) == 6
    assert [row.get("without") for row in cells["scaling, steps 10"]] == [None, None]
    assert [row.get("without") for row in cells["scaling, steps 100"]] == [
        f"not run: about {seconds} s, by the size before" for seconds in (400, 200)
    ]


def test_the_page_says_how_long_a_way_takes_to_equal_error(entries):
    page = importlib.import_module("benchmarks.page.curves")
    ours, host = page.precision(entries, "torch")
    assert ours == {"": "steptape ACA", "lotka_volterra": "0.50 / not reached"}
    assert host == {"": "back-propagation", "lotka_volterra": "1.00 / not reached"}


@TORCH
def test_a_cell_in_torch_measures_the_gradient(curves):
    side, cases = curves("torch_side"), curves("cases")
    case = cases.precision("lotka_volterra", None)
    rows = side.precision(case, 1e-7, (side.BACKPROP, side.ADJOINT, side.ACA, side.QUADRATURE), 1)
    host, adjoint, ours, _ = rows
    assert all(1e-9 < row["error"] < 1e-5 for row in rows)
    assert math.isclose(ours["error"], host["error"], rel_tol=1e-2)
    assert host["evaluations"][1] == 0
    # Each accepted step again, by its six stages without the one that the next step begins with, or with it.
    assert 5 * ours["accepted"] <= ours["evaluations"][1] <= 6 * ours["accepted"] + 5
    assert host["held"] > 50 * ours["held"] > 50 * adjoint["held"]
    wrong = dataclasses.replace(case, reference=1.01 * case.reference)
    (row,) = side.precision(wrong, 1e-7, (side.ACA,), 1)
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

    rows = side.scaling(dataclasses.replace(case, field=slow), "steps", steps, (side.BACKPROP, side.ACA), 1)
    assert [row["accepted"] for row in rows] == [steps, steps]
    for row in rows:
        assert 1 < row["seconds"] / (2e-3 * sum(row["evaluations"])) < 2


@TORCH
@pytest.mark.skipif(sys.platform != "linux", reason="the C library's account is glibc's")
def test_bytes_held_in_torch_are_its_allocators_where_tensors_outweigh_the_graph(curves):
    side, cases = curves("torch_side"), curves("cases")
    account = importlib.import_module("benchmarks.meters").Account
    case, steps = cases.AXES[1].case(40_000)
    rows = side.scaling(case, "state", steps, (side.BACKPROP, side.ACA), 1)
    for row, kept in zip(rows, (6 * steps, steps), strict=True):
        problem = side._problem(case, 1e-3, 10**6)
        solve = side._SCALING[row["way"]]
        with account() as account_of:
            solution = problem.solved(solve, **side._LIMITED)
        del solution
        assert math.isclose(row["held"], account_of.net, rel_tol=0.05)
        assert row["held"] > kept * case.y0.nbytes


JAX = """
import json
from benchmarks.machine import prepare

prepare("jax")
from benchmarks.curves import cases
from benchmarks.curves.jax_side import ACA, BACKPROP, precision, scaling

case = cases.precision("lotka_volterra", None)
rows = precision(case, 1e-7, (BACKPROP, ACA), 1)
case, steps = cases.AXES[1].case(10_000)
print(json.dumps([*rows, *scaling(case, "state", steps, (ACA,), 1)]))
"""


@pytest.mark.skipif(not find_spec("diffrax"), reason="needs diffrax")
@pytest.mark.full
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
