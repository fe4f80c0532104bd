"""SciPy's breakdown thresholds are absolute; what it is handed is not small, however small the residual is."""

import numpy as np
import pytest

pytest.importorskip("scipy")

import implicitgrad as ig
import implicitgrad.scipy as igs


@pytest.mark.parametrize("method", ["bicgstab", "bicg", "cgs", "qmr", "gmres"])
def test_the_small_residual_of_a_good_guess_is_solved(method):
    """bicgstab stops at rho < eps**2, here a residual of 1.2e-7: that of a guess right to 1e-4 for b of norm 3e-4."""
    rng = np.random.default_rng(0)
    matrix = (np.eye(30) + 0.3 * rng.standard_normal((30, 30)) / 30**0.5).astype(np.float32)
    b = rng.standard_normal(30).astype(np.float32)
    b *= np.float32(3e-4 / np.linalg.norm(b))
    guess = (1.0001 * np.linalg.solve(matrix.astype(float), b)).astype(np.float32)
    solver = igs.ScipySolver(method, rtol=1e-6)
    solution = solver.solve(ig.DenseOperator(matrix), b, guess)
    assert solution.converged
    large = solver.solve(ig.DenseOperator(matrix), b * np.float32(2.0**12), guess * np.float32(2.0**12))
    assert solution.num_matvecs == large.num_matvecs
    assert np.array_equal(large.x, solution.x * np.float32(2.0**12))
