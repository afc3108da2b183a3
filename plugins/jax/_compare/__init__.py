"""``compare``: every way to a gradient, tried on the caller's own model."""
