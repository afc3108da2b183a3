"""What is published with a release is one with pyproject.toml and noxfile.py: versions, papers, sessions, hooks."""

import re

import pytest
from packaging.version import Version

from steptape_helpers.checkout import ROOT

WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
NOXFILE = ROOT / "noxfile.py"

pytestmark = pytest.mark.skipif(not NOXFILE.exists(), reason="runs from a checkout")


@pytest.fixture
def pyproject():
    tomllib = pytest.importorskip("tomllib")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def sessions():
    """The sessions of nox by name."""
    return set(re.findall(r"^@nox\.session.*\n(?:[@ )\]].*\n)*def (\w+)", NOXFILE.read_text(encoding="utf-8"), re.M))


def test_the_version_is_the_same_in_all_that_names_it(pyproject):
    version = pyproject["project"]["version"]
    latest = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[1]
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)[1]
    assert version == latest == cited


def test_a_classifier_for_each_python_that_is_tested(pyproject):
    told = {x.rpartition(" ")[2] for x in pyproject["project"]["classifiers"] if "Python :: 3." in x}
    lines = [line for lines in pyproject["tool"]["steptape"]["versions"].values() for line in lines]
    assert told == {line["python"] for line in lines}


def test_the_papers_to_cite_are_those_the_code_names_as_its_sources():
    cited = re.findall(r"arxiv\.org/abs/([\d.]+)", (ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    readme = re.findall(r"arxiv\.org/abs/([\d.]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(cited) == 3
    assert set(cited) == set(readme)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_nox_and_nothing_else(workflow):
    text = workflow.read_text(encoding="utf-8")
    assert set(re.findall(r"run: (.*)", text)) <= {
        "python -m pip install nox",
        'nox -s "$SESSION"',
        "nox -s build",
    }


def test_the_workflow_s_sessions_exist_and_hold_every_promise():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    run = set(re.search(r"session: \[(.*)\]", text)[1].split(", "))
    assert run <= sessions()
    assert {"lint", "types", "quick", "tests", "full", "matrix", "docs", "build"} <= run


def test_the_workflow_has_every_python_of_the_matrix(pyproject):
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    pythons = set(re.findall(r"^ +(3\.\d+)$", text, re.M))
    lines = [line for lines in pyproject["tool"]["steptape"]["versions"].values() for line in lines]
    assert sorted(pythons, key=Version) == sorted({line["python"] for line in lines}, key=Version)


def test_the_hooks_lint_with_the_versions_of_nox(pyproject):
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    [ruff] = [tool for tool in pyproject["dependency-groups"]["lint"] if tool.startswith("ruff")]
    assert set(re.findall(r'"(ruff[^"]*)"', text)) == {ruff}
    for command in ("ruff check", "ruff format --check"):
        assert f"entry: {command}" in text
        assert f"session.run({', '.join(map(repr, command.split()))}".replace("'", '"') in NOXFILE.read_text(
            encoding="utf-8"
        )
