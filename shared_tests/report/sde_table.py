"""The rows of the SDE table of a parity report."""

from dataclasses import dataclass
from itertools import groupby

from steptape.shared_tests.parity.promises import Check
from steptape.shared_tests.parity.sde_compare import SdeSeries

SDE_COLUMNS = ("scheme", "torch", "jax", "same path", "error", "order", "theory", "status")
SDE_LEGEND = (
    "Gradients of aca in y0 and params on one Brownian path. torch, jax: largest difference to the back-propagation of "
    "torchsde and of diffrax. same path: between the two frameworks. error: at the smallest step, against the closed "
    "form on that path. order: how fast this error falls with the step; theory: the scheme's strong order."
)


@dataclass(frozen=True)
class SdeRow:
    """One line of the table: a scheme on a problem, in both frameworks. None means nothing to show."""

    problem: str
    scheme: str
    host_errors: dict[str, float | None]
    cross_error: float | None
    closed_form_error: float | None
    order: float | None
    expected_order: float
    status: str
    failing: bool

    def cells(self, indent: str = "") -> tuple[str, ...]:
        """Return what the line shows, in the order of the columns."""
        errors = (self.host_errors.get("torch"), self.host_errors.get("jax"), self.cross_error, self.closed_form_error)
        return (
            f"{indent}{self.scheme}",
            *("" if error is None else f"{error:.1e}" for error in errors),
            *(("", "") if self.order is None else (f"{self.order:.2f}", f"{self.expected_order:g}")),
            self.status,
        )


def make_sde_rows(series: list[SdeSeries], checks: list[Check]) -> list[SdeRow]:
    """Return the lines of the table, by problem and scheme."""
    groups = groupby(series, key=lambda one: (one.problem, one.scheme))
    return [_make_row(list(group), checks) for _, group in groups]


def _make_row(group: list[SdeSeries], checks: list[Check]) -> SdeRow:
    """Return the line of one scheme; error and order are those of the first framework that has them."""
    first = group[0]
    shown = next((one for one in group if one.points), first)
    place = (first.problem, first.setting)
    broken = any(not check.holds for check in checks if (check.problem, check.setting) == place)
    judged = all(one.host_difference is not None for one in group)
    return SdeRow(
        first.problem,
        first.scheme,
        {one.backend: one.host_difference for one in group},
        first.cross_difference,
        shown.points[-1][1] if shown.points else None,
        shown.order,
        shown.expected_order,
        "BROKEN" if broken else "exact" if judged else "unjudged",
        broken,
    )
