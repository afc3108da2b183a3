"""The cross-framework parity of gradients, in rooms.

A room imports those after it: `report`, `parity`, `backends`, `oracles`, `problems`. `tests/` holds the project's
tests, which the wheel leaves out.
"""
