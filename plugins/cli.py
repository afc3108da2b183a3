"""The `steptape` command. Importing this module imports no framework and no optional dependency."""

import argparse
import importlib.util
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from steptape._errors import OptionError, SteptapeError, UnsupportedHostVersion

_BACKENDS = ("torch", "jax")
_REPORT_PACKAGES = ("numpy", "array_api_compat", "matplotlib", "rich", "tabulate", "jinja2", "packaging")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 1 where a promise is broken, or 2 where the call is wrong."""
    options = _parser().parse_args(arguments)
    try:
        then = options.run(options)
    except SteptapeError as error:
        print(f"steptape: {error}", file=sys.stderr)
        return 2
    # The errors of a user's program are its own.
    return then() if callable(then) else then


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="steptape", description="Exact, memory-lean gradients by replay.")
    commands = parser.add_subparsers(dest="command", required=True)
    parity = commands.add_parser(
        "parity",
        help="run the shared problems in each framework and compare the gradients",
        description="Runs the shared problems in each installed framework, compares every way to a gradient, prints "
        "a table and writes a report. Exits with 1 where a promise of steptape is broken; other methods may fail.",
    )
    parity.add_argument("--quick", action="store_true", help="fewer problems and solvers: two minutes, not twenty")
    parity.add_argument(
        "--backend", action="append", choices=_BACKENDS, help="a framework to run (default: all installed)"
    )
    parity.add_argument("--problem", action="append", default=[], help="an ODE or SDE to run (default: all)")
    parity.add_argument("--out", type=Path, default=Path("parity-report"), metavar="DIR", help="folder of the report")
    parity.set_defaults(run=_parity)
    report = commands.add_parser(
        "report",
        help="merge the reports of `steptape parity`, of any versions and machines, into one",
        description="Compares the gradients of all reports on the same steps and shows what moved between versions, as "
        "Markdown, JSON and one HTML page. Exits with 1 where versions differ or a report has a broken promise.",
    )
    report.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folder of a report, or of such folders")
    report.add_argument("--out", type=Path, default=Path("version-report"), metavar="DIR", help="folder to write to")
    report.set_defaults(run=_report)
    _add_run(commands)
    _add_compare(commands)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        allow_abbrev=False,
        help="run a Python script, unedited, with the gradients of steptape by default",
        description="Runs a script, or a module, as Python does, with install(default=...) in each of torchdiffeq, "
        "torchsde and diffrax that it imports: solves that name no adjoint take ours, but not those of processes that "
        "it starts anew.",
        epilog="Options of steptape come before the script; what follows it is the script's.",
    )
    run.add_argument(
        "--default",
        choices=("aca", "quadrature"),
        default="aca",
        help="the adjoint (default: aca, the exact gradient of the solution that is computed)",
    )
    run.add_argument(
        "--override",
        action="store_true",
        help="also for solves that name an adjoint of the host's own, and for plain odeint and sdeint",
    )
    run.add_argument(
        "--checkpoints", type=int, metavar="K", help="keep at most K states of a solve, recompute the others"
    )
    run.add_argument("-m", dest="as_module", action="store_true", help="run a module of this name, as python -m does")
    run.add_argument("target", metavar="script.py", help="the script, or with -m the module")
    run.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")
    run.set_defaults(run=_run)


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="run every way to a gradient on a model of yours, and say which to take",
        description="Calls a function of a script, which takes no arguments and returns the keyword arguments of "
        "steptape.torch.compare (func, y0, t, loss, ...) or compare_sde (sde, y0, ts, ...) as a dict; or for diffrax "
        "{'loss': lambda adjoint, model: ..., 'inputs': (model,)}. Prints the table.",
    )
    compare.add_argument("target", metavar="script.py:name", help="the script, and the function")
    compare.add_argument("--memory", metavar="SIZE", help="what there is, such as '2 GiB': the advice is for it")
    compare.add_argument("--time-limit", type=float, metavar="SECONDS", help="for all of it")
    compare.add_argument("--plot", type=Path, metavar="FILE", help="save time against memory, as .png, .svg or .pdf")
    compare.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> Callable[[], int]:
    """Read the call; what is returned runs the script."""
    from steptape._compare.advice import size_of
    from steptape._compare.clock import Clock
    from steptape._compare.command import compared, described
    from steptape._compare.plot import check_file

    size_of(options.memory)
    if options.time_limit is not None:
        Clock(options.time_limit, False)
    if options.plot is not None:
        check_file(options.plot)
    describe = described(options.target)

    def run() -> int:
        try:
            found = compared(options.target, describe, memory=options.memory, time_limit=options.time_limit)
        except SteptapeError as error:
            print(f"steptape: {error}", file=sys.stderr)
            return 2
        print(found)
        if options.plot is not None:
            found.plot().figure.savefig(options.plot)
        return 0

    return run


def _run(options: argparse.Namespace) -> Callable[[], int]:
    """Read the call; what is returned runs the program."""
    from steptape._run import Default, Program

    default = Default.of(options.default, options.override, options.checkpoints)
    program = Program(options.target, options.arguments, options.as_module)
    program.prepare()

    def run() -> int:
        program.run(default)
        return 0

    return run


def _parity(options: argparse.Namespace) -> int:
    _require_report_extra()
    from rich.console import Console

    from steptape.shared_tests.parity import parity
    from steptape.shared_tests.report import report

    backends = _backends(options.backend)
    scope = parity.Scope.of(backends, _problems(options.problem, backends), options.quick)
    folder = _folder(options.out)
    console, start = Console(), time.monotonic()
    with report.showing_progress(console) as on_progress:
        outcome = parity.run_parity(scope, folder / "runs", on_progress)
    made = report.Report.of(outcome, time.monotonic() - start)
    report.print_report(console, made)
    files = report.write_report(folder, made)
    console.print(f"Report: {', '.join(map(str, files))}", highlight=False, soft_wrap=True)
    return 1 if made.broken else 0


def _report(options: argparse.Namespace) -> int:
    _require_report_extra()
    from steptape.shared_tests.parity.versions import Merged
    from steptape.shared_tests.report import merged_report

    merged = Merged.of(options.folders)
    command = shlex.join(["steptape", "report", *map(str, options.folders), "--out", str(options.out)])
    files = merged_report.write(_folder(options.out), merged, command)
    for sentence in merged.broken:
        print(f"broken: {sentence}")
    print(f"{merged.summary}\nReport: {', '.join(map(str, files))}")
    return 1 if merged.broken else 0


def _require_report_extra() -> None:
    missing = [name for name in _REPORT_PACKAGES if not importlib.util.find_spec(name)]
    if missing:
        raise UnsupportedHostVersion(
            f"this command needs {', '.join(missing)}, not installed: pip install 'steptape[report]'"
        )


def _backends(asked: list[str] | None) -> list[str]:
    """Return the backends to run, each once; all that are installed where none is asked for."""
    from steptape.shared_tests.backends.backends import HOSTS, installed_backends

    installed = installed_backends()
    for name in asked or ():
        if name not in installed:
            raise UnsupportedHostVersion(
                f"--backend {name} needs {HOSTS[name]}, which is not installed: pip install 'steptape[{name}]'"
            )
    if not installed:
        raise UnsupportedHostVersion(
            "steptape parity found neither torchdiffeq nor diffrax: pip install 'steptape[torch]' "
            "or 'steptape[jax]', or both with 'steptape[all]'"
        )
    return [name for name in _BACKENDS if name in (asked or installed)]


def _problems(asked: list[str], backends: list[str]) -> list[str]:
    from steptape.shared_tests.backends.sde_schemes import solves_sdes
    from steptape.shared_tests.problems.problems import PROBLEMS
    from steptape.shared_tests.problems.sde_problems import SDE_PROBLEMS

    for name in asked:
        if name not in PROBLEMS and name not in SDE_PROBLEMS:
            raise OptionError(
                f"--problem {name}: no such problem; there are {', '.join(PROBLEMS)}, and the SDEs "
                f"{', '.join(SDE_PROBLEMS)}"
            )
        if name in SDE_PROBLEMS and not any(map(solves_sdes, backends)):
            raise UnsupportedHostVersion(
                f"--problem {name} is an SDE and needs torchsde, which is not installed: pip install 'steptape[sde]'"
            )
    return list(dict.fromkeys(asked))


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"--out {path}: cannot make this folder: {error}") from error
    return path


if __name__ == "__main__":
    sys.exit(main())
