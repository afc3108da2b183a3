"""``compare``, as far as it is the same in both halves: the advice, the table, the plot, the clock, the command."""

import builtins
import sys

import pytest

from steptape import OptionError, UnsupportedHostVersion, cli
from steptape._compare.advice import size_of
from steptape._compare.clock import Clock
from steptape._compare.command import compared, described
from steptape._compare.comparison import Comparison
from steptape._compare.race import Judge, Way, race
from steptape._compare.rows import Row, in_bytes

KIB, MIB = 2**10, 2**20


def row(way, seconds=1.0, peak=MIB, **known):
    return Row(
        way,
        f"solve(..., {way})",
        **{"is_discrete": True, "difference": 1e-14, "error": 1e-4, **known},
        seconds=seconds,
        peak=peak,
    )


ROWS = [
    row("back-propagation", 2.0, 8 * MIB),
    row("graphs", 1.0, 4 * MIB),
    row("states", 1.5, 100 * KIB),
    row("wrong", 0.5, KIB, difference=1e-3),
    row("quadrature", 0.4, KIB, is_discrete=False, error=1e-6, difference=1e-4),
    row("<broken>", None, None, difference=None, error=None, why_not="failed: ValueError: a <b> & c"),
]


def comparison(rows=ROWS, memory=None):
    return Comparison("a solve", rows, "a reference", "the same steps", 1e-8, memory)


@pytest.mark.parametrize(
    ("memory", "best"),
    [(None, "graphs"), ("4 MiB", "graphs"), (4 * MIB - 1, "states"), ("500 KB", "states"), ("1 KiB", "states")],
)
def test_the_best_is_the_fastest_that_is_exact_and_fits_or_takes_least(memory, best):
    assert comparison().best(memory).way == best
    assert comparison(memory=None if memory is None else int(size_of(memory))).best().way == best


def test_what_is_held_is_compared_only_where_no_peak_is_known():
    held = [row("unknown", 1.0, None, held=KIB), row("known", 2.0, MIB, held=KIB)]
    assert comparison(held).best("1 MiB").way == "known"
    assert comparison(held[:1]).best("1 MiB").way == "unknown"


def test_the_advice_says_what_to_write_and_why():
    advice = comparison().advice()
    assert "solve(..., graphs)" in advice
    assert "the fastest: 1 s, 0.50 times that of back-propagation, at 4 MiB" in advice
    assert "quadrature is nearer: 1.0e-06 to 1.0e-04, in 400 ms" in advice
    assert "the fastest that fits 500 KiB: 1.5 s" in comparison().advice("500 KiB")
    assert "No exact way fits 1 KiB; this one takes least, 100 KiB" in comparison().advice("1 KiB")
    assert "no way gave the exact gradient" in comparison(ROWS[3:]).advice()


@pytest.mark.parametrize("memory", ["2 apples", "0 MB", 0, -1, True, 1.5])
def test_a_memory_that_is_no_size_is_refused(memory):
    with pytest.raises(OptionError, match="must be a size"):
        comparison().best(memory)


def test_sizes_are_read_as_they_are_written():
    for count in (3, 999, 1000, 12345, 7 * MIB, 3 * 2**30):
        assert size_of(in_bytes(count)) == pytest.approx(count, rel=0.005)


@pytest.fixture(params=["tabulate", "without it"])
def perhaps_without_tabulate(request, monkeypatch):
    if request.param == "tabulate":
        pytest.importorskip("tabulate")
    else:
        monkeypatch.setitem(sys.modules, "tabulate", None)


@pytest.mark.usefixtures("perhaps_without_tabulate")
def test_the_table_has_a_line_a_way_and_the_words_of_failures_below():
    lines = str(comparison()).splitlines()
    assert lines[0] == "a solve"
    assert lines[1].split() == ["way", "error", "to", "discrete", "forward", "backward", "time", "held", "peak"]
    assert lines[4].split() == ["graphs", "1.0e-04", "1.0e-14", "–", "–", "1", "s", "–", "4", "MiB"]
    assert lines[8].split() == ["<broken>", "failed", "(1)"]
    assert "(1) failed: ValueError: a <b> & c" in lines
    assert max(map(len, lines)) <= 116


