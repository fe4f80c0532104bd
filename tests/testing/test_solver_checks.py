"""``assert_solver``: passes on honest solvers, and catches each planted fault by the rule that is meant for it."""

import re
from dataclasses import replace

import numpy as np
import pytest
from broken_solvers import FAULTS, GIVES_UP, Faulty

import implicitgrad as ig
import implicitgrad.testing as igtest
from implicitgrad.testing import KINDS, assert_scale_equivariant, assert_solver, make_problem

# Enough to see each fault: solvable and not, real and complex, one system that the dtype of single precision shows.
SMALL = {
    "kinds": ["contraction", "symmetric contraction", "skew", "singular, b out of range"],
    "dtypes": ["complex64", "float64"],
    "sizes": [5, 2],
    "systems": 1,
}
HONEST = [
    (ig.Neumann(max_iters=100), ["contraction"]),
    (ig.CG(), ["symmetric contraction"]),
    (ig.GMRES(), ["contraction", "skew", "nearly singular"]),
    (ig.GMRES(restart=5), ["contraction"]),
    (ig.BiCGSTAB(), ["contraction"]),
    (ig.LSMR(), ["contraction", "skew"]),
    (ig.NormalEquations(), ["contraction"]),
    (ig.MINRES(), ["indefinite"]),
    (ig.Dense(), ["contraction", "expanding", "huge"]),
    (ig.Auto(), ["contraction", "expanding", "tiny"]),
]


@pytest.mark.parametrize(
    ("solver", "solves"), HONEST, ids=[repr(s).split("(")[0] + str(i) for i, (s, _) in enumerate(HONEST)]
)
def test_our_solvers_pass_on_every_kind_of_system(solver, solves):
    kinds = sorted({*solves, "singular, b out of range", "jordan", "J = I"})
    assert_solver(solver, kinds=kinds, dtypes=["float32", "complex128"], sizes=[1, 4], systems=2, must_converge=solves)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught_by_its_rule_and_named(name):
    fault, rule, words = FAULTS[name]
    with pytest.raises(AssertionError) as caught:
        assert_solver(Faulty(fault), **SMALL)
    message = str(caught.value)
    (entry,) = [part for part in re.split(r"\n  (?=\w)", message) if part.startswith(f"{rule}: in ")]
    assert re.search(words, entry), entry
    assert re.search(r"in \d+ of \d+ systems\. The smallest: ", entry)
    assert re.search(r"\n    problem = make_problem\('.*', size=2, seed=\d", entry), entry


def test_the_lines_of_a_report_repeat_the_failure():
    """They are run as they are printed."""
    solver = Faulty(FAULTS["claims success"][0])
    with pytest.raises(AssertionError) as caught:
        assert_solver(solver, kinds=["J = I"], dtypes=["float64"], sizes=[3])
    report = str(caught.value).splitlines()
    start = next(i for i, line in enumerate(report) if line.startswith("  no false success"))
    lines = "\n".join(line.strip() for line in report[start + 1 : start + 3])
    with pytest.raises(AssertionError, match="CONVERGED at a residual of"):
        exec(lines, {**vars(igtest), "solver": solver})


def test_the_head_of_a_report_counts_rules_and_systems():
    with pytest.raises(
        AssertionError, match=r"assert_solver: Faulty breaks 1 of 9 rules \(8 systems, \d+ of them CONVERGED\)"
    ):
        assert_solver(Faulty(FAULTS["writes into b"][0]), **SMALL)


def test_a_rule_can_be_left_out():
    assert_solver(Faulty(FAULTS["writes into b"][0]), **SMALL, skip=["inputs"])


def test_a_solver_that_never_solves_anything_has_shown_nothing():
    with pytest.raises(AssertionError, match="nothing was solved: not one system ended as CONVERGED"):
        assert_solver(GIVES_UP, kinds=["contraction"], dtypes=["float64"], sizes=[4])


def test_a_kind_that_must_converge_is_named_where_it_does_not():
    with pytest.raises(
        AssertionError, match=r"must_converge: in 2 of 2 systems.*not CONVERGED, although its dtype allows"
    ):
        assert_solver(
            ig.CG(),
            kinds=["skew", "positive definite"],
            dtypes=["float64"],
            sizes=[8],
            systems=2,
            must_converge=["skew"],
        )


def test_what_a_dtype_does_not_allow_is_not_asked_for():
    """A condition number of 1e13: no solver can, in single precision."""
    assert_solver(
        ig.GMRES(),
        kinds=["nearly singular", "contraction"],
        dtypes=["float32"],
        sizes=[4],
        must_converge=["nearly singular"],
    )


def test_the_default_battery_has_a_system_of_each_kind_and_dtype():
    seen = set()

    def spy(solve, operator, rhs, x0):
        seen.add((rhs.dtype.name, rhs.shape[-1]))
        return ig.GMRES(max_iters=0).solve(operator, rhs, x0)

    rules = [
        "scale equivariance",
        "batch independence",
        "honest counts",
        "warm start",
        "zero",
        "NaN",
        "inputs",
        "repeatable",
    ]
    with pytest.raises(AssertionError, match=rf"breaks 1 of 2 rules \({4 * len(KINDS)} systems, 0 of them CONVERGED"):
        assert_solver(Faulty(spy), skip=rules)
    assert seen == {(dtype, n) for dtype in ("float32", "float64", "complex64", "complex128") for n in (1, 2, 5, 12)}


def test_the_right_hand_side_itself_is_no_solution_to_hand_out():
    """Right by value where A = I, and changed by whoever changes b."""
    handing_out = Faulty(lambda solve, operator, rhs, x0: replace(solve(operator, rhs, x0), x=rhs))
    with pytest.raises(AssertionError, match="x is a view of b, expected its own memory"):
        igtest.assert_inputs_untouched(handing_out, make_problem("J = 0", 3, 0))


def test_unknown_names_and_objects_are_refused_in_words():
    with pytest.raises(ig.SettingError, match=r"got 'slanted' in kinds, expected among contraction, "):
        assert_solver(ig.CG(), kinds=["slanted"])
    with pytest.raises(ig.SettingError, match=r"got 'speed' in skip, expected among no false success, "):
        assert_solver(ig.CG(), skip=["speed"])
    with pytest.raises(ig.SettingError, match=r"got 'skew' in must_converge, expected among contraction"):
        assert_solver(ig.CG(), kinds=["contraction"], must_converge=["skew"])
    with pytest.raises(ig.SettingTypeError, match=r"got an object of type function, expected a solver with solve"):
        assert_solver(lambda A, b: b)


def test_scaling_is_compared_to_the_bit():
    """Same steps, same status, an error in the last bit: nothing but the comparison of x can see it."""
    problem = make_problem("contraction", 5, 0)

    def nudged(solve, operator, rhs, x0):
        solution = solve(operator, rhs, x0)
        solution.x[0] = np.nextafter(solution.x[0], np.inf) if abs(rhs[0]) > abs(problem.rhs[0]) else solution.x[0]
        return solution

    with pytest.raises(AssertionError, match=r"2\*\*1: x differs by .*, expected the same bits"):
        assert_scale_equivariant(Faulty(nudged), problem.operator, problem.rhs, exponents=(-7, 1))
    assert_scale_equivariant(Faulty(nudged), problem.operator, problem.rhs, exponents=(-7, -60))
