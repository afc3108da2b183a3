"""What an example of the gallery may have changed for the next one, and the look of its figures."""

import warnings


def reset(_, __):
    """Give each example single precision, seeds of its own, and the site's figures."""
    import jax
    import matplotlib.pyplot as plt
    import numpy as np
    import torch

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    jax.config.update("jax_enable_x64", False)
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    np.random.seed(0)
    plt.rcParams.update({"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False})
