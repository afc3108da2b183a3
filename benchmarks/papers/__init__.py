"""The experiments of the papers behind steptape, repeated small.

An experiment is a module with ``run(quick)``, its cells by name, each of which measures a few rows when it is called;
``claims(rows)``, what its paper says beside what was found; and, but for the limits, ``draw(rows, figure)``.
"""
