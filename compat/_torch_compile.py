"""What ``torch.compile`` is made of, where a function is compiled together with its derivative, as one graph."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# What traces a function changes how modules are called in all threads.
LOCK = threading.RLock()


def captured(function: Callable[..., Any], backend: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose graph is handed to ``backend`` whenever what it reads has changed; else it is an error.

    Each has a code of its own, by which torch counts how often it was compiled.
    """
    function.__code__ = function.__code__.replace()
    by_torch = torch.compile(function, backend=backend, fullgraph=True, dynamic=False)
    config = torch._dynamo.config
    # Later versions trace derivatives that are taken inside, where they are told to.
    # And all take it that no hooks are put on modules once these are compiled.
    wanted = {"trace_autograd_ops": True, "skip_nnmodule_hook_guards": False}
    settings = {name: value for name, value in wanted.items() if hasattr(config, name)}

    def call(*args: Any) -> Any:
        with LOCK, config.patch(settings):
            return by_torch(*args)

    return call


def has_global_hooks() -> bool:
    """Whether there are hooks on all modules."""
    kinds = ("backward_pre", "backward", "forward_pre", "forward")
    return any(getattr(torch.nn.modules.module, f"_global_{kind}_hooks") for kind in kinds)


def graph_of(function: Callable[..., Any], inputs: Sequence[Tensor]) -> torch.fx.GraphModule:
    """Its operations, those of backward passes inside as well, for inputs of these shapes."""
    # Loads what takes long to load, and where no one compiles no one needs.
    from torch.fx.experimental.proxy_tensor import make_fx

    # It tells its inputs apart by identity.
    return make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*[x.detach() for x in inputs])


def draws(graph: torch.fx.GraphModule) -> bool:
    """Whether there are random numbers in it."""
    tag = torch.Tag.nondeterministic_seeded
    return any(tag in getattr(node.target, "tags", ()) for node in graph.graph.nodes)


def has_parameters(graph: torch.fx.GraphModule) -> bool:
    """Whether it holds tensors that require a gradient, which others hand to it as inputs."""
    held = (*graph.parameters(), *graph.buffers(), *(x for x in vars(graph).values() if isinstance(x, Tensor)))
    return any(x.requires_grad for x in held)


def compiled(graph: torch.fx.GraphModule, tensors: Sequence[Tensor], options: dict[str, Any]) -> Callable[..., Any]:
    """It as ``torch.compile(..., **options)`` makes it, for plain tensors and without looking at them first.

    To look at thirty tensors takes as long as a small step.
    """
    from torch._dynamo import lookup_backend
    from torch._inductor import compile as by_inductor
    from torch._inductor import list_mode_options

    # Two that are the same tensor would be taken for one for good.
    inputs: list[Any] = [x.detach() for x in tensors]
    backend, mode, settings = options.get("backend", "inductor"), options.get("mode"), options.get("options")
    if backend == "inductor":
        return by_inductor(graph, inputs, options={**(list_mode_options(mode) if mode else {}), **(settings or {})})
    about = {name: value for name, value in {"mode": mode, "options": settings}.items() if value}
    return (lookup_backend(backend) if isinstance(backend, str) else backend)(graph, inputs, **about)
