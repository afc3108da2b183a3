"""What all tests share: programs that XLA compiled for one file are let go before the next.

Each maps memory of its own, of which a process may have so many pieces (65530 on Linux); without this one worker has
had more after some two thousand tests, and XLA aborted.
"""

import sys

import pytest


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_are_let_go():
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
