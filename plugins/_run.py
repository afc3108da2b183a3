"""``steptape run``: a script nobody wants to edit, under a default adjoint. Imports no framework that it does not."""

from __future__ import annotations

import dataclasses
import importlib.util
import runpy
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from steptape._errors import OptionError, SteptapeError


@dataclasses.dataclass(frozen=True)
class Default:
    """The arguments of ``install()`` in either half, as the command line gives them."""

    adjoint: str
    override: bool
    checkpoints: int | None

    @classmethod
    def of(cls, adjoint: str, override: bool, checkpoints: int | None) -> Default:
        """Check what argparse does not."""
        if checkpoints is not None and checkpoints < 1:
            raise OptionError(
                f"steptape run --checkpoints {checkpoints}: must be a positive number of states, or left out."
            )
        return cls(adjoint, override, checkpoints)

    def install_in_torch(self) -> None:
        from steptape.torch import install

        options = None if self.checkpoints is None else {"checkpoints": self.checkpoints}
        install(default=self.adjoint, adjoint_options=options, override=self.override)  # type: ignore[arg-type]

    def install_in_jax(self) -> None:
        from steptape.jax import AdaptiveCheckpointAdjoint, QuadratureAdjoint, install

        adjoint = {"aca": AdaptiveCheckpointAdjoint, "quadrature": QuadratureAdjoint}[self.adjoint]
        install(default=adjoint(checkpoints=self.checkpoints), override=self.override)


@dataclasses.dataclass(frozen=True)
class Program:
    """A script, or with ``as_module`` a module, and its arguments."""

    target: str
    arguments: list[str]
    as_module: bool

    def prepare(self) -> None:
        """Make ``sys.argv`` and ``sys.path`` what the program expects; raise where there is no such program."""
        # Where Python puts the folder of a script, unless it was told not to.
        if not (getattr(sys.flags, "safe_path", False) or sys.flags.isolated):
            sys.path[0] = str(Path.cwd() if self.as_module else Path(self.target).resolve().parent)
        if self.as_module and not _exists(self.target):
            raise OptionError(f"steptape run -m {self.target}: there is no such module on sys.path.")
        if not self.as_module and not Path(self.target).is_file():
            raise OptionError(f"steptape run {self.target}: no such file. Name a Python script, or -m and a module.")
        sys.argv = [self.target, *self.arguments]

    def run(self, default: Default) -> None:
        """Run it as ``__main__``; each host that it imports takes the default."""
        hosts = [
            _OnImport(("torchdiffeq", "torchsde"), "steptape.torch", default.install_in_torch),
            _OnImport(("diffrax",), "steptape.jax", default.install_in_jax),
        ]
        sys.meta_path[:0] = hosts
        if self.as_module:
            runpy.run_module(self.target, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(self.target, run_name="__main__")
        if all(host in sys.meta_path for host in hosts):
            names = "torchdiffeq, torchsde and diffrax"
            print(f"steptape run: {self.target} imported none of {names}, so nothing took the default", file=sys.stderr)


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


class _OnImport(MetaPathFinder):
    """Calls ``install`` of a half, once, right after the first of these hosts was imported, or the half itself."""

    def __init__(self, hosts: tuple[str, ...], half: str, install: Callable[[], None]):
        self._names, self._half, self._install = (*hosts, half), half, install

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self._names:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None:
            self._follow(spec.loader)
        return spec

    def _follow(self, loader: Any) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            execute(module)
            half = sys.modules.get(self._half)
            # Once, though installing imports more; and not in the midst of a half that imports its hosts.
            if self in sys.meta_path and (half is None or hasattr(half, "install")):
                sys.meta_path.remove(self)
                self._install_or_exit()

        loader.exec_module = exec_module

    def _install_or_exit(self) -> None:
        try:
            self._install()
        except SteptapeError as error:
            # Not the error itself: a program may take a failed import for a missing package, and go on without us.
            print(f"steptape run: {error}", file=sys.stderr)
            sys.exit(2)
