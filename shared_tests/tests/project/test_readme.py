"""The tables of the README and of docs/support.md and the examples of every page, held against the code."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from steptape.cli import _parser

README = Path(__file__).resolve().parents[3] / "README.md"
SUPPORT = README.parent / "docs" / "support.md"
PAGES = {page.relative_to(README.parent).as_posix(): page for page in [README, *sorted(SUPPORT.parent.rglob("*.md"))]}

pytestmark = pytest.mark.skipif(not README.exists(), reason="the tests run without the README beside them")


def blocks(language, page=README):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def examples(framework, page):
    """The Python blocks of a page for one framework, with what they print. One that names none goes with the last."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", text, re.DOTALL)
    assert [example for example, _ in found] == blocks("python", page)
    pairs, of = [], None
    for example, printed in found:
        of = "diffrax" if re.search("diffrax|jax", example) else "torch" if "torch" in example else of
        pairs += [(example, printed)] if of == framework else []
    return pairs


def pages_of(framework):
    """Each page with examples for a framework, but for the issues filed with the hosts, whose code is a file."""
    return [page for page in PAGES if "host-issues" not in page and examples(framework, PAGES[page])]


def rows(title):
    """The cells of the first table after a line."""
    table = SUPPORT.read_text(encoding="utf-8").partition(title)[2].partition("\n\n")[2].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def replays(title):
    """How a step is replayed, by the names in a table of solvers."""
    return {name: replay for names, replay in rows(title) for name in re.findall(r"`(\w+)`", names)}


def test_the_table_of_torchdiffeq_s_methods():
    pytest.importorskip("torchdiffeq")
    from steptape.compat._torchdiffeq import SOLVERS
    from steptape.torch._hosts.scheme import scheme_of

    told = replays('By `method`, with `adjoint_method="aca"`:')
    schemes = {name: scheme_of(solver) for name, solver in SOLVERS.items()}
    for name, scheme in schemes.items():
        by = "by the tableau" if scheme and scheme.tableau else "the host's own step"
        assert told[name] == (by if scheme else "refused")
    refused = [name for name, scheme in schemes.items() if not scheme]
    exceptions = re.search(r"every `method` but ([`\w, ]+), with", README.read_text(encoding="utf-8"))[1]
    assert re.findall(r"`(\w+)`", exceptions) == refused


def test_the_table_of_diffrax_s_solvers():
    diffrax = pytest.importorskip("diffrax")
    from steptape.jax._replay.runge_kutta import is_explicit

    told = {name for name, replay in replays("By solver;").items() if replay == "unrolled"}
    solvers = [x for x in vars(diffrax).values() if isinstance(x, type) and issubclass(x, diffrax.AbstractERK)]
    concrete = [x for x in solvers if not x.__name__.startswith("Abstract")]
    assert told == {x.__name__ for x in concrete if is_explicit(x())}


@pytest.mark.parametrize("framework", ["torch", "diffrax"])
def test_the_first_example_is_short_and_complete(framework):
    """It runs by itself: the next test runs it before all others."""
    example, _ = examples(framework, README)[0]
    assert f"import {framework}\n" in example
    assert len([line for line in example.splitlines() if line.strip()]) <= 12


ONE_BY_ONE = """
import json, sys, types
for page, script in json.load(sys.stdin).items():
    print("page", page, file=sys.stderr)
    sys.modules["__main__"] = page_s = types.ModuleType("__main__")
    exec(compile(script, page, "exec"), vars(page_s))
    print("end of page", flush=True)
"""


