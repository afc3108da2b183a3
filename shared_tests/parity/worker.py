"""The process of one backend: ``python -m steptape.shared_tests.parity.worker BACKEND GRADE CASES RUNS``.

Reads a JSON list of cases, all of one grade, from the file CASES and appends one JSON line a run to the file RUNS,
after a first line with the versions. Prints a line on standard output for each finished run.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from steptape.shared_tests.backends.backends import Case, Run, load_backend, run_case


def write_cases(path: Path, cases: list[Case]) -> None:
    """Write the file of cases that a worker reads."""
    path.write_text(json.dumps([asdict(case) for case in cases]), encoding="utf-8")


def read_cases(path: Path) -> list[Case]:
    """Return the cases that `write_cases` wrote."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    return [Case(**{**entry, "grid": tuple(entry["grid"])}) for entry in entries]


def read_runs(path: Path) -> tuple[dict[str, str], list[Run]]:
    """Return the versions and the runs a worker wrote, as far as it came."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if not lines:
        return {}, []
    return json.loads(lines[0]), [Run.from_json(json.loads(line)) for line in lines[1:]]


def main(backend: str, grade: str, cases: str, runs: str) -> None:
    """Run every case in the given file with one backend."""
    adapter = load_backend(backend, grade)
    with Path(runs).open("w", encoding="utf-8") as file:
        print(json.dumps(adapter.versions()), file=file)
        for case in read_cases(Path(cases)):
            result = run_case(adapter.run, backend, case)
            print(json.dumps(result.to_json()), file=file, flush=True)
            print("finished", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
