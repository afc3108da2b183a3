"""The shared problems: ODEs, SDEs with their paths, what hosts get wrong, and the stored reference gradients."""
