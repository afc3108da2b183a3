"""The names of the ways to a gradient that the page asks for, without the frameworks that they need."""

HOST, HOST_ADJOINT, OURS = "odeint", "odeint_adjoint", "steptape"
GRAPHS = f'{OURS}, memory="graphs"'
COMPILED = f"{OURS}, compile=True"
RECURSIVE, ADAPTIVE = "RecursiveCheckpointAdjoint", "AdaptiveCheckpointAdjoint"
DEFAULT, REPLAY = f"{RECURSIVE}()", f"{ADAPTIVE}()"
BACKPROP = "back-propagation"
QUADRATURE = "quadrature"
# The base of the curves by framework: the host's own back-propagation.
BASE = {"torch": BACKPROP, "jax": "RecursiveCheckpoint"}
# The quadrature adjoint solves for a cotangent whose largest entry is 1, the hosts for that of a mean over n examples:
# with n times the absolute tolerance it is held to the same.
MATCHED = "quadrature, atol x n"
TASK_WAYS = ("default", "seminorm", "quadrature", MATCHED, "aca")


class Absent(Exception):
    """A way has no argument to ask for what it is to solve."""
