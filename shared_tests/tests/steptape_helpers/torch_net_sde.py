"""Calls of sdeint as people write them, drawn at random, and what they give with either gradient."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import torch
import torch.nn.utils.parametrizations as parametrizations
import torch.nn.utils.parametrize as parametrize
import torchsde
from hypothesis import strategies as st
from torch import Tensor

from steptape.torch import sdeint_adjoint
from steptape_helpers import sde_problems as sdes
from steptape_helpers.torch_net import Outcome, gradients_of

WEIGHTS = ("plain", "doubled by a hook", "clipped by a hook", "weight norm", "dropout", "frozen", "cached")


@dataclasses.dataclass(frozen=True)
class SdeCall:
    """One call of sdeint."""

    weights: str
    case: sdes.Case
    dtype: torch.dtype
    t_dtype: torch.dtype
    start: float
    outputs: int
    frequency: float
    dt: float
    adaptive: bool
    keep: dict[str, Any]
    logqp: bool
    second: bool
    seed: int
    moving: bool = False


class Sde(sdes.Sde):
    """The tests' SDE, driven at a frequency; notes when its drift is evaluated."""

    def __init__(self, call: SdeCall):
        dropout = 0.3 if call.weights == "dropout" else 0.0
        super().__init__(call.case.sde_type, call.case.noise_type, call.dtype, dropout)
        self.frequency = call.frequency
        self.v = torch.nn.Parameter(torch.linspace(0.5, 1.0, sdes.STATE, dtype=call.dtype))
        self.times: dict[bool, set[float]] = {True: set(), False: set()}
        self.calls = 0
        self.weights = call.weights
        if call.weights in ("weight norm", "cached"):
            parametrizations.weight_norm(self.drift[0])
        if call.weights == "frozen":
            self.drift[0].bias.requires_grad_(False)
        if call.weights.endswith("hook"):
            for name, p in self.named_parameters():
                if call.logqp or not name.startswith("prior"):
                    p.register_hook(self._hook)

    def _hook(self, gradient: Tensor) -> Tensor:
        self.calls += 1
        return 2 * gradient if self.weights.startswith("doubled") else gradient.clamp(-0.1, 0.1)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        self.times[y.requires_grad and torch.is_grad_enabled()].add(t.item())
        return super().f(t, y) + self.v * torch.cos(self.frequency * t).to(self.v.dtype)


@st.composite
def sde_calls(draw: Any) -> SdeCall:
    """Any of them, as far as the host takes it."""
    case = draw(st.sampled_from(list(sdes.cases())))
    weights = draw(st.sampled_from(WEIGHTS))
    adaptive = case.method in ("euler", "milstein", "midpoint", "heun") and draw(st.integers(0, 3)) == 0
    return SdeCall(
        weights=weights,
        case=case,
        dtype=draw(st.sampled_from([torch.float64, torch.float32])),
        t_dtype=draw(st.sampled_from([torch.float64, torch.float32])),
        start=draw(st.sampled_from([0.0, 0.3, -7.0, 300.0])),
        outputs=draw(st.integers(1, 4)),
        frequency=draw(st.sampled_from([1.0, 6.2832, 40.0])),
        dt=draw(st.sampled_from([0.1, 0.17, 0.5])),
        adaptive=adaptive,
        keep=draw(st.sampled_from([{}, {"memory": "graphs"}, *({"checkpoints": k} for k in range(1, 5))])),
        logqp=case.noise_type == "diagonal" and case.sde_type == "ito" and draw(st.integers(0, 3)) == 0,
        second=not adaptive and draw(st.integers(0, 4)) == 0,
        seed=draw(st.integers(0, 2**20)),
    )


def run_sde(call: SdeCall, ours: bool) -> Outcome:
    """The call, by back-propagation through the host or by ours."""
    torch.manual_seed(call.seed)
    sde = Sde(call)
    y0 = torch.randn(sdes.BATCH, sdes.STATE).to(call.dtype).requires_grad_()
    ts = call.start + torch.linspace(0, 0.7, call.outputs + 1, dtype=call.t_dtype)
    size = (sdes.BATCH, sdes.CHANNELS[call.case.noise_type] + call.logqp)
    levy = sdes.LEVY.get(call.case.method, "none")
    bm = torchsde.BrownianInterval(
        ts[0], ts[-1], size=size, entropy=call.seed, dtype=call.dtype, levy_area_approximation=levy
    )
    settings = {"bm": bm, "method": call.case.method, "options": dict(call.case.options), "dt": call.dt}
    settings |= {"adaptive": call.adaptive, "rtol": 1e-2, "atol": 1e-2, "dt_min": 0.02, "logqp": call.logqp}
    if ours:
        settings |= {"adjoint_method": "aca", "adjoint_options": call.keep}
    inputs = [y0, *(p for p in sde.parameters() if p.requires_grad)]
    with parametrize.cached() if call.weights == "cached" else contextlib.nullcontext():
        returned = (sdeint_adjoint if ours else torchsde.sdeint)(sde, y0, ts, **settings)
        solution = torch.cat([x.reshape(-1) for x in (returned if isinstance(returned, tuple) else (returned,))])
        gradients = gradients_of(solution, inputs, call.second)
    return Outcome(solution.detach(), gradients, [], sde.calls, sde.times)
