"""What is said of a way to a gradient that was tried on a case with a closed form: yes, wrong, refused or no."""

import math
import warnings
from collections.abc import Callable, Mapping

from benchmarks.envelope import Row
from benchmarks.ways import Absent

# One of the four, and why.
Verdict = tuple[str, str]


def verdict(error_of: Callable[[], float], bound: float = 1e-3, words: Callable[[Exception], str] = str) -> Verdict:
    """On what comes back with a relative error, which must be below ``bound``; ``words``: an exception's own."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            error = error_of()
    except Absent:
        return "no", ""
    except Exception as raised:
        return "refused", f"{type(raised).__name__}: {words(raised)}".splitlines()[0]
    if error < bound:
        return "yes", ""
    lost = "no gradient" if error == math.inf else f"off by {error:.2g}"
    return f"wrong: {lost}", lost


def row(name: str, tried: Mapping[str, Verdict]) -> Row:
    """The verdicts on a peer by case, and the reasons."""
    return {"peer": name, **{case: verdict for case, (verdict, _) in tried.items()}, "why": dict(tried)}
