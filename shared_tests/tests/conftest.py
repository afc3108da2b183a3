"""What all tests share: programs that XLA compiled for one file are let go before the next; JAX promotes no dtype.

Each program maps memory of its own, of which a process may have so many pieces (65530 on Linux); without this one
worker has had more after some two thousand tests, and XLA aborted.

What is marked ``full`` is of ``nox -s full``, and runs by default nowhere. ``by_default(where=...)`` on a test of a
product of parameters says of which of them it runs by default; ``by_default(every=k)``: where the places of the values
sum to a multiple of k, so that each value still meets some of the others. The rest is ``full``; with
``rest="elsewhere"`` another test of the default ones, or of the full, holds the same, and it runs only where one file
has to hold all: in ``nox -s minimums`` and ``nox -s matrix``. A test may have both, of which the latter counts.

``--part=k/n`` runs every nth of the chosen tests, from the kth on: of ``nox -s full``, CI runs a third at a time.

``--device cuda`` makes the tensors of the PyTorch half's exact tests on a GPU; what is marked ``cuda`` runs where there
is one.
"""

import gc
import inspect
import sys
from pathlib import Path

import pytest

# For `steptape_helpers`: at the end, so that nothing beside it hides anything.
sys.path.append(str(Path(__file__).parent))

from steptape_helpers.checkout import ROOT, stale

# Tracing makes many objects that live on: at the default thresholds, to look for garbage is a sixth of the JAX tests.
gc.set_threshold(100_000, 20, 50)


def pytest_addoption(parser):
    """Where tensors are made that the tests put nowhere themselves, and which of the tests run."""
    parser.addoption("--device", default="cpu", help="of the tensors of the PyTorch half's exact tests")
    parser.addoption("--part", default="1/1", metavar="K/N", help="run every Nth of the chosen tests, from the Kth on")


def pytest_runtest_setup(item):
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("cuda"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")


def pytest_itemcollected(item):
    """Mark as ``full``, or as the test says, what its ``by_default`` leaves out."""
    for mark in item.iter_markers("by_default"):
        every, where = mark.kwargs.get("every", 1), mark.kwargs.get("where", lambda: True)
        given = {name: item.callspec.params[name] for name in inspect.signature(where).parameters}
        places = [_place(product, item.callspec.params) for product in item.iter_markers("parametrize")]
        if sum(places) % every or not where(**given):
            item.add_marker(mark.kwargs.get("rest", "full"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Leave out, after what marks and names leave out, all that is not of the part that was asked for."""
    k, n = map(int, config.getoption("part").split("/"))
    chosen = items[k - 1 :: n]
    config.hook.pytest_deselected(items=[item for i, item in enumerate(items) if i % n != k - 1])
    items[:] = chosen


def _place(product, given):
    """Which of the values of a ``parametrize`` a test has."""
    names = product.args[0].replace(",", " ").split() if isinstance(product.args[0], str) else product.args[0]
    for place, value in enumerate(product.args[1]):
        if isinstance(value, type(pytest.param())):
            value = value.values
        elif len(names) == 1:
            value = (value,)
        if all(given[name] is x for name, x in zip(names, value, strict=True)):
            return place
    raise LookupError(names)


def pytest_collection_finish():
    """All hosts are imported by now: a million objects that no search for garbage need walk again."""
    gc.collect()
    gc.freeze()


def pytest_configure(config):
    """Stop where the tests would judge another steptape than the one beside them."""
    told = "" if hasattr(config, "workerinput") else stale()
    if (device := config.getoption("device")) != "cpu":
        import torch

        # Before the tests are imported, which make some of their tensors then.
        torch.set_default_device(device)
    if told:
        way_out = f"pip install {ROOT}, or once and for all pip install -e {ROOT}"
        pytest.exit(f"the steptape that is imported is not this checkout's: {told}; {way_out}", returncode=4)


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_are_let_go():
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture(autouse=True, scope="module")
def _dtypes_are_promoted_by_no_one_but_us(request):
    """diffrax's own tests run so, and so does who follows its advice."""
    if not request.path.name.startswith("test_jax_"):
        yield
        return
    import jax

    with jax.numpy_dtype_promotion("strict"):
        yield
