"""equinox's private names, each with the reason it is needed.

Looked up by feature, not by version: an equinox without one of them is refused with what is installed and what to do.
"""

from steptape.compat._unsupported import unsupported

try:
    from equinox.internal import nonbatchable as nonbatchable  # Asserts that loop counters stay unbatched under vmap.
    from equinox.internal import unvmap_any as unvmap_any  # "Any element of the batch", as one unbatched predicate.
    from equinox.internal import unvmap_max as unvmap_max  # The longest tape of a batch sets the trip count.
    from equinox.internal import while_loop as while_loop  # The loop diffrax expects inside a step.

    # Selects under vmap only, so an unbatched backward pass copies nothing.
    from equinox.internal._loop.common import _select_if_vmap as _select_if_vmap

    # Runs a loop body on plain arrays with diffrax's own treatment of buffers and vmap, so our loop is the host's loop.
    from equinox.internal._loop.common import common_rewrite as common_rewrite
except ImportError as error:
    raise unsupported("equinox", error, "jax") from error


def select_if_vmap(pred, x, y):
    """``x`` where ``pred``, else ``y``; an unbatched ``pred`` is known to be true and costs nothing."""
    return _select_if_vmap(pred, x, y, makes_false_steps=False)
