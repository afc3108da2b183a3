"""The tasks of the seminorm paper (Kidger et al., arXiv 2009.09457) at small scale, in PyTorch and JAX side by side.

Data, initial weights, the order of the batches and the optimiser are NumPy's and shared, all in float64, so that the
two frameworks train the same model on the same numbers, and what differs is how the gradient is taken.
"""
