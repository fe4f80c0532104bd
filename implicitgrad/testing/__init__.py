"""Property-based checks for users: systems with known answers, assertions about operators and solvers, propositions.

``import implicitgrad.testing as igtest`` needs NumPy alone. The hypothesis strategies stand in
``implicitgrad.testing.strategies``, which is imported on its own (``pip install implicitgrad[testing]``).
"""

from implicitgrad.testing.kinds import KINDS, random_matrix
from implicitgrad.testing.oracles import Problem, counted, eps_of, make_problem
from implicitgrad.testing.properties import (
    assert_adjoint,
    assert_batch_is_loop,
    assert_close,
    assert_honest_counts,
    assert_linear,
    assert_no_false_success,
    assert_scale_equivariant,
)
from implicitgrad.testing.propositions import (
    assert_neumann_error_bound,
    assert_neumann_is_truncated_bptt,
    assert_rbp_is_neumann,
)

__all__ = [
    "KINDS",
    "Problem",
    "assert_adjoint",
    "assert_batch_is_loop",
    "assert_close",
    "assert_honest_counts",
    "assert_linear",
    "assert_neumann_error_bound",
    "assert_neumann_is_truncated_bptt",
    "assert_no_false_success",
    "assert_rbp_is_neumann",
    "assert_scale_equivariant",
    "counted",
    "eps_of",
    "make_problem",
    "random_matrix",
]
