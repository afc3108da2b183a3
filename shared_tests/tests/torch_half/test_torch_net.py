"""Whatever is drawn: ours is back-propagation's gradient through the same steps, or is refused in words.

By default the same few dozen calls are drawn; ``STEPTAPE_NET_EXAMPLES=2000`` draws so many, others each time.
"""

import os
import re

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from steptape import SteptapeError
from steptape_helpers import torch_net as net
from steptape_helpers import torch_net_uses as uses

EXAMPLES = int(os.environ.get("STEPTAPE_NET_EXAMPLES", "0"))
pytestmark = pytest.mark.filterwarnings("ignore:Functional iteration did not converge")
# Found by it: a backward step that happens to end at one of several points.
ENDS_AT_POINTS = net.OdeCall(
    weights="plain",
    method="dopri8",
    dtype=torch.float64,
    t_dtype=torch.float64,
    start=0.0,
    direction=1,
    outputs=1,
    frequency=6.2832,
    tolerance=1e-9,
    options={"first_step": 0.05, "min_step": 1e-6, "step_t": (0.21, 0.5), "jump_t": (0.37,)},
    keep={},
    event=True,
    is_tuple=False,
    second=False,
    moving=False,
    no_module=False,
    seed=1,
)


def drawn(few):
    return settings(
        max_examples=EXAMPLES or few,
        derandomize=not EXAMPLES,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        print_blob=True,
    )


def outcomes(run, call, refusal):
    """Of ours and of back-propagation; None if ours is refused as it may be, or the host cannot solve it at all."""
    try:
        expected = run(call, ours=False)
    except AssertionError as error:
        with pytest.raises(AssertionError, match=re.escape(str(error)[:20])):
            run(call, ours=True)
        return None
    try:
        found = run(call, ours=True)
    except SteptapeError as error:
        if refusal is None or not re.search(refusal[0], str(error)):
            raise
        return None
    assert refusal is None or not refusal[1]
    return found, expected


def check(call, found, expected):
    assert torch.equal(found.solution.nan_to_num(), expected.solution.nan_to_num())
    assert found.hooks == expected.hooks
    for different, allowed in net.differ(call, found, expected):
        assert different <= allowed


@drawn(44)
@given(net.ode_calls())
def test_an_ode(call):
    pair = outcomes(net.run_ode, call, net.refusal(call))
    if pair:
        check(call, *pair)
        # A func that differentiates inside has a graph in the forward pass as well, and so have kept graphs; of one
        # that keeps something, another evaluation shows whether it is of use to the next.
        apart = call.weights in ("potential", "cached", "kept in a dict", "noise once") or "memory" in call.keep
        assert apart or pair[0].times[True] <= pair[0].times[False]


@drawn(10)
@example(ENDS_AT_POINTS)
@given(net.quadrature_calls())
def test_a_continuous_adjoint(call):
    """At a tolerance of 1e-9, where the gradient of the ODE is that of its steps to 1e-5.

    An event's state, and an output as a function of its time, are the host's dense output, whose order is less: the
    quadrature's derivative in time is that of the ODE.
    """

    def run(call, ours):
        return net.run_ode(call, ours, adjoint_method="quadrature")

    pair = outcomes(run, call, net.refusal(call))
    if pair:
        found, expected = pair
        assert torch.equal(found.solution, expected.solution)
        assert found.hooks == expected.hooks
        assert net.difference(found.gradients, expected.gradients) <= (1e-4 if call.event else 1e-5)
        if call.moving:
            assert net.difference(found.in_time, expected.in_time) <= 1e-2


@drawn(40)
@given(st.data())
def test_an_sde(data):
    pytest.importorskip("torchsde")
    from steptape_helpers import torch_net_sde as sde_net

    call = data.draw(sde_net.sde_calls())
    pair = outcomes(sde_net.run_sde, call, None)
    if pair:
        check(call, *pair)
        assert "memory" in call.keep or pair[0].times[True] <= pair[0].times[False]


@drawn(16)
@given(uses.programs())
def test_what_is_around_solves(program):
    """State that evaluations change, other solves before and after, and each way to call one and to pull through it."""
    expected = uses.run(program, ours=False)
    try:
        found = uses.run(program, ours=True)
    except SteptapeError:
        if not uses.may_be_refused(program):
            raise
        return
    assert all(map(torch.equal, found.solutions, expected.solutions))
    assert all(torch.equal(found.state[name], x) for name, x in expected.state.items())
    known = uses.have_gradients(program, found, expected)
    gradients = ([g for g, has in zip(gs, known, strict=True) if has] for gs in (found.gradients, expected.gradients))
    assert net.difference(*gradients) <= 200 * torch.finfo(program.dtype).eps
