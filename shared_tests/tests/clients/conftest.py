"""What the tests of clients share: float64, and the table of what was measured. Only `nox -s clients` collects them."""

import pytest

from steptape_helpers.clients import MEASURED


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


def pytest_terminal_summary(terminalreporter):
    if MEASURED:
        terminalreporter.section("two steps of training with each client")
        for line in MEASURED:
            terminalreporter.line(str(line))
