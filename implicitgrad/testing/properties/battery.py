"""``assert_solver``: everything that must hold of a solver, on systems of all kinds, in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from implicitgrad.errors import SettingError, SettingTypeError
from implicitgrad.solvers import Solver
from implicitgrad.status import Status
from implicitgrad.testing.kinds import KINDS
from implicitgrad.testing.problem import Problem
from implicitgrad.testing.properties.rules import RULES, Rule
from implicitgrad.testing.systems import make_problem

__all__ = ["assert_solver"]


@dataclass
class _Verdict:
    """How often a rule was tried and broken, and the first, that is smallest, problem that broke it."""

    tried: int = 0
    broken: int = 0
    first: str = ""
    problem: Problem | None = field(default=None)


def assert_solver(
    solver: Solver,
    *,
    kinds: Iterable[str] | None = None,
    dtypes: Sequence[str] = ("float32", "float64", "complex64", "complex128"),
    sizes: Sequence[int] = (1, 2, 5, 12),
    systems: int = 1,
    seed: int = 0,
    must_converge: Iterable[str] = (),
    skip: Iterable[str] = (),
) -> None:
    """Assert everything that must hold of a linear solver, on systems of all kinds with known answers.

    Parameters
    ----------
    solver : Solver
        Yours: a class derived from ``ig.Solver`` with ``solve(operator, rhs, x0=None) -> Solution``.
    kinds : iterable of str, optional
        Keys of ``igtest.KINDS``: contractions, non-normal, skew, indefinite, singular, tiny, huge, ... Default: all. A
        solver need not solve all of them; it must not say that it has.
    dtypes : sequence of str
        Among ``float32``, ``float64``, ``complex64``, ``complex128``.
    sizes : sequence of int
        Sizes ``n``, taken in turn.
    systems : int
        How many systems of each kind and dtype.
    seed : int
        The seeds of the systems are ``seed``, ``seed + 1``, ...
    must_converge : iterable of str
        Kinds of which every system must end as ``CONVERGED``, as far as its dtype allows. Without any, at least one
        system must: a solver that always gives up claims nothing false.
    skip : iterable of str
        Rules that your solver makes no promise about, among:

        * ``"no false success"``: ``CONVERGED`` means a true residual within the bound, ``residual_norm`` is true
        * ``"scale equivariance"``: ``2**k b`` gives ``2**k x`` to the bit, by the same steps
        * ``"batch independence"``: systems of a batch end as they do alone
        * ``"honest counts"``: the products reported are the products made
        * ``"warm start"``: a guess moves no bound; the solution as a guess costs one product
        * ``"zero"``: ``b = 0`` gives ``x = 0``, ``CONVERGED``
        * ``"NaN"``: ends with a bad status and a finite ``x``
        * ``"inputs"``: ``b`` and ``x0`` are left as they are, ``x`` has its own memory and the dtype of ``b``
        * ``"repeatable"``: the same bits twice

    Raises
    ------
    AssertionError
        Names every rule that is broken, how often, by how much the smallest system breaks it, and the two lines that
        build that system and repeat the check.
    SettingError, SettingTypeError
        An unknown kind or rule; ``solver`` has no ``solve``.

    Notes
    -----
    About 20 solves a system, 72 systems by default: 2 s for ``GMRES``, 12 s for ``Neumann``, which takes its 1000
    steps on the systems that it cannot solve. ``systems=10`` is a thorough run.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> assert_solver(ig.GMRES(), kinds=["contraction", "skew"], dtypes=["float64"], must_converge=["contraction"])
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Hopeful(ig.Solver):  # iterates ten times and calls that a success
    ...     def solve(self, operator, rhs, x0=None):
    ...         x = np.zeros_like(rhs) if x0 is None else x0
    ...         for _ in range(10):
    ...             x = x + (rhs - operator.matvec(x))
    ...         size = float(np.linalg.norm(rhs))
    ...         return ig.Solution(x, ig.Status.CONVERGED, 0.0, size, 1e-6 * size, 10, 10, 0)
    >>> assert_solver(Hopeful(), kinds=["skew"], dtypes=["float64"], systems=4, skip=["batch independence"])
    Traceback (most recent call last):
    ...
    AssertionError: assert_solver: Hopeful breaks 4 of 8 rules (4 systems, 4 of them CONVERGED).
      no false success: in 3 of 4 systems. ... CONVERGED at a residual of ..., expected at most ...
        problem = make_problem('skew', size=2, seed=1)
        assert_no_false_success(problem, solver.solve(problem.operator, problem.rhs))
      ...
    """
    chosen, rules = _checked(solver, kinds, must_converge, skip)
    verdicts = {name: _Verdict() for name in rules}
    wanted, late, good = set(must_converge), _Verdict(), 0
    problems = list(_problems(chosen, dtypes, sizes, systems, seed, None))
    for problem in problems:
        solved, solvable = _solved(solver, problem)
        good += solved
        if problem.kind in wanted and solvable:
            _note(late, problem, "" if solved else "not CONVERGED, although its dtype allows it")
    for name, rule in rules.items():
        fitting = [kind for kind in chosen if kind in rule.kinds]
        of_rule = problems if rule.batch is None else _problems(fitting, dtypes, sizes, systems, seed, rule.batch)
        for problem in of_rule:
            if problem.kind in rule.kinds:
                _note(verdicts[name], problem, _failure(rule, solver, problem))
    report = [_lines(name, verdict, rules[name].line) for name, verdict in verdicts.items() if verdict.broken]
    if late.broken:
        report.append(_lines("must_converge", late, "solver.solve(problem.operator, problem.rhs)"))
    if not good:
        report.append("  nothing was solved: not one system ended as CONVERGED. Name kinds that this solver is for.")
    if report:
        raise AssertionError(
            f"assert_solver: {type(solver).__name__} breaks {len(report)} of {len(rules) + bool(wanted) + (not good)} "
            f"rules ({len(problems)} systems, {good} of them CONVERGED).\n" + "\n".join(report)
        )


def _checked(
    solver: object, kinds: Iterable[str] | None, must_converge: Iterable[str], skip: Iterable[str]
) -> tuple[list[str], dict[str, Rule]]:
    """Return the kinds and the rules asked for, once they are known to exist."""
    if not callable(getattr(solver, "solve", None)):
        raise SettingTypeError(
            f"assert_solver: got an object of type {type(solver).__qualname__}, expected a solver with "
            "solve(operator, rhs, x0=None) -> Solution. Derive a class from implicitgrad.Solver."
        )
    chosen, left_out = list(KINDS) if kinds is None else list(kinds), list(skip)
    for what, known, given in (
        ("kinds", KINDS, chosen),
        ("must_converge", chosen, list(must_converge)),
        ("skip", RULES, left_out),
    ):
        for name in given:
            if name not in known:
                raise SettingError(f"assert_solver: got {name!r} in {what}, expected among {', '.join(known)}.")
    return chosen, {name: rule for name, rule in RULES.items() if name not in left_out}


def _problems(
    kinds: Sequence[str], dtypes: Sequence[str], sizes: Sequence[int], systems: int, seed: int, batch: int | None
) -> Iterable[Problem]:
    """Yield the systems, the small ones first."""
    plan = [
        (sizes[(number + turn) % len(sizes)], seed + turn, kind, dtype)
        for number, kind in enumerate(kinds)
        for dtype in dtypes
        for turn in range(systems)
    ]
    for size, start, kind, dtype in sorted(plan, key=lambda entry: entry[0]):
        yield make_problem(kind, size=size, seed=start, dtype=dtype, batch=batch)


def _solved(solver: Solver, problem: Problem) -> tuple[bool, bool]:
    """Return whether the solver says ``CONVERGED``, and whether the dtype lets it: the true solution is well within."""
    try:
        solution = solver.solve(problem.operator, problem.rhs.copy())
    except Exception:  # the rules will tell
        return False, False
    exact = problem.x_exact
    within = not problem.singular and 10 * problem.rounding(exact) <= float(solution.bound)
    return solution.status is Status.CONVERGED, within


def _failure(rule: Rule, solver: Solver, problem: Problem) -> str:
    """Return what is wrong, or nothing."""
    try:
        rule.check(solver, problem)
    except AssertionError as error:
        return str(error).removeprefix(f"{problem.kind}: ") or "an assertion without words"
    except Exception as error:  # a numerical outcome is a status, never an exception
        return f"raised {type(error).__name__}: {error}"
    return ""


def _note(verdict: _Verdict, problem: Problem, failure: str) -> None:
    verdict.tried += 1
    if failure:
        verdict.broken += 1
        if verdict.problem is None:
            verdict.first, verdict.problem = failure, problem


def _lines(name: str, verdict: _Verdict, line: str) -> str:
    return (
        f"  {name}: in {verdict.broken} of {verdict.tried} systems. The smallest: {verdict.first}\n"
        f"    problem = {verdict.problem!r}\n    {line}"
    )
