"""The page of results: ``python -m benchmarks.results`` writes ``docs/results.md`` from a folder of results.

``--compare FIRST SECOND`` compares two such folders instead, of runs of the same commands.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import compare, page
from benchmarks.results.read import Results


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or print a comparison."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmark-report"), metavar="DIR", help="folder of results")
    parser.add_argument("--docs", type=Path, default=Path("docs"), metavar="DIR", help="folder of the page")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("FIRST", "SECOND"), help="two folders of results")
    parser.add_argument("--save", action="store_true", help="keep the comparison for the page, in its folder")
    options = parser.parse_args(arguments)
    if options.save and not options.compare:
        parser.error("--save keeps a comparison: it needs --compare FIRST SECOND.")
    for folder in options.compare or [options.out]:
        if not folder.is_dir():
            parser.error(f"{folder} is no folder.")
    options.docs.mkdir(parents=True, exist_ok=True)
    if not options.compare:
        print(page.write(Results(options.out), options.docs))
        return 0
    found = compare.compared(*map(Results, options.compare))
    print(*compare.report(found), sep="\n")
    if options.save:
        (options.docs / page.REPEATABILITY).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
