"""The project's checks. `nox` runs the default ones, which is what CI runs; `nox -l` lists them all."""

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True

PYPROJECT = nox.project.load_toml("pyproject.toml")
# The one release whose CPU build is small; every other brings gigabytes of CUDA.
TORCH = "torch==2.13.0"


def install(session: nox.Session, *extras: str, group: str) -> None:
    """Install steptape's wheel with some extras, and the tools of a dependency group."""
    tools = nox.project.dependency_groups(PYPROJECT, group)
    session.install(TORCH, f".[{','.join(extras)}]", *tools)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and format, by ruff."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Type check of the installed package and of the benchmarks, by mypy."""
    install(session, "all", group="types")
    session.run("mypy", "-p", "steptape", "-p", "benchmarks")


@nox.session
def tests(session: nox.Session) -> None:
    """All tests on the default versions of the hosts; arguments go to pytest."""
    install(session, "all", group="test")
    session.run("pytest", "-n", "auto", "--dist", "loadfile", *session.posargs)


@nox.session
def parity(session: nox.Session) -> None:
    """The cross-framework gradient parity report; arguments go to `steptape parity`."""
    install(session, "all", group="test")
    session.run("steptape", "parity", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Time and memory against torchdiffeq, torchsde and peers; arguments go to `python -m benchmarks.torch_speed`."""
    install(session, "sde", group="bench")
    # Its declared requirements bring a whole training stack, of which the solvers need two small packages.
    session.install("--no-deps", *nox.project.dependency_groups(PYPROJECT, "bench-alone"))
    session.run("python", "-m", "benchmarks.torch_speed", *session.posargs)
    session.run("python", "-m", "benchmarks.sde_speed")


@nox.session
def bench_jax(session: nox.Session) -> None:
    """Time, memory and scaling against diffrax's own adjoint, in `benchmark-report/`."""
    session.install(".[jax,report]")
    for benchmark in ("jax_speed", "jax_memory", "jax_scaling"):
        session.run("python", "-m", f"benchmarks.{benchmark}", *session.posargs)
