"""The page of results and the README's tables: figures reduced from the results, and how they are shown.

A figure is a table of texts in the same envelope as the results, so that the figures can be kept where the results,
which are too many, are not: in ``docs/figures.jsonl``.
"""
