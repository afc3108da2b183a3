"""``compare`` and ``compare_sde``: every way to a gradient, tried on the caller's own model."""