@pytest.mark.parametrize("framework", ["torch", "diffrax"])
def test_all_examples_of_a_page_run_one_after_the_other(framework):
    """Page by page, in one process, for to start it takes longest."""
    for module in {"torch": ("torchdiffeq", "torchsde"), "diffrax": ("diffrax",)}[framework]:
        pytest.importorskip(module)
    pages = {page: list(zip(*examples(framework, PAGES[page]), strict=True)) for page in pages_of(framework)}
    scripts = json.dumps({page: "\n".join(scripts) for page, (scripts, _) in pages.items()})
    command = [sys.executable, "-P", "-c", ONE_BY_ONE]
    ran = subprocess.run(command, input=scripts, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    for (_, texts), printed in zip(pages.values(), ran.stdout.split("end of page\n"), strict=False):
        told = "".join(texts)
        if framework == "torch":  # numbers, and times, which no two runs have in common
            told, printed = (re.sub(r"[\d.]+( m?s)?\b", "#", text) for text in (told, printed))
        assert not told or printed == told


@pytest.mark.parametrize("page", [*PAGES.values(), README.parent / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_every_block_of_code_is_one_that_runs(page):
    """Python in the test before; in a shell, our own commands by their parser, sessions and files by their names."""
    kinds = set(re.findall(r"^```(\w+)$", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert kinds <= {"python", "text", "bash", "console", "diff"}
    assert len(blocks("python", page)) == sum(len(examples(framework, page)) for framework in ("torch", "diffrax"))
    lines = "".join(blocks("bash", page) + blocks("console", page)).replace("$ ", "").replace(" && ", "\n").splitlines()
    for words in (shlex.split(line, comments=True) for line in lines):
        words = words[2:] if words[:2] == ["python", "-m"] else words
        if words[0] == "steptape":
            assert _parser().parse_args(words[1:]).run
        elif words[0] == "nox":
            noxfile = (README.parent / "noxfile.py").read_text(encoding="utf-8")
            assert all(f"\ndef {session}(session" in noxfile for session in words[2:])
        else:
            assert words[:2] in (["pip", "install"], [".", ".venv/bin/activate"], ["python", "-P"])
            assert all((README.parent / word).exists() for word in words if word.endswith(".py"))


@pytest.mark.parametrize("page", PAGES)
def test_its_links_lead_somewhere(page):
    page = PAGES[page]
    text = page.read_text(encoding="utf-8")
    for link, title in re.findall(r"\]\((?!https:)([^)#]*)#?([^)]*)\)", text):
        target = page.parent / link if link else page
        assert target.exists(), link
        if title:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert title in {re.sub(r"[^\w -]", "", known.lower()).replace(" ", "-") for known in titles}, title


def test_ci_runs_the_readme_s_test_command_and_the_lowest_versions():
    command = next(block for block in blocks("bash") if "nox" in block).strip()
    script = (README.parent / ".ci" / "run").read_text(encoding="utf-8")
    install, run = (part.strip() for part in command.split("&&"))
    assert install.removeprefix("pip ") in script.replace(" --quiet", "")
    first, full, last = script.rstrip().splitlines()[-3:]
    assert (first, last) == (run, "nox -s minimums")
    part = r'"--part=\$\(\(0x\$\(git rev-parse HEAD \| cut -c -7\) % (\d+) \+ 1\)\)/\1"'
    assert re.fullmatch(f"nox -s full -- {part}", full)


@pytest.mark.skipif(not (README.parent / "benchmarks").exists(), reason="runs from a checkout")
def test_its_tables_of_figures_are_what_was_measured(monkeypatch):
    for module in ("array_api_compat", "matplotlib", "scipy", "tabulate", "torch", "torchdiffeq"):
        pytest.importorskip(module)
    monkeypatch.syspath_prepend(README.parent)
    from benchmarks.envelope import read
    from benchmarks.page.readme import TABLES, filled

    text = README.read_text(encoding="utf-8")
    names = re.findall(r"<!-- figures: ([\w ]+) -->", text)
    assert names
    assert set(names) <= set(TABLES)
    assert text.count("<!-- end -->") == len(names)
    figures = read(README.parent / "docs" / "figures.jsonl")
    assert filled(text, figures) == text
    told = next(f["rows"] for f in figures if (f["measurement"], f["cell"]) == ("tradeoff", "readme"))
    in_torch, in_jax = (
        next(row for row in told if (row["today"], row["wanted"]) == pair)
        for pair in (("`odeint`", "in a fraction of the memory"), ("`RecursiveCheckpointAdjoint()`", "faster"))
    )
    memory, time = (in_torch[f"{kind}, of today's"] for kind in ("memory", "time"))
    words = " ".join(text.split())
    assert f"in torch {memory} of back-propagation's peak, at {time} of its time" in words
    time = in_jax["time, of today's"]
    assert f"in diffrax at {time} of its default's time" in words
