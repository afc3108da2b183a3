"""steptape: exact gradients for the ODE libraries you already use, by replaying the accepted steps.

The framework halves are ``steptape.torch`` (torchdiffeq, torchsde) and ``steptape.jax`` (diffrax); importing this
package imports neither framework.
"""

from importlib.metadata import version as _version

from steptape._errors import GradientError as GradientError
from steptape._errors import HostChangedError as HostChangedError
from steptape._errors import OptionError as OptionError
from steptape._errors import SteptapeError as SteptapeError
from steptape._errors import SteptapeWarning as SteptapeWarning
from steptape._errors import UnsupportedError as UnsupportedError
from steptape._errors import UnsupportedHostVersion as UnsupportedHostVersion

__version__ = _version("steptape")
