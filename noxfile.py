# /// script
# dependencies = ["nox>=2025.2.9"]
# ///
"""The project's checks. `nox` runs the default ones; `nox -l` lists them all; CI is `.ci/run`."""

import os
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True

PYPROJECT = nox.project.load_toml("pyproject.toml")
STEPTAPE = PYPROJECT["tool"]["steptape"]
# The one release whose CPU build is small; every other brings gigabytes of CUDA.
TORCH = "torch==2.13.0"
EXTRA = {"torch": "sde", "jax": "jax"}
# What each half's tests run on; where it is not there they fail, and are not skipped.
ASKED = {"torch": "torch,sde", "jax": "jax"}
# A thread a worker: as many workers as cores share them.
ALL = {"STEPTAPE_TEST_BACKENDS": ",".join(ASKED.values()), "OMP_NUM_THREADS": "1"}
SPREAD = ("-n", "auto", "--dist", "worksteal")

# The programs of the environment of `types`, `tests`, `full` and `parity`.
IN_ONE = Path(".nox", "all", "Scripts" if os.name == "nt" else "bin").resolve()

# Half the time of a test in JAX, which is that to compile a program; `minimums` and `matrix` have XLA as it is.
HASTE = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 --xla_backend_optimization_level="


# More than half the time of an installation is to compile what most sessions never import: what they do import is
# compiled then, and kept also where the machine says otherwise, for the many processes of a session.
LAZY = "--no-compile"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def install(session: nox.Session, *extras: str, group: str, pins: list[str] | None = None) -> None:
    """Install steptape's wheel with some extras, and the tools of a dependency group."""
    tools = nox.project.dependency_groups(PYPROJECT, group)
    session.install(LAZY, *([TORCH] if pins is None else pins), f".[{','.join(extras)}]", *tools)


def in_one(session: nox.Session, program: str, *arguments: str, env: dict[str, str] | None = None) -> None:
    """Run a program in `.nox/all`, where all hosts are and the tools of `types` and `tests`, for several sessions."""
    if not IN_ONE.exists():
        session.run_install(sys.executable, "-m", "venv", str(IN_ONE.parent), external=True)
    tools = nox.project.dependency_groups(PYPROJECT, "test", "types")
    pip = (str(IN_ONE / "python"), "-m", "pip", "install", "--quiet", LAZY)
    session.run_install(*pip, TORCH, ".[all]", *tools, external=True)
    run_in_one(session, program, *arguments, env=env)


def run_in_one(session: nox.Session, program: str, *arguments: str, env: dict[str, str] | None = None) -> None:
    """The same, where all is installed."""
    session.run(str(IN_ONE / program), *arguments, env=env, external=True)


def named(*arguments: object) -> object:
    """A session's parameters, of which the last one is a line of the table of versions, under that line's name."""
    return nox.param(*arguments, id=" ".join(arguments[-1]["pins"][:2]))


def exact(session: nox.Session, half: str, line: dict) -> None:
    """Install the versions of a line and hold one half's gradients against the host's own back-propagation."""
    if "pip" in line:
        session.install(line["pip"])
    install(session, EXTRA[half], "report", group="exact", pins=line["pins"])
    asked = {"STEPTAPE_TEST_BACKENDS": ASKED[half]}
    session.run("pytest", "-n", "auto", "-m", "full or not full", *STEPTAPE["exact"][half], env=asked)


@nox.session(python=False, default=False)
def dev(session: nox.Session) -> None:
    """An environment to work in, `.venv`: steptape as it lies here, all hosts, and the tools of all checks."""
    tools = nox.project.dependency_groups(PYPROJECT, "dev")
    session.run("python", "-m", "venv", ".venv", external=True)
    pip = (".venv/Scripts/python" if os.name == "nt" else ".venv/bin/python", "-m", "pip", "install")
    session.run(*pip, TORCH, "--editable", ".[all]", *tools, external=True)


