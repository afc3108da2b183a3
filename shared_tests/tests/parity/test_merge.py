"""`steptape report`: reports of several versions in one, and what it shows in a real browser."""

import copy
import json
import shutil
import subprocess
from html import unescape

import pytest

from steptape import cli
from steptape.shared_tests.backends.backends import METHODS, Case, Run
from steptape.shared_tests.parity.parity import Outcome, Scope

for package in ("numpy", "matplotlib", "rich", "tabulate", "jinja2", "packaging"):
    pytest.importorskip(package)

from steptape.shared_tests.report import html, report  # noqa: E402

PROBLEM = "lotka_volterra"
GRID = (0.0, 0.5, 1.0)
GRADIENT = {"y0": [1.0, 2.0], "params": [3.0, 4.0, 5.0, 6.0], "times": [0.5]}
OLD = {"torch": {"python": "3.10.13", "torch": "2.4.1", "torchdiffeq": "0.2.3"}}
NEW = {"torch": {"python": "3.13.0", "torch": "2.15.0", "torchdiffeq": "0.2.10"}}
JAX = {"jax": {"python": "3.12.1", "jax": "0.11.2", "diffrax": "0.7.2"}}


def run(backend, method, case):
    return Run(
        backend, Case(PROBLEM, method, **case), loss=1.0, gradient=copy.deepcopy(GRADIENT), forward_evaluations=7
    )


def write(folder, versions, spoil=lambda runs: None):
    """A parity report as `steptape parity` leaves it, after its runs were spoiled."""
    [backend] = versions
    cases = ({"solver": "dopri5", "rtol": 1e-6}, {"solver": "dopri5", "grid": GRID}, {"solver": "heun", "grid": GRID})
    runs = [run(backend, method.name, case) for method in METHODS[backend][:2] for case in cases]
    spoil(runs)
    outcome = Outcome(Scope((backend,), (PROBLEM,), (), True), versions, runs, [])
    folder.mkdir(parents=True)
    data = report.as_data(report.Report.of(outcome, 1.0))
    data["promises"] = [one for one in data["promises"] if "reference" not in one["promise"]]
    (folder / "parity.json").write_text(json.dumps(data), encoding="utf-8")


def merged(folder, *reports, code=0):
    """The tables of the merged report of the command line, by title."""
    out = folder / "out"
    assert cli.main(["report", *map(str, reports), "--out", str(out)]) == code
    tables = json.loads((out / "versions.json").read_text(encoding="utf-8"))["tables"]
    return {table["title"]: table["rows"] for table in tables}


def scaled(factor, grade, method="aca"):
    """Spoil the runs of a method on given or on own steps."""

    def spoil(runs):
        for run in runs:
            if run.case.grade == grade and run.case.method == method:
                run.gradient["y0"][0] *= factor

    return spoil


