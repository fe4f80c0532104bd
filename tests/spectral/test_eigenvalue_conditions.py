"""The condition number of an eigenvalue: how far it moves per unit of a residual, ``1 / |w^H v|`` for unit vectors."""

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad.spectral.arnoldi import Arnoldi
from implicitgrad.spectral.space import Space


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_conditions_in_the_whole_space_are_those_of_the_matrix(dtype):
    """After n steps the projected problem is A in another basis: kappa = norm(w) norm(v) / |w^H v|, by dense NumPy."""
    rng = np.random.default_rng(3)
    n = 6
    triangle = np.triu(rng.standard_normal((n, n)), 1) * 3.0 + np.diag([4.0, -3.0, 2.5, 2.0, -1.0, 0.5])
    draw = rng.standard_normal((n, n)) + (1j * rng.standard_normal((n, n)) if dtype[0] == "c" else 0)
    unitary = np.linalg.qr(draw)[0]
    matrix = (unitary @ triangle @ unitary.conj().T).astype(dtype)
    space = Space("test", ig.DenseOperator(matrix))
    process = Arnoldi(space, space.start, most=n)
    for _ in range(n):
        process.step()
    ritz = process.ritz("dominant")
    values, right = np.linalg.eig(matrix)
    left = np.linalg.inv(right)  # its rows are the w^H with w^H v = 1
    order = np.argsort(-np.abs(values))
    expected = (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=0))[order]
    np.testing.assert_allclose(ritz.shown[0], values[order], rtol=1e-8)
    np.testing.assert_allclose(ritz.conditions[0], expected, rtol=1e-6)
    assert expected.max() > 2 * expected.min() > 2
