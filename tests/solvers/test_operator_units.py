"""Breakdown tests are relative to the operator: another unit of A changes no status and no step."""

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad import Status

REGULAR = np.array([[2.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.5, 1.0]])
SINGULAR = np.diag([1.0, 2.0, 0.0])
INDEFINITE = np.diag([-1.0, 2.0, 3.0])
CASES = [
    (ig.GMRES(), SINGULAR, Status.SINGULAR),
    (ig.Dense(), SINGULAR, Status.SINGULAR),
    (ig.LSMR(), SINGULAR, Status.LEAST_SQUARES),
    (ig.MINRES(), SINGULAR, Status.LEAST_SQUARES),
    (ig.CG(), INDEFINITE, Status.INDEFINITE),
    *((solver, REGULAR, Status.CONVERGED) for solver in (ig.GMRES(), ig.Dense(), ig.LSMR(), ig.MINRES(), ig.CG())),
    (ig.BiCGSTAB(), REGULAR, Status.CONVERGED),
]


@pytest.mark.parametrize("exponent", [-100, 0, 100])
@pytest.mark.parametrize(("solver", "matrix", "status"), CASES, ids=lambda value: getattr(value, "name", ""))
def test_the_unit_of_the_operator_changes_no_status(solver, matrix, status, exponent):
    """2**k A x = b has the status of A x = b, and x / 2**k bit for bit where the methods scale nothing else."""
    b = np.array([1.0, 2.0, 4.0])
    plain = solver.solve(ig.DenseOperator(matrix, symmetric=True), b)
    scaled = solver.solve(ig.DenseOperator(np.ldexp(matrix, exponent), symmetric=True), b)
    assert (plain.status, scaled.status) == (status, status)
    assert scaled.num_iters == plain.num_iters
    np.testing.assert_allclose(np.ldexp(scaled.x, exponent), plain.x, rtol=1e-10, atol=1e-12)
