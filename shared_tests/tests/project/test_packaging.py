"""What the wheel holds, and what pyproject.toml lists by hand: packages, versions and the tests of a session."""

import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points
from pathlib import PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import steptape.cli
from steptape_helpers.checkout import FOLDERS, ROOT, shipped

PYPROJECT = ROOT / "pyproject.toml"


def listed_packages():
    """The strings of `packages = [...]`, read without tomllib, which Python 3.10 lacks."""
    section = PYPROJECT.read_text(encoding="utf-8").split("[tool.setuptools]")[1]
    return set(re.findall(r'"([\w.]+)"', section.split("packages = [")[1].split("]")[0]))


def test_every_folder_with_an_init_is_listed():
    found = set()
    for package, folder in FOLDERS.items():
        places = [place for place in shipped(ROOT / folder) if place.name == "__init__.py"]
        found |= {".".join((package, *place.parent.parts)) for place in places}
    assert found == listed_packages()


def test_every_folder_with_modules_has_an_init():
    for folder in FOLDERS.values():
        for path in shipped(ROOT / folder).values():
            assert (path.parent / "__init__.py").exists(), path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names of the files in a wheel of this checkout, built from a copy, as building leaves files behind."""
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path_factory.mktemp("checkout")
    for name in FOLDERS.values():
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(copy / done.stdout.splitlines()[-1]) as file:
        return [PurePosixPath(name) for name in file.namelist() if ".dist-info/" not in name]


def test_the_wheel_holds_all_that_is_imported_or_read_and_no_test(wheel):
    assert not [path for path in wheel if "tests" in path.parts or path.name.startswith(("test_", "conftest"))]
    wanted = {
        PurePosixPath(*package.split("."), *place.parts)
        for package, folder in FOLDERS.items()
        for place in shipped(ROOT / folder)
    }
    assert set(wheel) == wanted
    read = {path.name for path in wheel if path.suffix != ".py"}
    assert read == {"py.typed", "grids.json", "references.json", "page.html.j2"}


def test_the_console_script_is_the_cli():
    [script] = [script for script in entry_points(group="console_scripts") if script.name == "steptape"]
    assert script.value == "steptape.cli:main"
    assert script.load() is steptape.cli.main


@pytest.fixture
def pyproject():
    tomllib = pytest.importorskip("tomllib")
    return tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))


def pins(line):
    """The exact versions of a line of the table of versions."""
    return bounds_of(line["pins"], "==")


def bounds_of(requirements, operator):
    """The versions by the names of those requirements that have a bound with this operator."""
    found = {}
    for requirement in map(Requirement, requirements):
        for bound in requirement.specifier:
            if bound.operator == operator:
                found[requirement.name] = bound.version
    return found


def test_the_lower_bounds_are_the_oldest_versions_tested(pyproject):
    versions = pyproject["tool"]["steptape"]["versions"]
    extras = pyproject["project"]["optional-dependencies"]
    bounds = bounds_of([need for name in ("torch", "sde", "jax") for need in extras[name]], ">=")
    assert bounds == {name: number for lines in versions.values() for name, number in pins(lines[0]).items()}
    for lines in versions.values():
        for name, lowest in pins(lines[0]).items():
            assert Version(lowest) == min(Version(pins(line)[name]) for line in lines if name in pins(line))


def test_every_python_from_the_lowest_on_is_tested(pyproject):
    lines = [line for lines in pyproject["tool"]["steptape"]["versions"].values() for line in lines]
    minors = {Version(line["python"]).minor for line in lines}
    assert minors == set(range(min(minors), max(minors) + 1))
    assert pyproject["project"]["requires-python"] == f">=3.{min(minors)}"


def test_the_table_of_versions_and_the_readme_s_line(pyproject):
    page = (ROOT / "docs" / "support.md").read_text(encoding="utf-8")
    told = page.partition("## Versions")[2].partition("\n\n")[2].partition("\n\n")[0].splitlines()[2:]
    lines = [line for lines in pyproject["tool"]["steptape"]["versions"].values() for line in lines]
    want = [f"| {line['python']} | {', '.join(map(' '.join, pins(line).items()))} |" for line in lines]
    assert told == want
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for name in ("Python", "torch", "torchdiffeq", "torchsde", "jax", "diffrax"):
        tested = [line["python"] if name == "Python" else pins(line).get(name) for line in lines]
        numbers = sorted(filter(None, tested), key=Version)
        assert f"{name} {numbers[0]} to {numbers[-1]}" in readme


def test_the_tests_of_a_session_exist(pyproject):
    for paths in pyproject["tool"]["steptape"]["exact"].values():
        assert all((ROOT / path).exists() for path in paths)


def test_the_page_of_clients_names_the_versions_that_are_trained_with(pyproject):
    page = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    groups = pyproject["dependency-groups"]
    pinned = bounds_of([*groups["clients"], *groups["clients-alone"]], "==")
    clients = {name: number for name, number in pinned.items() if name != "torchtyping"}
    assert len(clients) == 4
    for name, number in clients.items():
        assert f"{name} {number}" in page
