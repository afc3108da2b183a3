"""The page of results, made from the files that the measurements leave: ``python -m benchmarks.results``."""
