"""The continuous adjoint: an ODE for a(t) backward in time, on the dense output of the forward solve."""
