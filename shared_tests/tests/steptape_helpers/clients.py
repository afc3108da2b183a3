"""Packages that call the hosts: whether they are there, and what was measured with them."""

from __future__ import annotations

import dataclasses
import importlib
import os
from types import ModuleType

import pytest


def installed(name: str) -> ModuleType:
    """Return a client's module; without it the tests are skipped, in `nox -s clients` they fail."""
    if os.environ.get("STEPTAPE_TEST_CLIENTS"):
        return importlib.import_module(name)
    return pytest.importorskip(
        name, reason=f"{name} is not installed; `nox -s clients` installs it", exc_type=Exception
    )


@dataclasses.dataclass(frozen=True)
class Measured:
    """A line of the table that the tests end with: how far two steps of training are from back-propagation's."""

    client: str
    difference: float
    solves: str
    held: str = ""
    unheld: str = ""

    def __str__(self) -> str:
        bytes_held = f"; held {self.held}, by back-propagation {self.unheld}" if self.held else ""
        return f"{self.client}: gradients {self.difference:.1e} apart; {self.solves}{bytes_held}"


MEASURED: list[Measured] = []
