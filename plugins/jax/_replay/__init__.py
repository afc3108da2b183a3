"""The discrete adjoint: diffrax's accepted steps taken again, from the last to the first, under autodiff."""
