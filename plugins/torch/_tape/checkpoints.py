"""The options of the adaptive checkpoint adjoint: what to keep, where, and how much graph to build at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, Literal

import torch

from steptape._errors import OptionError
from steptape.torch._without_effect import tell


@dataclasses.dataclass(frozen=True)
class Keep:
    """``checkpoints``: at most so many states (None: all); ``device``: where (None: where they are); ``graph``.

    ``pieces``: the host's interpolant of every step as well.
    """

    checkpoints: int | None = None
    device: torch.device | None = None
    graph: Literal["step", "stage"] = "step"
    pieces: bool = False

    @classmethod
    def from_options(
        cls,
        options: dict[str, Any] | None,
        function: str = "odeint_adjoint",
        adjoint_method: str = "aca",
        of_hosts: Collection[str] = (),
    ) -> Keep:
        """Read the ``adjoint_options`` of a call of ``function``, or raise ``OptionError``.

        ``of_hosts``: the names of options for a backward solve, which have no effect.
        """
        options = dict(options or {})
        idle = [name for name in options if name in of_hosts]
        tell(function, [f"adjoint_options={{{name!r}: {options.pop(name)!r}}}" for name in idle])
        checkpoints = options.pop("checkpoints", None)
        device = options.pop("checkpoint_device", None)
        graph = options.pop("graph", "step")
        call = f"{function}(..., adjoint_method={adjoint_method!r}, adjoint_options={{"
        if options:
            name, value = next(iter(options.items()))
            raise OptionError(
                f"{call}{name!r}: {value!r}}}): unknown option. The adaptive checkpoint adjoint takes 'checkpoints', "
                f"'checkpoint_device'{' and' if function == 'odeint_adjoint' else ', and for ODEs'} 'graph'."
            )
        if checkpoints is not None and (type(checkpoints) is not int or checkpoints < 1):
            raise OptionError(
                f"{call}'checkpoints': {checkpoints!r}}}): must be a positive number of states, or None to keep all."
            )
        if graph not in ("step", "stage"):
            raise OptionError(f"{call}'graph': {graph!r}}}): must be 'step' or 'stage'.")
        try:
            device = None if device is None else torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise OptionError(f"{call}'checkpoint_device': {device!r}}}): no torch device ({error}).") from error
        return cls(checkpoints, device, graph)

    def for_dense_output(self) -> Keep:
        """The same where the steps are not replayed but their interpolants read: all of them, unless states are few."""
        return self if self.checkpoints else dataclasses.replace(self, checkpoints=1, pieces=True)