def test_versions_that_agree(tmp_path, capsys):
    for name, versions in (("b", NEW), ("a", OLD), ("c", JAX)):
        write(tmp_path / "in" / name, versions)
    tables = merged(tmp_path, tmp_path / "in")
    pairs = tables["Each version against each other"]
    old, new = "torchdiffeq 0.2.3, torch 2.4.1", "torchdiffeq 0.2.10, torch 2.15.0"
    assert [row[:4] for row in pairs] == [
        [old, new, 2, 0.0],
        [old, "diffrax 0.7.2, jax 0.11.2", 2, 0.0],
        [new, "diffrax 0.7.2, jax 0.11.2", 2, 0.0],
    ]
    assert tables["What moved between versions"] == []
    assert [row[-1] for row in tables["Environment"]]
    assert "3 reports, 3 versions: 3 of 3 pairs agree" in capsys.readouterr().out
    for name in ("versions.md", "versions.html"):
        assert "torchdiffeq 0.2.10" in (tmp_path / "out" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("other", [NEW, JAX], ids=["another version", "the other framework"])
def test_a_gradient_that_differs_on_the_same_steps_exits_with_one(tmp_path, capsys, other):
    write(tmp_path / "a", OLD)
    write(tmp_path / "b", other, scaled(1 + 1e-10, "grid"))
    tables = merged(tmp_path, tmp_path / "a", tmp_path / "b", code=1)
    [row] = tables["Each version against each other"]
    assert row[3] == pytest.approx(1e-10 / 5**0.5, rel=1e-3)
    assert row[-1] == "NO"
    assert "differ by 4.5e-11 on the same steps" in capsys.readouterr().out


def test_a_gradient_that_is_missing_exits_with_one(tmp_path):
    def fail(runs):
        runs[1].failure, runs[1].gradient = "RuntimeError: lost the tape", {}

    write(tmp_path / "a", OLD)
    write(tmp_path / "b", NEW, fail)
    tables = merged(tmp_path, tmp_path / "a", tmp_path / "b", code=1)
    assert tables["What moved between versions"][0][-1] == "none -> RuntimeError: lost the tape"


def test_what_moved_on_own_steps_is_shown_and_breaks_nothing(tmp_path):
    write(tmp_path / "a", OLD)
    write(tmp_path / "b", NEW, lambda runs: [scaled(2, "adaptive", name)(runs) for name in ("aca", "backprop")])
    rows = merged(tmp_path, tmp_path / "a", tmp_path / "b")["What moved between versions"]
    assert [row[2:7] for row in rows] == [
        ["own steps", PROBLEM, "dopri5", name, "rtol 1e-06"] for name in ("aca", "backprop")
    ]


def test_two_machines_with_the_same_versions_are_told_apart(tmp_path):
    for name in "ab":
        write(tmp_path / name, OLD)
    [row] = merged(tmp_path, tmp_path / "a", tmp_path / "b")["Each version against each other"]
    assert row[:2] == [f"torchdiffeq 0.2.3, torch 2.4.1 ({tmp_path / name})" for name in "ab"]


def test_another_grid_is_not_compared(tmp_path):
    def regrid(runs):
        for one in runs:
            if one.case.grid:
                one.case = Case(PROBLEM, one.case.method, one.case.solver, grid=(0.0, 0.4, 1.0))

    write(tmp_path / "a", OLD)
    write(tmp_path / "b", NEW, regrid)
    assert merged(tmp_path, tmp_path / "a", tmp_path / "b")["Each version against each other"] == []


def test_a_broken_promise_of_one_report_exits_with_one(tmp_path, capsys):
    write(tmp_path / "a", OLD, scaled(1 + 1e-9, "adaptive"))
    merged(tmp_path, tmp_path / "a", code=1)
    assert "equals the host's back-propagation: torch, lotka_volterra" in capsys.readouterr().out


def test_a_folder_without_a_report_is_named(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert f"steptape report {tmp_path}: no parity.json there" in capsys.readouterr().err


def test_a_report_of_another_format_is_refused(tmp_path, capsys):
    (tmp_path / "parity.json").write_text('{"format": 1}', encoding="utf-8")
    assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "is of format 1, not 2" in capsys.readouterr().err


def test_what_is_shown_is_escaped():
    page = html.page("<b>", ["a & b"], [html.Table("t", "", ("x",), [("<script>",)])], {})
    assert "<td>&lt;script&gt;</td>" in page
    assert "<title>&lt;b&gt;</title>" in page


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# Clicks on each heading of the first table and writes down what the page then shows, and what went wrong.
PROBE = """<script>
const column = i => [...document.querySelectorAll("table")[0].tBodies[0].rows].map(row => row.cells[i].textContent);
const seen = {errors: window.problems, orders: []};
for (const [i, th] of [...document.querySelectorAll("table")[0].tHead.rows[0].cells].entries())
  for (let click = 0; click < 2; click++) { th.click(); seen.orders.push([th.ariaSort, column(i)]); }
window.addEventListener("load", () => {
  seen.images = [...document.images].map(image => image.naturalWidth);
  seen.requests = performance.getEntriesByType("resource").map(entry => entry.name).filter(n => !n.startsWith("data:"));
  seen.headings = [...document.querySelectorAll("h2")].map(h => h.textContent);
  document.body.innerHTML = "<pre id=seen></pre>";
  document.getElementById("seen").textContent = JSON.stringify(seen);
});
</script>"""
WATCH = """<script>
window.problems = [];
window.onerror = message => { window.problems.push(String(message)); };
document.addEventListener("securitypolicyviolation", event => window.problems.push(event.blockedURI));
</script>"""


def browse(page, folder):
    """What the probe saw of a page in a real browser."""
    probed = folder / "probed.html"
    watched = page.replace("<style>", f"{WATCH}<style>", 1).replace("</body>", f"{PROBE}</body>")
    probed.write_text(watched, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'profile'}"]
    command = [CHROMIUM, *flags, "--virtual-time-budget=10000", "--dump-dom", probed.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(unescape(dom.partition('<pre id="seen">')[2].partition("</pre>")[0]))


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium, as in Debian's package chromium")
def test_the_page_in_a_browser(tmp_path):
    for name, versions, factor in (("a", OLD, 1), ("b", NEW, 1 + 2e-13), ("c", JAX, 1 + 6e-13)):
        write(
            tmp_path / name,
            versions,
            lambda runs, factor=factor: [scaled(factor, "grid", m)(runs) for m in ("aca", "backprop", "recursive")],
        )
    merged(tmp_path, *(tmp_path / name for name in "abc"))
    page = (tmp_path / "out" / "versions.html").read_text(encoding="utf-8")
    seen = browse(page, tmp_path)
    assert seen["errors"] == []
    assert seen["requests"] == []
    assert seen["headings"][0] == "Each version against each other"
    assert len(seen["images"]) == 2
    assert all(width > 500 for width in seen["images"])
    up, down = seen["orders"][6:8]
    assert up == ["ascending", sorted(up[1], key=float)]
    assert down == ["descending", up[1][::-1]]
    assert len(set(up[1])) == 3


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium, as in Debian's package chromium")
def test_numbers_sort_by_value_and_the_empty_last(tmp_path):
    rows = [(2e-13, "b10"), (None, "b9"), (1.5, ""), (1e-5, "a")]
    seen = browse(html.page("title", [], [html.Table("t", "", ("number", "text"), rows)], {}), tmp_path)
    (_, up), (_, down), (_, words), _ = seen["orders"]
    assert up == ["2.0e-13", "1.0e-05", "1.5e+00", ""]
    assert down == ["1.5e+00", "1.0e-05", "2.0e-13", ""]
    assert words == ["a", "b9", "b10", ""]
    assert seen["errors"] == []


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium, as in Debian's package chromium")
def test_the_browser_refuses_a_request_and_the_probe_sees_it(tmp_path):
    page = html.page("title", [], [html.Table("t", "", ("x",), [(1,)])], {})
    page = page.replace("</h1>", '</h1><img src="http://127.0.0.1:9/x.png"><script>nothing.here</script>')
    errors = browse(page, tmp_path)["errors"]
    assert any("127.0.0.1" in error for error in errors)
    assert any("nothing is not defined" in error for error in errors)
