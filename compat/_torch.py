"""PyTorch's private names, each with the reason steptape needs it."""

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from math import prod
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch.nn.utils import parametrize

from steptape.compat._unsupported import unsupported

try:
    # A batch of vmap's: what it is, and how to take it off and put it on again. Unlike debug_unwrap, which is public in
    # later versions, they tell a batch from a level of differentiation.
    from torch._C._functorch import (
        _add_batch_dim,
        get_unwrapped,
        is_functorch_wrapped_tensor,
        is_legacy_batchedtensor,
        maybe_get_bdim,
    )
    from torch._C._functorch import is_batchedtensor as is_batched
    from torch._C._functorch import maybe_get_level as level_of

    # The transforms around a call, taken off this thread's stack and put back: the host's solvers hold an
    # autograd.Function that cannot run inside them.
    from torch._functorch.pyfunctorch import (
        temporarily_clear_interpreter_stack,
        temporarily_restore_interpreter_stack,
    )

    # What sees the operations of a block, also those of scripted modules; compiled ones are not compiled anew for it.
    from torch.utils._python_dispatch import TorchDispatchMode

    # Whether there are any transforms.
    transforms_active = torch._C._are_functorch_transforms_active

    # The node of a graph whose backward pass is running: an evaluation in which there is one takes derivatives inside.
    running_node = torch._C._current_autograd_node

    # Whether a block of forward mode is entered, by its level; and a block in which there may be one: in an
    # autograd.Function there may not, and func may take such derivatives of its own.
    _ = torch.autograd.forward_ad._current_level
    _set_forward_mode = torch.autograd.forward_ad._set_fwd_grad_enabled

    # Where parametrize.cached() keeps weights, and for how many blocks it does.
    PARAMETRIZE = vars(parametrize)
    PARAMETRIZE["_cache"], PARAMETRIZE["_cache_enabled"]

    # torch.autograd.grad without its checks, which take as long as the backward pass of a small layer.
    _run_backward = torch.autograd.Variable._execution_engine.run_backward

    # Sums of several tensors in place, in one call.
    add_each = torch._foreach_add_

    # ``is_grads_batched=True`` makes batches of another kind, inside of a mode in which no random numbers are drawn.
    _add_legacy_batch_dim, _remove_legacy_batch_dim = torch._add_batch_dim, torch._remove_batch_dim
    _without_keys = torch._C._ExcludeDispatchKeyGuard
    _LEGACY_MODE = torch._C.DispatchKeySet(torch._C._parse_dispatch_key("VmapMode"))  # type: ignore[arg-type]
except (ImportError, AttributeError, KeyError, TypeError) as error:
    raise unsupported("torch", error, "torch") from error

Function = TypeVar("Function", bound=Callable[..., Any])


@functools.lru_cache
def gathers_parameters(kind: type) -> bool:
    """Whether modules of a class have their parameters for the time of an evaluation alone, as what FSDP wraps does."""
    # By name, since the import of torch.distributed takes longer than that of all else.
    return any(base.__name__ in ("FullyShardedDataParallel", "FSDPModule") for base in kind.__mro__)


def forward_mode_active() -> bool:
    """Whether this is a block of ``torch.autograd.forward_ad.dual_level``."""
    return torch.autograd.forward_ad._current_level >= 0


@contextmanager
def forward_mode_allowed() -> Iterator[None]:
    """A block in which there may be one."""
    with _set_forward_mode(True):
        yield


def pull(
    outputs: Sequence[torch.Tensor],
    cotangents: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
    keep_graph: bool = False,
) -> Sequence[torch.Tensor | None]:
    """The cotangents of ``inputs``, None where the outputs do not depend on one; frees the graph unless it is kept."""
    create_graph = accumulate = False
    return _run_backward(
        tuple(outputs), tuple(cotangents), keep_graph, create_graph, tuple(inputs), True, accumulate_grad=accumulate
    )