@nox.session(default=False)
def quick(session: nox.Session) -> None:
    """A minute's check: the plan, the problems, the hosts' private names, and one exact file of each half."""
    install(session, "all", group="exact")
    session.run("pytest", "-n", "auto", "--dist", "loadfile", *STEPTAPE["quick"], *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and format, by ruff, and the arrows between the rooms, by import-linter."""
    session.install(LAZY, *nox.project.dependency_groups(PYPROJECT, "lint"))
    session.install("--no-deps", ".")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session(python=False)
def types(session: nox.Session) -> None:
    """Type check of the installed package and of the benchmarks, by mypy; and what it and pyright know of a call."""
    in_one(session, "mypy", "-p", "steptape", "-p", "benchmarks")
    calls = [str(path) for path in sorted(Path("shared_tests/tests/typed").glob("*.py"))]
    run_in_one(session, "mypy", "--warn-unused-ignores", *calls)
    run_in_one(session, "pyright", "--pythonpath", str(IN_ONE / "python"))


@nox.session(python=False)
def tests(session: nox.Session) -> None:
    """Every promise, on the default versions of the hosts, with few values of each; arguments go to pytest."""
    in_one(session, "pytest", *SPREAD, *session.posargs, env={**ALL, "XLA_FLAGS": f"{HASTE}0"})


@nox.session(python=False, default=False)
def full(session: nox.Session) -> None:
    """The tests that `tests` leaves out: exhaustive products of what it tries by parts; arguments go to pytest."""
    # At level 0 a program may round otherwise than another one of the same solve.
    asked = ("-m", "full and not elsewhere", *session.posargs)
    in_one(session, "pytest", *SPREAD, *asked, env={**ALL, "XLA_FLAGS": f"{HASTE}1"})


@nox.session(default=False)
def clients(session: nox.Session) -> None:
    """Packages that call the hosts, and the hosts' example scripts, unedited: their gradients under `install()`."""
    install(session, "sde", "jax", group="clients")
    session.install("--no-deps", *nox.project.dependency_groups(PYPROJECT, "clients-alone"))
    for half in ("torch", "jax"):
        files = [str(path) for path in sorted(Path("shared_tests/tests/clients").glob(f"test_{half}*.py"))]
        # Without torchtyping's plugin, which imports torch.
        pytest = ("pytest", *SPREAD, "-p", "no:torchtyping")
        session.run(*pytest, *files, *session.posargs, env={"STEPTAPE_TEST_CLIENTS": "1", "OMP_NUM_THREADS": "1"})


@nox.session(default=False)
@nox.parametrize("half, line", [named(half, lines[0]) for half, lines in STEPTAPE["versions"].items()])
def minimums(session: nox.Session, half: str, line: dict) -> None:
    """Exactness on the lowest versions of each host, with the Python that runs nox."""
    exact(session, half, line)


@nox.session(default=False)
@nox.parametrize(
    "python, half, line",
    [named(line["python"], half, line) for half, lines in STEPTAPE["versions"].items() for line in lines],
)
def matrix(session: nox.Session, half: str, line: dict) -> None:
    """Exactness on every supported version, with its own Python; parity results go to `matrix-report/`."""
    exact(session, half, line)
    folder = "-".join(line["pins"][:2]).replace("==", "-")
    session.run("steptape", "parity", "--quick", "--backend", half, "--out", f"matrix-report/{folder}")


@nox.session(default=False)
def report(session: nox.Session) -> None:
    """One report of all parity results in `matrix-report/`; arguments are folders of other runs and machines."""
    session.install(".[report]")
    session.run("steptape", "report", "matrix-report", *session.posargs)


@nox.session(python=False, default=False)
def parity(session: nox.Session) -> None:
    """The cross-framework gradient parity report; arguments go to `steptape parity`."""
    in_one(session, "steptape", "parity", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """All measurements beside the peers, into `benchmark-report/`; arguments go to `python -m benchmarks`."""
    install(session, "all", group="bench")
    # Its declared requirements bring a whole training stack, of which the solvers need two small packages.
    session.install("--no-deps", *nox.project.dependency_groups(PYPROJECT, "bench-alone"))
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """The site of the documentation in `docs/_build/`: the gallery's scripts run, and a warning is an error."""
    install(session, "sde", "jax", group="docs")
    out = "docs/_build/html"
    session.run("sphinx-build", "-W", "--keep-going", "-n", "-b", "html", "docs", out, *session.posargs)
    session.log(f"{out}/index.html")


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """The sdist and the wheel of a release in `dist/`, each half of which runs in an environment with nothing else."""
    session.install(LAZY, *nox.project.dependency_groups(PYPROJECT, "build"))
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")
    [sdist], [wheel] = Path("dist").glob("*.tar.gz"), Path("dist").glob("*.whl")
    session.run("twine", "check", "--strict", str(sdist), str(wheel))
    if wheel.stat().st_size >= 400_000:
        session.error(f"{wheel} has {wheel.stat().st_size} bytes, 400,000 or more")
    for half, pins in (("torch", [TORCH]), ("jax", [])):
        folder = Path(session.create_tmp(), half)
        session.run(sys.executable, "-m", "venv", "--clear", str(folder), external=True)
        python = str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")
        pip = (python, "-m", "pip", "install", "--quiet", LAZY)
        session.run(*pip, *pins, f"{wheel.resolve()}[{half}]", external=True)
        session.run(python, "-P", ".ci/first_example.py", half, external=True)


if __name__ == "__main__":
    nox.main()
