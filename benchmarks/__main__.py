"""All measurements, one after the other, and one page of their results: ``python -m benchmarks [NAME...]``.

Each measurement runs in a process a framework, on one core where the system can hold it there, and writes its results
to ``DIR/results.jsonl`` as it goes: a rerun skips the cells that are there. Those whose times do not repeat by
themselves are measured in a second pass, after all others. At the end ``DIR/results.md`` shows what was found.

``python -m benchmarks page [DIR]`` writes ``docs/results.md`` and the README's tables from ``docs/figures.jsonl``,
after it has taken there what is in DIR. ``python -m benchmarks compare FIRST SECOND`` compares two runs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine, runner
from benchmarks.envelope import Results, read, write
from benchmarks.measurements import MEASUREMENTS

ROOT, RESULTS = Path(__file__).resolve().parents[1], "results.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"page": _page, "compare": _compare}
    return commands[given[0]](given[1:]) if given and given[0] in commands else _measure(given)


def _measure(given: Sequence[str]) -> int:
    texts = "".join(f"\n  {name:<12} {one.question}" for name, one in MEASUREMENTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{__doc__}\nMeasurements:{texts}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="measurements (default: all, but for tasks_paper)")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cells of each, into quick.jsonl")
    parser.add_argument("--only", default="", metavar="TEXT", help="cells whose name has this in it")
    parser.add_argument("--framework", default="", choices=machine.FRAMEWORKS, help="one of the two")
    parser.add_argument("--out", type=Path, default=Path("benchmark-report"), metavar="DIR", help="folder of results")
    parser.add_argument("--device", default="cpu", help="for torch_speed alone: a GPU, such as cuda")
    options = parser.parse_args(given)
    for name in sorted(set(options.names) - set(MEASUREMENTS)):
        parser.error(f"{name}: must be one of {', '.join(MEASUREMENTS)}.")
    names = options.names or [name for name, one in MEASUREMENTS.items() if one.usual]
    options.out.mkdir(parents=True, exist_ok=True)
    if options.device != "cpu":
        if names != ["torch_speed"]:
            parser.error(f"--device {options.device}: is for torch_speed alone.")
        from benchmarks import torch_device

        return torch_device.run(options.device, options.out, options.only)
    # Apart, because the quick cells would be taken for whole ones.
    file = options.out / ("quick.jsonl" if options.quick else RESULTS)
    failed = runner.run(names, file, options.quick, options.only, options.framework)
    runner.note(f"the page: {_page_of(Results(read(file)), options.out)}")
    if failed:
        runner.note(f"failed: {'; '.join(failed)}")
    return bool(failed)


def _page_of(results: Results, folder: Path) -> Path:
    from benchmarks.page import figures, plots, sections

    plots.draw(results, folder)
    return sections.write(figures.reduced(results), folder)


def _page(given: Sequence[str]) -> int:
    from benchmarks.page import figures, plots, readme, sections

    parser = argparse.ArgumentParser(prog="python -m benchmarks page", description="Write the page and the README.")
    parser.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="of results to be taken first")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR", help="where docs/ and README.md are")
    options = parser.parse_args(given)
    docs, page = options.root / "docs", options.root / "README.md"
    kept = read(docs / "figures.jsonl")
    if options.folder:
        results = _there(parser, options.folder)
        kept = figures.replaced(kept, figures.reduced(results))
        write(docs / "figures.jsonl", kept)
        plots.draw(results, docs)
    print(sections.write(kept, docs))
    page.write_text(readme.filled(page.read_text(encoding="utf-8"), kept), encoding="utf-8")
    return 0


def _compare(given: Sequence[str]) -> int:
    from benchmarks.page import compare, figures

    parser = argparse.ArgumentParser(prog="python -m benchmarks compare", description="Compare the ratios of two runs.")
    parser.add_argument("folders", type=Path, nargs=2, metavar="DIR", help="folders of results")
    parser.add_argument("--keep", action="store_true", help="take the comparison into docs/figures.jsonl")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR", help="where docs/ is")
    options = parser.parse_args(given)
    found = compare.compared(*(_there(parser, folder) for folder in options.folders))
    print(compare.report(*(figure["rows"] for figure in found)))
    if options.keep:
        file = options.root / "docs" / "figures.jsonl"
        kept = read(file)
        write(file, figures.replaced(kept, compare.joined(kept, found)))
    return 0


def _there(parser: argparse.ArgumentParser, folder: Path) -> Results:
    if not (file := folder / RESULTS).exists():
        parser.error(f"{file} is missing.")
    return Results(read(file))


if __name__ == "__main__":
    machine.stay_on_one_core()
    sys.exit(main())
