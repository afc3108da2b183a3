"""The types that this half's annotations are made of: what a tree of arrays stands for.

No dimension is named, so that a check of types at run time binds none. Where a tree may be filtered, with ``None`` in
place of the leaves left out, it is a ``PyTree`` of no particular leaves.
"""

from typing import Any, TypeAlias

import diffrax
from jaxtyping import Array, ArrayLike, Bool, Inexact, Int, PyTree, Shaped

Scalar = Inexact[Array, ""]
ScalarLike = Shaped[ArrayLike, ""]
IntScalar = Int[Array, ""]
IntScalarLike = Int[ArrayLike, ""]
BoolScalar = Bool[Array, ""]
BoolScalarLike = Bool[ArrayLike, ""]
Vector = Inexact[Array, " _"]
IntVector = Int[Array, " _"]

Y = PyTree[Shaped[ArrayLike, "..."]]  # a state
Cotangent = PyTree[Shaped[Array, "..."]]  # of a state: one array for each leaf
Gradient = PyTree[Shaped[Array, "..."]]  # with None for what has none
Args = PyTree[Any]  # what a user passes to the vector field
Terms = PyTree[diffrax.AbstractTerm]
Solver = PyTree[diffrax.AbstractSolver]
Controller = PyTree[diffrax.AbstractStepSizeController]
Rows = PyTree[Shaped[Array, "_ ..."]]  # one row for each of several values, along the first axis
Mask = PyTree[bool]  # true for some leaves of a tree of this structure
LoopState = PyTree[Any]  # diffrax's State: whole, filtered, or with flags or cotangents for leaves
SolverState = PyTree[Any]
DenseInfo = PyTree[Any]  # a step's, from which its solver's interpolation is made
Solved: TypeAlias = tuple[PyTree, dict[str, PyTree]]  # what diffrax expects of an adjoint: final state, statistics
HostArguments: TypeAlias = dict[str, Any]  # of a function of diffrax's, by name
