"""Matrices with a given premise, made from a seeded generator: draw the spectrum, then rotate it.

``kinds.py`` puts them together to whole kinds of systems, ``strategies`` draws their settings. NumPy alone is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = [
    "clustered_values",
    "contraction",
    "jordan_block",
    "random_matrix",
    "random_orthogonal",
    "rotated_spectrum",
    "skew",
    "with_eigenvalues",
    "with_singular_values",
]

Matrix = Any  # a NumPy array; much of numpy.linalg is typed no more narrowly


def random_matrix(rng: np.random.Generator, n: int, is_complex: bool = False) -> Matrix:
    """Return standard normal entries, complex ones where asked.

    Examples
    --------
    >>> random_matrix(np.random.default_rng(0), 3).shape
    (3, 3)
    """
    draw: Matrix = rng.standard_normal((n, n))
    return draw + 1j * rng.standard_normal((n, n)) if is_complex else draw


def random_orthogonal(rng: np.random.Generator, n: int, is_complex: bool = False) -> Matrix:
    """Return an orthogonal matrix, or a unitary one.

    Examples
    --------
    >>> Q = random_orthogonal(np.random.default_rng(0), 4)
    >>> bool(np.allclose(Q.T @ Q, np.eye(4)))
    True
    """
    return np.linalg.qr(random_matrix(rng, n, is_complex))[0]


def with_singular_values(rng: np.random.Generator, values: Matrix, is_complex: bool = False) -> Matrix:
    """Return a matrix with these singular values and random singular vectors.

    Examples
    --------
    >>> A = with_singular_values(np.random.default_rng(0), np.array([3.0, 1.0]))
    >>> np.linalg.svd(A, compute_uv=False).round(12)
    array([3., 1.])
    """
    n = len(values)
    return (random_orthogonal(rng, n, is_complex) * values) @ random_orthogonal(rng, n, is_complex)


def with_eigenvalues(rng: np.random.Generator, values: Matrix, is_complex: bool = False) -> Matrix:
    """Return a symmetric (Hermitian) matrix with these real eigenvalues and random eigenvectors.

    Examples
    --------
    >>> A = with_eigenvalues(np.random.default_rng(0), np.array([-1.0, 2.0]))
    >>> np.linalg.eigvalsh(A).round(12)
    array([-1.,  2.])
    """
    q = random_orthogonal(rng, len(values), is_complex)
    matrix = (q * values) @ q.conj().T
    return (matrix + matrix.conj().T) / 2


def rotated_spectrum(
    rng: np.random.Generator, eigenvalues: Sequence[complex], departure: float = 0.0, is_complex: bool = False
) -> Matrix:
    """Return a matrix with these eigenvalues, rotated: normal, or as far from it as asked.

    Parameters
    ----------
    rng : numpy.random.Generator
        Of the rotation.
    eigenvalues : sequence of complex
        A real matrix has each complex eigenvalue together with its conjugate, which is added: ``[0.5, 0.3 + 0.2j]``
        makes a real matrix of size 3.
    departure : float
        Frobenius norm of the strictly upper triangle in Schur form (Henrici's departure from normality); 0: normal.
        A real matrix with complex eigenvalues is normal before it is added.
    is_complex : bool
        Whether the matrix is complex.

    Examples
    --------
    >>> J = rotated_spectrum(np.random.default_rng(0), [0.5, 0.3 + 0.2j])
    >>> np.sort_complex(np.linalg.eigvals(J)).round(12)
    array([0.3-0.2j, 0.3+0.2j, 0.5+0.j ])
    >>> J = rotated_spectrum(np.random.default_rng(0), [0.5, 0.5, 0.5], departure=10.0)
    >>> bool(np.linalg.norm(J, 2) > 5)  # a spectral radius of one half says little about one step
    True
    """
    blocks = [np.array([[value]]) if is_complex else _real_block(value) for value in eigenvalues]
    n = sum(len(block) for block in blocks)
    schur: Matrix = np.zeros((n, n), complex if is_complex else float)
    above = np.ones((n, n), dtype=bool)
    start = 0
    for block in blocks:
        stop = start + len(block)
        schur[start:stop, start:stop] = block
        above[start:stop, start:stop] = False
        start = stop
    triangle = np.where(np.triu(above, 1), random_matrix(rng, n, is_complex), 0.0)
    size = np.linalg.norm(triangle)
    q = random_orthogonal(rng, n, is_complex)
    return q @ (schur + (departure / size * triangle if size > 0 else 0.0)) @ q.conj().T


def _real_block(value: complex) -> Matrix:
    if complex(value).imag == 0:
        return np.array([[complex(value).real]])
    a, b = complex(value).real, complex(value).imag
    return np.array([[a, -b], [b, a]])


def contraction(rng: np.random.Generator, n: int, norm: float, is_complex: bool = False) -> Matrix:
    """Return ``J`` with ``norm(J, 2) = norm``, up to rounding: the largest singular value given, the others drawn.

    Examples
    --------
    >>> J = contraction(np.random.default_rng(0), 5, norm=0.9)
    >>> round(float(np.linalg.norm(J, 2)), 12)
    0.9
    """
    values = norm * rng.uniform(0.0, 1.0, n) ** rng.uniform(0.0, 2.0)
    values[0] = norm
    return with_singular_values(rng, values, is_complex)


def jordan_block(n: int, eigenvalue: complex, coupling: float = 1.0) -> Matrix:
    """Return one Jordan block with ``coupling`` above the diagonal: one eigenvector for ``n`` equal eigenvalues.

    Examples
    --------
    >>> jordan_block(2, 0.5, coupling=3.0)
    array([[0.5, 3. ],
           [0. , 0.5]])
    """
    return eigenvalue * np.eye(n) + coupling * np.eye(n, k=1)


def clustered_values(rng: np.random.Generator, n: int, centres: Sequence[float], width: float) -> Matrix:
    """Return ``n`` values within ``width`` of these centres: a Krylov method needs about one step for each cluster.

    Examples
    --------
    >>> clustered_values(np.random.default_rng(0), 4, centres=[0.5, 2.0], width=0.0)
    array([0.5, 2. , 0.5, 2. ])
    """
    places = np.asarray(centres, dtype=float)[np.arange(n) % len(centres)]
    return places + width * rng.uniform(-1.0, 1.0, n)


def skew(rng: np.random.Generator, n: int, norm: float, is_complex: bool = False) -> Matrix:
    """Return ``J = -J^H`` with ``norm(J, 2) = norm``: imaginary eigenvalues, ``I - J`` regular whatever the norm.

    A real one of size 1 is zero.

    Examples
    --------
    >>> J = skew(np.random.default_rng(0), 4, norm=2.0)
    >>> bool(np.array_equal(J, -J.T)), round(float(np.linalg.norm(J, 2)), 12)
    (True, 2.0)
    """
    draw = random_matrix(rng, n, is_complex)
    draw = draw - draw.conj().T
    size = np.linalg.norm(draw, 2) if n else 0.0
    return draw * (norm / size) if size > 0 else draw
