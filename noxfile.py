"""The Makefile's commands for machines without make: ``python -m pip install nox``, then ``nox -s demo tests``.

Each session has its own environment. Arguments after ``--`` go to the program: ``nox -s demo -- --help``. The variable
``TORCH_INDEX`` names a wheel index to use beside the configured one, for example one with CPU builds of torch.
"""

from __future__ import annotations

import os

import nox

nox.needs_version = ">=2024.10.9"  # has nox.project.dependency_groups
nox.options.sessions = ["lint", "tests"]
nox.options.reuse_existing_virtualenvs = True

PYPROJECT = nox.project.load_toml("pyproject.toml")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # threads of BLAS times workers of pytest would fight for the cores


def install(session: nox.Session, *targets: str, groups: tuple[str, ...] = ()) -> None:
    """Install ``targets`` and the dependency groups under the constraints that make uses."""
    index = os.environ.get("TORCH_INDEX")
    requirements = nox.project.dependency_groups(PYPROJECT, *groups)
    session.install("-c", "constraints.txt", *(("--extra-index-url", index) if index else ()), *targets, *requirements)


@nox.session
def demo(session: nox.Session) -> None:
    """Train an associative memory on real digits."""
    install(session, "-e", ".[demo]")
    session.run("python", "examples/associative_memory.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, and the doctests of package, README and docs."""
    install(session, "-e", ".[demo,data]", groups=("test",))
    session.run("python", "-m", "pytest", "-n", "auto", *session.posargs, env=ONE_THREAD)


@nox.session(python=["3.11", "3.12", "3.13"])
def tests_core(session: nox.Session) -> None:
    """The core's tests without torch and SciPy, on every supported Python at hand."""
    install(session, "-e", ".", groups=("test",))
    ignored = [f"--ignore=tests/{folder}" for folder in ("torch", "scipy", "distributed", "benchmarks")]
    session.run("python", "-m", "pytest", "-n", "auto", "tests", *ignored, *session.posargs, env=ONE_THREAD)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff, mypy and the five floors."""
    install(session, "-e", ".[demo,data]", groups=("test", "lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")
