"""What all tests share: programs that XLA compiled for one file are let go before the next; JAX promotes no dtype.

Each program maps memory of its own, of which a process may have so many pieces (65530 on Linux); without this one
worker has had more after some two thousand tests, and XLA aborted.
"""

import sys
from pathlib import Path

import pytest

# For `steptape_helpers`: at the end, so that nothing beside it hides anything.
sys.path.append(str(Path(__file__).parent))

from steptape_helpers.checkout import ROOT, stale


def pytest_configure(config):
    """Stop where the tests would judge another steptape than the one beside them."""
    told = "" if hasattr(config, "workerinput") else stale()
    if told:
        way_out = f"pip install {ROOT}, or once and for all pip install -e {ROOT}"
        pytest.exit(f"the steptape that is imported is not this checkout's: {told}; {way_out}", returncode=4)


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_are_let_go():
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(autouse=True, scope="module")
def _dtypes_are_promoted_by_no_one_but_us(request):
    """diffrax's own tests run so, and so does who follows its advice."""
    if not request.path.name.startswith("test_jax_"):
        yield
        return
    import jax

    with jax.numpy_dtype_promotion("strict"):
        yield
