"""The same of the JAX half: what mypy and pyright know of its adjoints, and of diffrax's solution with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("diffrax")

import diffrax
import jax.numpy as jnp
from typing_extensions import assert_type

import steptape.jax
from steptape.jax import (
    AdaptiveCheckpointAdjoint,
    Comparison,
    Installation,
    QuadratureAdjoint,
    SeminormAdjoint,
    compare,
    install,
)


def solved(adjoint: diffrax.AbstractAdjoint, rate: Any = 1.0) -> diffrax.Solution:
    term = diffrax.ODETerm(lambda t, y, rate: -rate * y)
    return diffrax.diffeqsolve(term, diffrax.Euler(), 0.0, 1.0, 0.5, jnp.ones(2), rate, adjoint=adjoint)


def test_an_adjoint_is_one_of_diffrax_s():
    ours = [AdaptiveCheckpointAdjoint(2, graph="stage"), AdaptiveCheckpointAdjoint(checkpoints=None), SeminormAdjoint()]
    assert_type(solved(AdaptiveCheckpointAdjoint()), diffrax.Solution)
    assert all(isinstance(adjoint, diffrax.AbstractAdjoint) for adjoint in [*ours, QuadratureAdjoint(checkpoints=4)])


def test_the_rest_of_the_half():
    with install(AdaptiveCheckpointAdjoint(), override=True) as installed:
        assert isinstance(assert_type(installed, Installation), Installation)
    ways = ["AdaptiveCheckpointAdjoint()"]
    found = compare(lambda adjoint, rate: jnp.sum(jnp.asarray(solved(adjoint, rate).ys)), 1.0, ways=ways)
    assert isinstance(assert_type(found, Comparison).title, str)


if TYPE_CHECKING:
    steptape.jax.AdaptiveCheckpointAdjont()  # type: ignore[attr-defined]
    AdaptiveCheckpointAdjoint("many")  # type: ignore[arg-type]
    AdaptiveCheckpointAdjoint(checkpoint=3)  # type: ignore[call-arg]
    AdaptiveCheckpointAdjoint(graph="steps")  # type: ignore[arg-type]
    QuadratureAdjoint(checkpoints="many")  # type: ignore[arg-type]
    SeminormAdjoint(reduction="both")  # type: ignore[arg-type]
    solved(AdaptiveCheckpointAdjoint)  # type: ignore[arg-type]
    install("aca")  # type: ignore[arg-type]
    install(AdaptiveCheckpointAdjoint(), overrides=True)  # type: ignore[call-arg]
    compare("loss", 1.0)  # type: ignore[arg-type]
    compare(solved, 1.0, time_limit="a minute")  # type: ignore[arg-type]
