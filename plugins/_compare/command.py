"""``steptape compare script.py:name``: a comparison that a function of a script describes."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steptape._compare.comparison import Comparison
from steptape._errors import OptionError


def described(target: str) -> Callable[[], Any]:
    """The function that ``script.py:name`` names; the script runs, but not as ``__main__``."""
    script, _, name = target.rpartition(":")
    if not script or not Path(script).is_file():
        raise OptionError(f"steptape compare {target}: no such file. Name a script and a function: script.py:name.")
    sys.path.insert(0, str(Path(script).resolve().parent))
    found = runpy.run_path(script, run_name="steptape_compare").get(name)
    if not callable(found):
        raise OptionError(f"steptape compare {target}: {script} defines no function {name!r}.")
    return found


def compared(target: str, call: Any, **options: Any) -> Comparison:
    """The comparison that the keyword arguments ``call`` are for, ``options`` in place of its own."""
    if not isinstance(call, dict) or not {"func", "sde", "loss"} & call.keys():
        raise OptionError(
            f"steptape compare {target}: must return the keyword arguments of steptape.torch.compare (func, y0, t, "
            "...) or compare_sde (sde, y0, ts, ...) as a dict, or for diffrax loss and inputs, a tuple."
        )
    call = {**call, **{name: value for name, value in options.items() if value is not None}}
    if "func" in call:
        from steptape.torch import compare as compare_in_torch

        return compare_in_torch(**call)
    if "sde" in call:
        from steptape.torch import compare_sde

        return compare_sde(**call)
    from steptape.jax import compare as compare_in_jax

    return compare_in_jax(call.pop("loss"), *call.pop("inputs", ()), **call)
