"""The perceptron as NumPy arrays, with its reference gradient: ``python -m benchmarks.curves.mlp FILE``."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fields import SMALL
from benchmarks.torch_speed import reference_gradient


def main(file: Path) -> None:
    torch.set_num_threads(1)
    problem = SMALL.problem()
    arrays: dict[str, Any] = {f"p{i}": p.detach().numpy() for i, p in enumerate(problem.field.parameters())}
    arrays.update(y0=problem.y0.detach().numpy(), t=problem.t.numpy(), reference=reference_gradient(SMALL).numpy())
    np.savez(file, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
