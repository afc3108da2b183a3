"""What the installations say of calls that do not ask for an adjoint of ours themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from steptape._doors import Installations
from steptape._errors import GradientError, OptionError, UnsupportedError

INSTALLATIONS = Installations("steptape.torch.odeint_adjoint")


@dataclasses.dataclass(frozen=True)
class Setting:
    """The arguments of an ``install()`` with a default."""

    default: str
    adjoint_options: dict[str, Any]
    override: bool

    def takes(self, adjoint_method: Any, of_hosts: Any) -> bool:
        """Whether a call of an adjoint function takes the default. ``of_hosts``: the names of the host's adjoints."""
        if adjoint_method is None:
            return True
        return self.override and adjoint_method not in ("aca", "quadrature") and adjoint_method in of_hosts

    def options(self, given: dict[str, Any] | None, by_stages: bool) -> dict[str, Any]:
        """The adjoint options of a call that gave ``given``. ``by_stages``: whether its steps are replayed so."""
        ours = {
            name: value for name, value in self.adjoint_options.items() if by_stages or name not in ("graph", "compile")
        }
        return {**ours, **(given or {})}

    @contextmanager
    def explained(self, adjoint: str) -> Iterator[None]:
        """A block in which a refusal says who asked for this adjoint. ``adjoint``: how to name one of the host's."""
        try:
            yield
        except (OptionError, UnsupportedError, GradientError) as error:
            ways = "" if self.override else f"name one of the host's in the call, {adjoint}, or "
            asked = f"install(default={self.default!r}{', override=True' * self.override})"
            raise type(error)(
                f"{error} The call does not ask for this adjoint itself: {asked} does. To have the host's own, {ways}"
                "call it outside of this installation."
            ) from error
