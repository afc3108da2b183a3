"""Work-precision and scaling of gradients in PyTorch and JAX: a cell a tolerance or a size, a row a way.

``seconds``: of processor time, forward and backward pass together. ``held``: in PyTorch the bytes that malloc has given
out and not got back between the two passes, with the nodes of the graph, which outweigh its tensors where the state is
small; in JAX the temporary memory of the compiled value and gradient by XLA's account, both passes together. The two
are not comparable. ``error``: of the gradient in y0 and the parameters, relative, in the Euclidean norm.

Precision is by Dormand and Prince's method at tolerances from 1e-3 to 1e-9; in JAX ``max_steps`` is, for all ways, the
smallest power of two that the tries of the forward solve fit in.
Scaling is on steps of one size: in PyTorch rk4's along the axis of steps, but for quadrature, which needs an adaptive
solver: Dormand and Prince's with its steps limited to that size, as along the other axes; in JAX Dormand and Prince's.
"""
