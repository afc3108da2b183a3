"""Work-precision and scaling of gradients in PyTorch and JAX: ``python -m benchmarks.curves``."""
