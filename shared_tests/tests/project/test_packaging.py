"""What pyproject.toml lists by hand: packages, of which a missing one would be left out in silence, and versions."""

import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import steptape.cli

ROOT = Path(__file__).resolve().parents[3]
PYPROJECT = ROOT / "pyproject.toml"
FOLDERS = {"steptape": "plugins", "steptape.compat": "compat", "steptape.shared_tests": "shared_tests"}

needs_checkout = pytest.mark.skipif(not PYPROJECT.exists(), reason="runs from a checkout")


def shipped(folder, pattern):
    """The files of a folder that match, without those of the tests."""
    return [path for path in (ROOT / folder).rglob(pattern) if ROOT / "shared_tests" / "tests" not in path.parents]


def listed_packages():
    """The strings of `packages = [...]`, read without tomllib, which Python 3.10 lacks."""
    section = PYPROJECT.read_text(encoding="utf-8").split("[tool.setuptools]")[1]
    return set(re.findall(r'"([\w.]+)"', section.split("packages = [")[1].split("]")[0]))


@needs_checkout
def test_every_folder_with_an_init_is_listed():
    found = set()
    for package, folder in FOLDERS.items():
        for init in shipped(folder, "__init__.py"):
            below = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join((package, *below)))
    assert found == listed_packages()


@needs_checkout
def test_every_folder_with_modules_has_an_init():
    for folder in FOLDERS.values():
        for module in shipped(folder, "*.py"):
            assert (module.parent / "__init__.py").exists(), module


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
    return dict(pin.split("==") for pin in line["pins"] if "==" in pin)


def parsed(version):
    return [int(part) for part in version.split(".")]


@needs_checkout
def test_the_lower_bounds_are_the_oldest_versions_tested(pyproject):
    versions = pyproject["tool"]["steptape"]["versions"]
    extras = pyproject["project"]["optional-dependencies"]
    bounds = dict(need.split(">=") for name in ("torch", "sde", "jax") for need in extras[name] if ">=" in need)
    assert bounds == {name: number for lines in versions.values() for name, number in pins(lines[0]).items()}
    for lines in versions.values():
        for name, lowest in pins(lines[0]).items():
            assert parsed(lowest) == min(parsed(pins(line)[name]) for line in lines if name in pins(line))


@needs_checkout
def test_every_python_from_the_lowest_on_is_tested(pyproject):
    lines = [line for lines in pyproject["tool"]["steptape"]["versions"].values() for line in lines]
    minors = {parsed(line["python"])[1] for line in lines}
    assert minors == set(range(min(minors), max(minors) + 1))
    assert pyproject["project"]["requires-python"] == f">=3.{min(minors)}"


@needs_checkout
def test_the_readme_s_table_of_versions(pyproject):
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Versions")[2].partition("\n\n")[2]
    told = table.partition("\n\n")[0].splitlines()[2:]
    lines = [line for lines in pyproject["tool"]["steptape"]["versions"].values() for line in lines]
    want = [f"| {line['python']} | {', '.join(map(' '.join, pins(line).items()))} |" for line in lines]
    assert told == want
