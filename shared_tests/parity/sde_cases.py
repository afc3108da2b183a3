"""The SDE runs of a parity report."""

from steptape.shared_tests.backends.backends import METHODS, Case
from steptape.shared_tests.backends.sde_schemes import SCHEMES, STEPS, solves_sdes
from steptape.shared_tests.problems.sde_problems import SDE_PROBLEMS

_QUICK = {"gbm": ("euler", "heun")}


def default_sdes(quick: bool) -> tuple[str, ...]:
    """Return the SDEs that a report covers where none are named."""
    return tuple(_QUICK) if quick else tuple(SDE_PROBLEMS)


def sde_cases(backend: str, problems: tuple[str, ...], quick: bool) -> list[Case]:
    """Return the cases of one backend: ACA and the host's own back-propagation, at every step size."""
    if not solves_sdes(backend):
        return []
    ours = next(method for method in METHODS[backend] if method.oracle)
    return [
        Case(name, method, scheme.name, step=step)
        for name in problems
        for scheme in SCHEMES.values()
        if scheme.solves(SDE_PROBLEMS[name]) and not (quick and scheme.name not in _QUICK.get(name, SCHEMES))
        for method in (ours.name, ours.oracle)
        for step in (STEPS if SDE_PROBLEMS[name].closed_form else STEPS[2:3])
    ]
