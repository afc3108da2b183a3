"""A net over what people draw, not over what we thought of: solves at random, against the host's own differentiation.

A structure is a program: dtypes, solver, controller, output, event, memory, transform. It is compiled once, with the
host's gradient and ours in it, and run for many values: times far from zero, fields that turn faster than the steps
resolve, coefficients, states. ``STEPTAPE_NET_EXAMPLES=2000`` draws so many; the default is two dozen, a quarter of them
outside of ``nox -s full``.

The oracle is ``DirectAdjoint``, or ``RecursiveCheckpointAdjoint`` with as many checkpoints as steps. So many want XLA
at level 1 or as it is: at level 0 the host's gradient rounds times far from zero otherwise than its solution.
"""

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steptape.shared_tests.oracles.distance import largest
from steptape_helpers.jax_net import Structure, compiled, same, tolerance

EXAMPLES = int(os.environ.get("STEPTAPE_NET_EXAMPLES", "24"))
# So many values for each program: what costs is to compile it.
EACH = 6 if EXAMPLES <= 100 else 80
FIRST = int(os.environ.get("STEPTAPE_NET_FIRST", "0"))
SEEDS = range(FIRST, FIRST + max(1, EXAMPLES // EACH))


def _values():
    unit = st.floats(-1, 1, allow_subnormal=False, width=32)
    return st.fixed_dictionaries(
        {
            "far": st.sampled_from([0.0, 0.0, 1.0, -3.7, 300.0, 1000.0, -1000.0, 10000.0]),
            "t0": unit,
            "span": st.floats(0.25, 1, width=32),
            "turns": st.sampled_from([0.1, 1.0, 5.0, 30.0]),
            "y0": st.lists(unit, min_size=3, max_size=3),
            "args": st.lists(unit, min_size=4, max_size=4),
            "key": st.integers(0, 1000),
        }
    )


@pytest.mark.by_default(where=lambda seed: seed == FIRST or EXAMPLES > 24)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_solve_at_random_has_the_hosts_solution_and_gradient(seed):
    structure = Structure.drawn(seed)
    run = compiled(structure)

    @settings(
        max_examples=EACH,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(_values())
    def holds(values):
        ours, host = run(values)
        assert same(ours.solution, host.solution), (structure, "another solution")
        for names in _alike(host.gradients):
            allowed = tolerance(structure, names[0], values["far"])
            got, want = (np.concatenate([x.gradients[name] for name in names]) for x in (ours, host))
            assert _distance(got, want, _scale(names[0], values)) <= allowed, (structure, names, got, want)

    holds()


def _alike(gradients):
    """Groups of names: the derivatives of the three times are differences of the same terms, one for each step."""

    def of_a_time(name):
        return name.removeprefix("second in ") in ("t0", "t1", "dt0")

    times = [name for name in gradients if of_a_time(name)]
    seconds = [name for name in times if name.startswith("second")]
    groups = [[name for name in times if name not in seconds], seconds]
    return [group for group in groups if group] + [[name] for name in gradients if not of_a_time(name)]


def _scale(name, values):
    """What the terms of a derivative measure that are summed to it: a sum may be smaller, and is as rounded."""
    late, fast = 1 + abs(values["far"]), 1 + 6 * values["turns"]
    scale = 0.01 * (late if "turns" in name else 1)
    return scale * late * fast if name.startswith("second") else scale


def _distance(got, want, scale):
    """The largest difference, relative to the largest entry or to ``scale``; no number must be none in both."""
    if not np.all(np.isfinite(want)):
        return 0.0 if np.array_equal(np.isfinite(got), np.isfinite(want)) else np.inf
    return largest(got, want, floor=scale)
