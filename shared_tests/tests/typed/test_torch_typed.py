"""What a type checker knows of the calls: `nox -s types` reads this file by mypy and by pyright.

The calls that are right run here as well, and return what they are said to. A wrong one that a checker lets pass is an
ignore of nothing, which is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torchdiffeq")

import torch
from torch import Tensor
from typing_extensions import assert_type

import steptape.torch
from steptape.torch import (
    Comparison,
    Installation,
    Seminorm,
    Solves,
    compare,
    install,
    odeint_adjoint,
    record_solves,
    seminorm,
)

Y0, T = torch.ones(2, requires_grad=True), torch.tensor([0.0, 1.0])
Pair = tuple[Tensor, Tensor]


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


class Decay(torch.nn.Module):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -y


def of_pair(t: Tensor, y: Pair) -> Pair:
    return -y[0], y[0]


def half(t: Tensor, y: Tensor) -> Tensor:
    return y[0] - 0.5


def half_of_pair(t: Tensor, y: Pair) -> Tensor:
    return half(t, y[0])


def test_the_solution_of_a_tensor_is_a_tensor():
    ys = odeint_adjoint(decay, Y0, T, rtol=1e-3, method="dopri5", adjoint_method="aca")
    assert isinstance(assert_type(ys, Tensor), Tensor)
    assert_type(odeint_adjoint(Decay(), Y0, T, adjoint_method="quadrature"), Tensor)
    assert_type(odeint_adjoint(lambda t, y: -y, Y0, T, adjoint_method="aca"), Tensor)


def test_the_solution_of_a_tuple_is_a_tuple():
    ys = odeint_adjoint(of_pair, (Y0, Y0), T, rtol=(1e-3, 1e-2), adjoint_method="aca")
    assert isinstance(assert_type(ys, tuple[Tensor, ...]), tuple)


def test_an_event_has_its_time():
    found = odeint_adjoint(decay, Y0, T, event_fn=half, adjoint_method="aca")
    time, ys = assert_type(found, tuple[Tensor, Tensor])
    assert isinstance(time, Tensor)
    assert isinstance(ys, Tensor)


def test_an_event_of_a_tuple_has_its_time():
    found = odeint_adjoint(of_pair, (Y0, Y0), T, event_fn=half_of_pair, adjoint_method="aca")
    time, (y, _) = assert_type(found, tuple[Tensor, tuple[Tensor, ...]])
    assert isinstance(time, Tensor)
    assert isinstance(y, Tensor)


@pytest.mark.parametrize("event", [None, half])
def test_a_call_that_may_have_an_event_returns_either(event: Callable[[Tensor, Tensor], Tensor] | None):
    found = odeint_adjoint(decay, Y0, T, event_fn=event, adjoint_method="aca")
    assert isinstance(assert_type(found, Tensor | tuple[Tensor, Tensor]), Tensor if event is None else tuple)


def test_the_rest_of_the_half():
    with record_solves() as solves, install() as installed:
        ys = odeint_adjoint(decay, Y0, T, adjoint_method="aca", adjoint_options={"checkpoints": 2})
    assert isinstance(assert_type(solves, Solves)[0].method, str)
    assert isinstance(assert_type(installed, Installation), Installation)
    assert isinstance(assert_type(seminorm((ys, ys)), Seminorm), Seminorm)
    found = assert_type(compare(decay, Y0, T, loss=lambda ys: ys.sum(), ways=["aca"]), Comparison)
    assert isinstance(assert_type(found.advice("1 GiB"), str), str)


def test_an_sde_s_solution_has_what_was_asked_for():
    torchsde = pytest.importorskip("torchsde")
    from steptape.torch import sdeint_adjoint

    class Growth(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t: Tensor, y: Tensor) -> Tensor:
            return y

        h = g = f

    y0, dt = torch.ones(1, 1), 0.5
    bm = torchsde.BrownianInterval(0.0, 1.0, size=(1, 1))
    ys = assert_type(sdeint_adjoint(Growth(), y0, T, bm, method="euler", dt=dt, adjoint_method="aca"), Tensor)
    assert isinstance(ys, Tensor)
    pair = sdeint_adjoint(Growth(), y0, [0.0, 1.0], dt=dt, logqp=True, adjoint_method="aca")
    assert isinstance(assert_type(pair, tuple[Tensor, Tensor])[1], Tensor)
    more = sdeint_adjoint(Growth(), y0, T, dt=dt, extra=True, adjoint_method="aca")
    assert isinstance(assert_type(more, tuple[Tensor, tuple[Tensor, ...]])[1], tuple)
    all_ = sdeint_adjoint(Growth(), y0, T, dt=dt, logqp=True, extra=True, adjoint_method="aca")
    assert isinstance(assert_type(all_, tuple[Tensor, Tensor, tuple[Tensor, ...]])[2], tuple)


if TYPE_CHECKING:
    from steptape.torch import sdeint_adjoint

    steptape.torch.odeint_adjont(decay, Y0, T)  # type: ignore[attr-defined]
    odeint_adjoint(3, Y0, T)  # type: ignore[call-overload]
    odeint_adjoint(decay, [1.0, 2.0], T)  # type: ignore[call-overload]
    odeint_adjoint(decay, 1.0, T)  # type: ignore[call-overload]
    odeint_adjoint(decay, Y0, [0.0, 1.0])  # type: ignore[call-overload]
    odeint_adjoint(decay, Y0, T, 1e-3)  # type: ignore[call-overload]
    odeint_adjoint(decay, Y0, T, adjoint_metod="aca")  # type: ignore[call-overload]
    odeint_adjoint(decay, Y0, T, adjoint_method=3)  # type: ignore[call-overload]
    odeint_adjoint(decay, Y0, T, adjoint_options="graphs")  # type: ignore[call-overload]
    odeint_adjoint(decay, Y0, T, adjoint_params=Y0.shape)  # type: ignore[arg-type]
    odeint_adjoint(decay, Y0, T, event_fn=0.5)  # type: ignore[call-overload]
    odeint_adjoint(decay, (Y0, Y0), T)  # type: ignore[arg-type]
    odeint_adjoint(decay, Y0, T, adjoint_method="aca").grads()  # type: ignore[attr-defined]
    odeint_adjoint(decay, Y0, T, event_fn=half).sum()  # type: ignore[attr-defined]
    sdeint_adjoint(torch.nn.Module(), Y0, 1.0)  # type: ignore[call-overload]
    sdeint_adjoint(torch.nn.Module(), (Y0, Y0), T)  # type: ignore[call-overload]
    sdeint_adjoint(torch.nn.Module(), Y0, T, logqp="yes")  # type: ignore[call-overload]
    sdeint_adjoint(torch.nn.Module(), Y0, T, adjoint_metod="aca")  # type: ignore[call-overload]
    seminorm(Y0, reduction="mean")  # type: ignore[arg-type]
    install("acca")  # type: ignore[arg-type]
    install(adjoint_options=3)  # type: ignore[arg-type]
    compare(decay, Y0, T, loss="sum")  # type: ignore[arg-type]
    compare(decay, Y0, T, time_limit="a minute")  # type: ignore[arg-type]
