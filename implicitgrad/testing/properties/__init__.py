"""What must hold of operators and solvers, as checks that say by how much and where they failed."""

from implicitgrad.testing.properties.battery import assert_solver
from implicitgrad.testing.properties.closeness import assert_close
from implicitgrad.testing.properties.contraction import assert_contraction
from implicitgrad.testing.properties.invariance import (
    assert_batch_is_loop,
    assert_repeatable,
    assert_scale_equivariant,
    assert_warm_start_never_hurts,
)
from implicitgrad.testing.properties.operators import assert_adjoint, assert_linear
from implicitgrad.testing.properties.solvers import (
    assert_honest_counts,
    assert_inputs_untouched,
    assert_nan_is_told,
    assert_no_false_success,
    assert_zero_is_solved,
)

__all__ = [
    "assert_adjoint",
    "assert_batch_is_loop",
    "assert_close",
    "assert_contraction",
    "assert_honest_counts",
    "assert_inputs_untouched",
    "assert_linear",
    "assert_nan_is_told",
    "assert_no_false_success",
    "assert_repeatable",
    "assert_scale_equivariant",
    "assert_solver",
    "assert_warm_start_never_hurts",
    "assert_zero_is_solved",
]
