"""Continuous adjoints: a backward solve of its own."""