def test_the_notebook_s_table_is_escaped_and_the_best_way_in_bold():
    text = comparison()._repr_html_()
    assert "&lt;broken&gt;" in text
    assert "a &lt;b&gt; &amp; c" in text
    assert '<th style="text-align: left">graphs</th>' in text
    assert '<td style="text-align: left">states</td>' in text


def test_the_plot_shows_every_way_that_ran():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    ax = comparison().plot()
    shown = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert shown == [f"{n}  {one.way}" for n, one in enumerate(ROWS[:5], 1)]
    assert [tuple(c.get_offsets()[0]) for c in ax.collections] == [(one.peak, one.seconds) for one in ROWS[:5]]
    matplotlib.pyplot.close(ax.figure)


def test_without_matplotlib_the_plot_says_what_to_install(monkeypatch):
    monkeypatch.setattr(builtins, "__import__", _without("matplotlib"))
    with pytest.raises(UnsupportedHostVersion, match=r"pip install 'steptape\[report\]'"):
        comparison().plot()


def _without(package, real=builtins.__import__):
    def imported(name, *rest, **more):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *rest, **more)

    return imported


class Time:
    """A clock that goes on only where a way says so."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    process_time = monotonic


class Sleeper(Way):
    """A way of so many seconds."""

    def __init__(self, name, seconds, time):
        super().__init__(name, name, True)
        self._seconds, self._time, self.weighed = seconds, time, False

    def run(self):
        self._time.now += self._seconds
        return self._seconds

    def measure(self):
        self.row.seconds = self.run()
        return 2.0

    def weigh(self):
        self.weighed = True


@pytest.fixture
def ticking(monkeypatch):
    monkeypatch.setattr("steptape._compare.clock.time", time := Time())
    return time


def raced(ways, limit):
    return race(iter(ways), Judge(lambda a, b: abs(a / b - 1), None, 2.0), Clock(limit, False))


def test_the_time_limit_is_kept_and_what_no_longer_fits_is_shown_as_skipped(ticking):
    rows = raced([Sleeper(str(n), 0.3, ticking) for n in range(6)], 1.0)
    assert ticking.now == pytest.approx(0.9)
    assert rows[2].difference == 0
    for row in rows[3:]:
        assert row.why_not == "skipped: it would take about 0.3 s, and 0.1 s are left"
        assert row.seconds is None


def test_a_time_is_the_least_of_its_rounds(ticking):
    """What else a machine does makes a round longer, and none shorter."""

    class Disturbed(Sleeper):
        def run(self):
            self._seconds = 0.5 if self._time.now == 0 or self._seconds == 0.01 else 0.01
            return super().run()

    [row] = raced([Disturbed("disturbed", 0.01, ticking)], 60.0)
    assert row.rounds > 2
    assert row.seconds == 0.01


def test_a_slow_way_takes_part_in_fewer_rounds(ticking):
    ways = [Sleeper("fast", 0.01, ticking), Sleeper("slow", 1.0, ticking)]
    rows = raced(ways, 10.0)
    assert rows[0].rounds == 11
    assert 3 <= rows[1].rounds < 11
    assert ticking.now <= 10.0
    assert all(way.weighed for way in ways)


def test_a_short_way_takes_part_in_more_rounds(ticking):
    assert raced([Sleeper("short", 0.001, ticking)], 10.0)[0].rounds == 100


def test_what_a_way_raises_is_shown_and_the_others_run(ticking):
    class Broken(Sleeper):
        def measure(self):
            raise ValueError("of some\nlines")

    rows = raced([Broken("broken", 0.0, ticking), Sleeper("fine", 0.001, ticking)], 1.0)
    assert rows[0].why_not == "failed: ValueError: of some lines"
    assert rows[1].why_not is None


def test_progress_is_a_line_on_a_terminal_alone(capsys):
    for progress, said in ((None, False), (False, False), (True, True)):
        clock = Clock(1.0, progress)
        clock.say("at work")
        clock.say("")
        assert ("at work" in capsys.readouterr().err) == said


def test_a_limit_must_be_positive():
    with pytest.raises(OptionError, match="time_limit=0"):
        Clock(0, None)


def test_the_command_loads_a_script_s_function_but_does_not_run_it_as_main(tmp_path):
    (tmp_path / "my.py").write_text("x = __name__\ndef problem(): return x\n")
    assert described(f"{tmp_path}/my.py:problem")() == "steptape_compare"


SCRIPT = """
import math
size = {"func": None}
def needs(x): return {}
def nothing(): pass
def other(): return {"fun": 1, "y0": 2}
def both(): return {"func": 1, "sde": 2}
def misspelt(): return {"func": None, "y0": 1, "t": 2, "rtoll": 1e-3}
def short(): return {"sde": None, "y0": 1}
def single(): return {"loss": None, "inputs": 1.0}
def nameless(): return {"loss": None, "ways": ["aca"], "adjoint": 3}
def unknown():
    import torch
    y0, t = torch.ones(1, requires_grad=True), torch.tensor([0.0, 1.0])
    return {"func": lambda t, y: -y, "y0": y0, "t": t, "method": "euler", "ways": ["acca"]}
