"""func under autograd, in the surroundings it was solved in."""
