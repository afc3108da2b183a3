"""What holds for the docstring of every public object."""

import doctest
import inspect
import re

HEADINGS = ["Args", "Returns", "Yields", "Exact", "Approximate", "Memory", "Supports", "Raises", "Source", "Example"]


def assert_example_runs(documented):
    """Run the one example there is."""
    (example,) = doctest.DocTestFinder(recurse=False).find(documented, documented.__name__)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def assert_headings_in_order(documented, *needed):
    """In one order, and those that are ``needed`` among them."""
    found = re.findall(r"^(\w+):$", inspect.getdoc(documented), re.MULTILINE)
    assert found == [heading for heading in HEADINGS if heading in found]
    assert set(needed) <= set(found)
