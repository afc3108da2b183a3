"""What a measurement ran on: processor and system, versions of what is measured, and one thread of one core."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path

FRAMEWORKS = ("torch", "jax")
# Processor time is that of one thread. XLA reads its flags once, when it starts.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}
_PACKAGES = {
    "torch": ("torch", "torchdiffeq", "torchsde", "steptape", "zuko", "torchode", "torchdyn", "torchcde"),
    "jax": ("jax", "equinox", "diffrax", "steptape", "optimistix", "blackjax", "numpyro"),
}


def stay_on_one_core() -> None:
    """The last of those allowed, for the processes to come too: moving between cores costs time, not always alike."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def prepare(framework: str) -> None:
    """Set a framework up in this process: one thread, and float64 where JAX would not have it."""
    if framework == "torch":
        import torch

        torch.set_num_threads(1)
    if framework == "jax":
        import logging

        import jax

        jax.config.update("jax_enable_x64", True)
        # A solve that fails is a row, which says why; here it would be a page.
        logging.getLogger("jax._src.callback").disabled = True


def machine() -> str:
    """Processor and system, of the latter's name not what only tells one build of it from the next."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    found = re.match(r"Linux-(\d+\.\d+).*-(x86_64|aarch64)", platform.platform())
    system = f"Linux {found[1]} {found[2]}" if found else platform.platform()
    return ", ".join(filter(None, (model or platform.processor(), system)))


def versions(framework: str) -> dict[str, str]:
    """Python's, and those of what is installed of the packages that a framework's measurements measure."""
    found = {"Python": platform.python_version()}
    for name in _PACKAGES.get(framework, ()):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
