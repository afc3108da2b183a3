"""The rooms of shared_tests import downwards alone, and nothing that ships imports a test."""

import ast

import pytest

from steptape_helpers.checkout import ROOT, shipped

ROOMS = ("report", "parity", "backends", "oracles", "problems")
PREFIX = "steptape.shared_tests."


def imported(path):
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_those_below_it(room):
    allowed = ROOMS[ROOMS.index(room) :]
    paths = [path for path in shipped(ROOT / "shared_tests" / room).values() if path.suffix == ".py"]
    assert paths
    for path in paths:
        for module in imported(path):
            assert not module.startswith(PREFIX) or module.removeprefix(PREFIX).split(".")[0] in allowed, path
            assert not module.startswith("steptape_helpers"), path
