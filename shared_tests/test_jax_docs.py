"""The JAX half's docstrings and rooms: examples run, headings come in one order, and a room imports from below only."""

import ast
import doctest
import inspect
import re
from pathlib import Path

import pytest

import steptape.jax

ADJOINTS = [
    steptape.jax.AdaptiveCheckpointAdjoint,
    steptape.jax.QuadratureAdjoint,
    steptape.jax.SeminormAdjoint,
]
HEADINGS = ["Args", "Returns", "Exact", "Approximate", "Memory", "Supports", "Raises", "Source", "Example"]
ROOMS = ["_types", "_autodiff", "_tape", "_replay", "_continuous", "_aca _quadrature _seminorm", "__init__"]


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_an_adjoint_s_example_runs(adjoint):
    (example,) = doctest.DocTestFinder(recurse=False).find(adjoint, adjoint.__name__)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_an_adjoint_s_headings_come_in_one_order(adjoint):
    found = re.findall(r"^(\w+):$", inspect.getdoc(adjoint), re.MULTILINE)
    assert found == [heading for heading in HEADINGS if heading in found]
    assert {"Args", "Memory", "Supports", "Raises", "Source", "Example"} <= set(found)


def test_a_room_imports_from_those_below_it_alone():
    floor = {name: level for level, names in enumerate(ROOMS) for name in names.split()}
    folder = Path(steptape.jax.__file__).parent
    above = {}
    for path in folder.rglob("*.py"):
        room = path.relative_to(folder).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("steptape.jax."):
                other = node.module.split(".")[2]
                if floor[other] >= floor[room] and not (other == room and path.parent != folder):
                    above[path.name] = node.module
    assert above == {}
