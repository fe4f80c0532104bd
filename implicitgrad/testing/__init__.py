"""Checks for users: systems and maps with known answers, assertions about operators, solvers and layers, propositions.

``import implicitgrad.testing as igtest`` needs NumPy alone. The hypothesis strategies, ``igtest.strategies``, load
hypothesis when they are first used (``pip install "implicitgrad[testing]"``), and ``igtest.assert_implicit_gradient``
loads torch when it is called (``"implicitgrad[torch]"``).
"""

import importlib
from typing import Any

from implicitgrad.testing.counting import counted
from implicitgrad.testing.gradients import assert_implicit_gradient
from implicitgrad.testing.kinds import KINDS
from implicitgrad.testing.maps import FixedPointMap, make_map, map_of
from implicitgrad.testing.matrices import (
    clustered_values,
    contraction,
    jordan_block,
    random_matrix,
    random_orthogonal,
    rotated_spectrum,
    skew,
    with_eigenvalues,
    with_singular_values,
)
from implicitgrad.testing.problem import Problem, eps_of
from implicitgrad.testing.properties import (
    assert_adjoint,
    assert_batch_is_loop,
    assert_close,
    assert_contraction,
    assert_honest_counts,
    assert_inputs_untouched,
    assert_linear,
    assert_nan_is_told,
    assert_no_false_success,
    assert_repeatable,
    assert_scale_equivariant,
    assert_solver,
    assert_warm_start_never_hurts,
    assert_zero_is_solved,
)
from implicitgrad.testing.propositions import (
    assert_gershgorin_bound,
    assert_neumann_error_bound,
    assert_neumann_is_truncated_bptt,
    assert_rbp_is_neumann,
)
from implicitgrad.testing.systems import make_problem, problem_of

__all__ = [
    "KINDS",
    "FixedPointMap",
    "Problem",
    "assert_adjoint",
    "assert_batch_is_loop",
    "assert_close",
    "assert_contraction",
    "assert_gershgorin_bound",
    "assert_honest_counts",
    "assert_implicit_gradient",
    "assert_inputs_untouched",
    "assert_linear",
    "assert_nan_is_told",
    "assert_neumann_error_bound",
    "assert_neumann_is_truncated_bptt",
    "assert_no_false_success",
    "assert_rbp_is_neumann",
    "assert_repeatable",
    "assert_scale_equivariant",
    "assert_solver",
    "assert_warm_start_never_hurts",
    "assert_zero_is_solved",
    "clustered_values",
    "contraction",
    "counted",
    "eps_of",
    "jordan_block",
    "make_map",
    "make_problem",
    "map_of",
    "problem_of",
    "random_matrix",
    "random_orthogonal",
    "rotated_spectrum",
    "skew",
    "with_eigenvalues",
    "with_singular_values",
]


def __getattr__(name: str) -> Any:
    """Load ``strategies`` (hypothesis) or ``layers`` (torch) where they are first asked for."""
    if name in ("strategies", "layers"):
        return importlib.import_module(f"implicitgrad.testing.{name}")
    raise AttributeError(f"module 'implicitgrad.testing' has no attribute {name!r}")
