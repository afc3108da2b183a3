"""The tape: what is held between the forward and the backward pass."""
