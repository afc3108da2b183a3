"""The runs of a parity report, their comparison, and what is promised of them."""
