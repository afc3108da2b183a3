"""steptape for diffrax: pass ``adjoint=steptape.jax.AdaptiveCheckpointAdjoint()`` to ``diffeqsolve``."""

from steptape._compare.comparison import Comparison as Comparison
from steptape._doors import Installation as Installation
from steptape.jax._aca import AdaptiveCheckpointAdjoint as AdaptiveCheckpointAdjoint
from steptape.jax._compare.compare import compare as compare
from steptape.jax._install import install as install
from steptape.jax._quadrature import QuadratureAdjoint as QuadratureAdjoint
from steptape.jax._seminorm import SeminormAdjoint as SeminormAdjoint