"""
DEFINED = "needs, nothing, other, both, misspelt, short, single, nameless, unknown"
# What follows the command, what it says, and the hosts that are needed to say so.
WRONG = [
    ("my.py", "name a script and a function in it: my.py:name", ()),
    ("nowhere.py:f", "no such file as nowhere.py", ()),
    ("my.py:problm", f"has no function 'problm'. It defines {DEFINED}.", ()),
    ("my.py:size", "size is a dict, no function", ()),
    ("my.py:needs", "called without arguments, and missing a required argument: 'x'", ()),
    ("my.py:nothing", "returns a NoneType, and must return the keyword arguments of steptape.torch.compare", ()),
    ("my.py:other", "neither 'func', 'sde' nor 'loss', but fun, y0, and must return", ()),
    ("my.py:both", "returns 'func' and 'sde', and must return", ()),
    ("my.py:misspelt", "'rtoll' is no key of steptape.torch.compare, which takes func, y0, t, loss", ["torchdiffeq"]),
    ("my.py:short", "'ts' is missing for steptape.torch.compare_sde, which takes sde, y0, ts", ["torchsde"]),
    ("my.py:single", "'inputs' is a float, and must be a tuple", ["diffrax"]),
    ("my.py:nameless", "'adjoint' is no key of steptape.jax.compare, which takes loss, inputs", ["diffrax"]),
    ("my.py:unknown", "'acca' is none of the ways, which are here: back-propagation; aca", ["torchdiffeq"]),
    ("my.py:nothing --time-limit 0", "time_limit=0.0): must be a positive number of seconds", ()),
    ("my.py:nothing --memory much", "memory='much': must be a size", ()),
    ("my.py:nothing --plot ways.txt", "--plot ways.txt: no kind of picture. It must end in .", ["matplotlib"]),
    ("my.py:nothing --plot nowhere/ways.png", "there is no folder ", ["matplotlib"]),
]


@pytest.mark.parametrize(("command", "said", "hosts"), WRONG, ids=[command for command, *_ in WRONG])
def test_a_wrong_command_is_told_what_there_is(tmp_path, monkeypatch, capsys, command, said, hosts):
    for host in hosts:
        pytest.importorskip(host)
    (tmp_path / "my.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert cli.main(["compare", *command.split()]) == 2
    told = capsys.readouterr().err
    assert told.startswith("steptape: ")
    assert said in told


def test_a_host_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for key, extra in (("func", "torch"), ("sde", "sde"), ("loss", "jax")):
        with pytest.raises(UnsupportedHostVersion, match=rf"not installed: pip install 'steptape\[{extra}\]'"):
            compared("my.py:f", lambda key=key: {key: None})
