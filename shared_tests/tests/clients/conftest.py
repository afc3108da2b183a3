"""What the tests of clients share: float64, and the table of what was measured. Only `nox -s clients` collects them."""

import pytest

from steptape_helpers.clients import MEASURED

LINES = []


@pytest.fixture(autouse=True)
def _float64(request):
    if request.path.name.startswith("test_jax_"):
        import jax

        with jax.enable_x64(True):
            yield
        return
    import torch

    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def _measured(record_property):
    yield
    while MEASURED:
        record_property("measured", str(MEASURED.pop(0)))


def pytest_runtest_logreport(report):
    """Gather what the workers have measured."""
    if report.when == "teardown":
        LINES.extend(line for name, line in report.user_properties if name == "measured")


def pytest_terminal_summary(terminalreporter):
    """Print the table."""
    if LINES:
        terminalreporter.section("two steps of training with each client")
        for line in sorted(LINES):
            terminalreporter.line(line)
