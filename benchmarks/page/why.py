"""Why a peer takes less than the replay somewhere, and whether that could be ours: a sentence a kind and peer."""

import re
from collections.abc import Mapping

COLUMN = "why, and whether it could be ours"
_GRAPHS = 'It keeps its graphs and evaluates nothing twice: that is ours with `memory="graphs"`.'
_CHEAP = "It takes steps of its own back, to a tolerance, which no exact way can: ours of that kind is the seminorm."
_SHORT = (
    "Its own solver's loop is shorter than torchdiffeq's: not ours while the solution is torchdiffeq's, bit for bit."
)
_SMALL = "Where a step on a few numbers costs next to nothing, what a replay keeps of it shows: could be ours."
_FORWARD = "It knows no reverse mode, so that nothing is kept for one: not ours, which must know each when asked."
_STAGE = 'It keeps fewer states and one evaluation\'s graph at a time: ours with `checkpoints=k` and `graph="stage"`.'
_BACK = (
    "It keeps no step and solves the state backward again, which is not exact and can diverge: an exact way holds "
    'states, as few as `checkpoints=k` says, and the graph of a step, or of an evaluation with `graph="stage"`.'
)
_OF_ODE = "It solves for the ODE's own gradient, a replay for the solution's; ours for the former is the quadrature."
_OTHER = (
    "It differentiates another discrete solution, here by chance closer to the ODE's: nothing that ours could gain."
)
# The first that fits a kind and a peer's name.
_RULES = (
    ("time", "back-propagation|odeint$|sdeint$|Direct", _GRAPHS),
    ("time", "ForwardMode", _FORWARD),
    ("time", "torchdyn|torchode|through the search", _SHORT),
    ("time", "Recursive", _SMALL),
    ("time", "zuko|djoint|Backsolve", _CHEAP),
    ("memory", "Recursive", _STAGE),
    ("memory", "zuko|djoint|acksolve", _BACK),
    ("error", "autograd|back-propagation|odeint$|through", _OTHER),
    ("error", "zuko|djoint|acksolve", _OF_ODE),
)


def why(row: Mapping[str, str]) -> str:
    """The sentence for a row of where a peer is better."""
    return next((words for kind, peer, words in _RULES if kind == row["less of"] and re.search(peer, row["peer"])), "")
