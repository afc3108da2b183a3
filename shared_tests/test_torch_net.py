"""Whatever is drawn: ours is back-propagation's gradient through the same steps, or is refused in words.

``STEPTAPE_NET_EXAMPLES=2000`` draws so many, others each time; by default the same few dozen are drawn.
"""

import os

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings

from steptape import SteptapeError
from steptape.shared_tests import _torch_net as net

EXAMPLES = int(os.environ.get("STEPTAPE_NET_EXAMPLES", "0"))
pytestmark = [
    pytest.mark.filterwarnings("ignore:Functional iteration did not converge"),
    pytest.mark.filterwarnings("ignore:max_order is below"),
]


def drawn(few):
    return settings(
        max_examples=EXAMPLES or few,
        derandomize=not EXAMPLES,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        print_blob=True,
    )


@drawn(60)
@given(net.ode_calls())
def test_an_ode(call):
    expected = net.run_ode(call, ours=False)
    if said := net.refusal(call):
        with pytest.raises(SteptapeError, match=said):
            net.run_ode(call, ours=True)
        return
    found = net.run_ode(call, ours=True)
    event(f"{call.method}")
    assert torch.equal(found.solution.nan_to_num(), expected.solution.nan_to_num())
    assert found.hooks == expected.hooks
    # Steps of the host's own, and those of second derivatives, evaluate when the host does by construction.
    assert found.times[True] <= found.times[False] | expected.times[True]
    assert net.difference(found.gradients, expected.gradients) <= net.rounding(call, found)