def pull_batch(
    outputs: Sequence[torch.Tensor],
    cotangents: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
    create_graph: bool = False,
    keep_graph: bool = False,
) -> list[torch.Tensor | None]:
    """The same for a batch of cotangents, their first dimension; raises what an operation raises that takes none."""
    used: list[bool] = []

    def pull_one(*parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        keeps = keep_graph or create_graph
        grads = _run_backward(outputs, parts, keeps, create_graph, tuple(inputs), True, accumulate_grad=False)
        used[:] = [grad is not None for grad in grads]
        # What vmap maps must return something.
        return (parts[0], *(grad for grad in grads if grad is not None))

    _, *found = torch.vmap(pull_one)(*cotangents)
    grads = iter(found)
    return [next(grads) if is_used else None for is_used in used]


class _Layer(NamedTuple):
    """A batch of one vmap around tensors: of which kind, at which level, and how many."""

    legacy: bool
    level: int
    size: int


class Batches:
    """The batches in which the cotangents of a backward pass come; false if they come one at a time.

    Of ``torch.autograd.grad(..., is_grads_batched=True)``, and of ``torch.vmap`` around a backward pass; in each other
    too. ``plain``: the cotangents themselves, (size, *shape), where ``size`` counts the members of all batches.
    """

    def __init__(self, cotangents: Sequence[torch.Tensor]):
        self._layers: list[_Layer] = []
        while (layer := _outermost(cotangents)) is not None:
            self._layers.append(layer)
            cotangents = [_without(layer, x) for x in cotangents]
        self._sizes = [layer.size for layer in reversed(self._layers)]
        self.size = prod(self._sizes)
        depth = len(self._sizes)
        self.plain = [x.reshape(self.size, *x.shape[depth:]) for x in cotangents] if depth else list(cotangents)

    def __bool__(self) -> bool:
        return bool(self._layers)

    @contextmanager
    def outside(self) -> Iterator[None]:
        """A block outside of what made the batches."""
        with outside_transforms(), _without_keys(_LEGACY_MODE):
            yield

    def around(self, x: torch.Tensor) -> torch.Tensor:
        """What is (size, *shape), in these batches."""
        x = x.reshape(*self._sizes, *x.shape[1:])
        for layer in reversed(self._layers):
            x = (_add_legacy_batch_dim if layer.legacy else _add_batch_dim)(x, 0, layer.level)
        return x


def _outermost(xs: Sequence[torch.Tensor]) -> _Layer | None:
    """The batch around all others."""
    batches = [x for x in xs if is_batched(x)]
    if batches:
        x = max(batches, key=level_of)
        return _Layer(False, level_of(x), get_unwrapped(x).shape[maybe_get_bdim(x)])
    for x in filter(is_legacy_batchedtensor, xs):
        # Nothing else tells the level: without a batch there, its dimension is of the size asked for.
        for level in range(63, 0, -1):
            if size := _remove_legacy_batch_dim(x, level, 0, 0).shape[0]:
                return _Layer(True, level, size)
    return None


def _without(layer: _Layer, x: torch.Tensor) -> torch.Tensor:
    """A tensor with a batch as its first dimension."""
    if layer.legacy:
        return _remove_legacy_batch_dim(x, layer.level, layer.size, 0)
    if is_batched(x) and level_of(x) == layer.level:
        return get_unwrapped(x).movedim(maybe_get_bdim(x), 0)
    return x.expand(layer.size, *x.shape)


@contextmanager
def outside_transforms() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """A block without the transforms around it; what it yields gives blocks that are inside them again."""
    with temporarily_clear_interpreter_stack() as stack:
        yield lambda: temporarily_restore_interpreter_stack(stack)


def plainly(make: Function) -> Function:
    """``make``, whose results are kept for all calls to come, without the modes that this one is in."""

    @functools.wraps(make)
    def made(*args: Any) -> Any:
        with outside_transforms(), torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            return make(*args)

    return cast(Function, made)


def unwrapped(x: torch.Tensor) -> torch.Tensor | None:
    """The plain tensor inside all transforms, or None if there is a batch of them."""
    while is_functorch_wrapped_tensor(x):
        if is_batched(x):
            return None
        x = get_unwrapped(x)
    return x


_LOCK = threading.Lock()
# From so many numbers on a copy is not made before it is needed.
_LARGE = 2**16
_uncompiled: list[Any] = []


@contextmanager
def uncompiled() -> Iterator[None]:
    """A block in which compiled functions run as they are: what looks at operations is not to be compiled with them.

    They do so in all threads, and until the last of these blocks ends.
    """
    stance = getattr(torch.compiler, "set_stance", None)
    if stance is None or "torch._dynamo" not in sys.modules:
        yield
        return
    with _LOCK:
        _uncompiled.append(stance("force_eager") if not _uncompiled else None)
    try:
        yield
    finally:
        with _LOCK:
            if len(_uncompiled) == 1:
                _uncompiled[0].__exit__(None, None, None)
            _uncompiled.pop(-1)


def copied(x: torch.Tensor) -> torch.Tensor:
    """A copy; where torch can, one that takes neither time nor memory until one of the two is written to."""
    lazily = getattr(torch, "_lazy_clone", torch.clone) if x.numel() > _LARGE else torch.clone
    try:
        return lazily(x.detach())
    except RuntimeError:  # Memory that is not torch's own.
        return x.detach().clone()


def sequence_number(node: Any) -> int:
    """The place of a node of a graph in the order in which its thread made them."""
    return node._sequence_nr()


def is_freed(node: Any) -> bool:
    """Whether a backward pass has freed what a node, or one that leads to it, had saved, as far as can be seen."""
    waiting, seen = [node], set[Any]()
    while waiting and len(seen) < 50:
        node = waiting.pop()
        seen.add(node)
        try:
            for name in dir(node):
                if name.startswith("_saved_") or name == "saved_tensors":
                    getattr(node, name)
        except RuntimeError as error:
            if "freed" in str(error):
                return True
        waiting += [before for before, _ in node.next_functions if before is not None and before not in seen]
    return False


def is_pulled_whole(node: Any) -> bool:
    """Whether no gradient in some tensors alone can be asked for through a node, as of a reentrant checkpoint."""
    return type(node).__name__ == "CheckpointFunctionBackward"


def place_in_order() -> int:
    """The place that the next node of this thread will have."""
    return torch._C._autograd._get_sequence_nr()


class OperationMode(TorchDispatchMode):
    """A block in which ``operate(run, args)`` is called for each operation on tensors, to run it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not kwargs:
            return self.operate(lambda: func(*args), args)
        return self.operate(lambda: func(*args, **kwargs), (*args, *kwargs.values()))

    def operate(self, run: Callable[[], Any], args: Sequence[Any]) -> Any:
        """Run an operation."""
        raise NotImplementedError


_NO_GRAPH = (
    "a solve takes its steps by the values of the state, which no graph of torch.compile has, so it runs between two. "
    "Leave out fullgraph=True for what contains the solve, as in torch.compile(model), or compile func alone, by "
    "func.compile()."
)


def between_graphs(function: Function) -> Function:
    """A function that runs as it is when what contains it is compiled; with ``fullgraph=True`` torch says why not."""
    # Not everywhere: inside ``disable`` no compiled func would run compiled. torch 2.4 takes no reason.
    words = {"reason": _NO_GRAPH} if "reason" in inspect.signature(torch.compiler.disable).parameters else {}
    disabled = torch.compiler.disable(function, **words)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return disabled(*args, **kwargs)
        return function(*args, **kwargs)

    return cast("Function", call)
