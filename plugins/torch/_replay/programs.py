"""Steps captured once for all solves of a func, by torch's own guards of what func reads.

A step is captured with the flags, numbers and shapes that func reads, by which torch tells whether a capture still
holds. The tensors it uses are inputs of the capture, whose values are free: parameters of modules as well as those of a
closure, told by identity.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Sequence
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from steptape.compat import _torch_compile
from steptape.torch._autograd.modules import all_of, modules_of
from steptape.torch._replay.joint import CannotCompile, Joint, Kind, Own, in_short

# How often one kind of step is captured: before torch itself gives up, in words that say less.
_MOST = 7


class Capture:
    """The graph that func has under some guards, and what it is compiled to for the tensors that are wanted."""

    def __init__(self, graph: Any, outputs: int):
        self.graph, self.outputs = graph, outputs
        self.joints: dict[Any, Joint] = {}

    def joint(self, kind: Kind, own: Own, inputs: Sequence[Tensor], wanted: Callable[[Tensor], bool]) -> Any:
        """The step for these inputs, the tensors that func uses among them, and which of those are ``wanted``."""
        places = tuple(next((i for i, x in enumerate(inputs) if x is one), None) for one in own)
        others = [x for i, x in enumerate(inputs) if i not in places]
        chosen = tuple(i for i, x in enumerate(others) if wanted(x))
        joint = self.joints.get((places, chosen))
        if joint is None:
            joint = self.joints[places, chosen] = Joint(self.graph, kind, len(inputs), places, chosen)
        return joint, others, [others[i] for i in chosen]


class Program:
    """The captures of one kind of step of a func."""

    def __init__(self, kind: Kind):
        self.kind, self._lock = kind, threading.Lock()
        # Those that torch still has.
        self._captures: weakref.WeakSet[Capture] = weakref.WeakSet()
        self._count = 0
        self._found: tuple[Capture, Sequence[Any]] | None = None
        # It does not refer to the program, nor to func.
        self._step = _torch_compile.captured(kind.step(), functools.partial(_captured, weakref.ref(self)))

    def capture(self, func: Any, own: Own) -> tuple[Capture, Sequence[Tensor]] | None:
        """The capture that holds now, and its inputs; None where torch has been told to compile nothing."""
        with self._lock, torch.enable_grad():
            before = self._count
            found = self._run(func, own)
            if self._count == before:
                return found
            after = self._count
            found = self._run(func, own)
            if self._count > after:
                raise CannotCompile(
                    "its evaluations change what they read, such as a count, so that each would be compiled anew. Let "
                    "it count where torch.compiler.is_compiling() is False"
                )
            return found

    def _run(self, func: Any, own: Own) -> tuple[Capture, Sequence[Tensor]] | None:
        self._found = None
        try:
            self._step(func, *own)
        # Whatever torch raises where it traces: as it is, func was evaluated without an error.
        except Exception as error:
            cause = getattr(error, "inner_exception", error)
            if isinstance(cause, CannotCompile):
                raise CannotCompile(*cause.args) from error
            raise CannotCompile(in_short(error)) from error
        found, self._found = self._found, None
        return found

    def note(self, capture: Capture, inputs: Sequence[Any]) -> list[Any]:
        """Note what a call was given, in place of what it would compute."""
        if not all(isinstance(x, Tensor) for x in inputs):
            raise CannotCompile("it depends on a number that is no tensor and that changes")
        self._found = capture, inputs
        return [inputs[0]] * capture.outputs

    def new(self, graph: Any) -> Capture:
        """Another capture."""
        if len(self._captures) == _MOST:
            raise CannotCompile(
                f"it reads numbers or flags that change from solve to solve, for each of which it was compiled anew, "
                f"{_MOST} times by now. Let them be tensors"
            )
        self._count += 1
        (outputs,) = next(node for node in graph.graph.nodes if node.op == "output").args
        if len(outputs) != 1 + self.kind.inside:
            raise CannotCompile("it stores what it was given or has computed")
        if _torch_compile.has_parameters(graph):
            raise CannotCompile("this version of torch does not tell its parameters from constants")
        capture = Capture(graph, len(outputs))
        self._captures.add(capture)
        return capture


def _captured(program: Any, graph: Any, _: Any) -> Callable[..., Any]:
    capture = program().new(graph)
    return lambda *inputs: program().note(capture, inputs)


# By what func is: its code, or its object, as long as that is there.
_PROGRAMS: weakref.WeakKeyDictionary[Any, dict[Any, Program]] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def program_of(func: Any, kind: Kind, *about: Any) -> Program:
    """That of func, as the user passed it; ``about``: whatever else tells it from others."""
    modules = all_of(modules_of(func))
    # torch takes the methods of a class for what they are once and for all.
    methods = {method for one in (func, *modules) for method in _called(type(one))}
    with _LOCK:
        programs = _PROGRAMS.setdefault(_identity(func), {})
        key = (kind, frozenset(methods), *about)
        if key not in programs:
            programs[key] = Program(kind)
        return programs[key]


def _called(kind: type) -> list[Any]:
    return [method for name in ("forward", "__call__") if isinstance(method := getattr(kind, name, None), FunctionType)]


def _identity(func: Any) -> Any:
    """What lives as long as programs of func are of use: a function may be made anew for each solve."""
    while isinstance(func, (functools.partial, MethodType)):
        func = func.func if isinstance(func, functools.partial) else func.__self__
    if isinstance(func, FunctionType):
        return func.__code__
    try:
        weakref.ref(func)
    except TypeError:
        return type(func)
    return func
