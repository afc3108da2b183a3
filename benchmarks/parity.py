"""What steptape promises of its gradients, as the parity report judges it: a row a check."""

import json
import subprocess
import sys

from benchmarks.envelope import Rows
from benchmarks.measurements import Cells, Scope


def cells(scope: Scope) -> Cells:
    """The report, which starts a process a framework itself."""
    return {"promises": lambda: _promises(scope)}


def _promises(scope: Scope) -> Rows:
    folder = scope.folder / "parity"
    command = [sys.executable, "-c", "import sys; from steptape.cli import main; sys.exit(main())", "parity"]
    # It ends with 1 where a promise is broken, which is a result as well.
    subprocess.run([*command, *["--quick"] * scope.quick, "--out", str(folder)], check=False)
    return json.loads((folder / "parity.json").read_text(encoding="utf-8"))["promises"]
