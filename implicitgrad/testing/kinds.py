"""Matrices of many kinds, drawn from a seeded generator: the premise of a property is built in, never filtered for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from implicitgrad.testing.matrices import (
    Matrix,
    random_matrix,
    random_orthogonal,
    with_eigenvalues,
    with_singular_values,
)

__all__ = ["KINDS", "Kind", "random_matrix"]


def _contraction(rng: np.random.Generator, n: int, is_complex: bool) -> Matrix:
    norm = rng.uniform(0.05, 0.9)
    return with_singular_values(rng, norm * rng.uniform(0.0, 1.0, n) ** rng.uniform(0, 2), is_complex)


def _normal(rng: np.random.Generator, n: int, is_complex: bool) -> Matrix:
    radius, angle = rng.uniform(0, 0.9, n), rng.uniform(0, 2 * np.pi, n)
    q = random_orthogonal(rng, n, is_complex)
    if is_complex:
        return (q * (radius * np.exp(1j * angle))) @ q.conj().T
    blocks = np.diag(radius)
    for i in range(0, n - 1, 2):
        c, s = np.cos(angle[i]), np.sin(angle[i])
        blocks[i : i + 2, i : i + 2] = radius[i] * np.array([[c, -s], [s, c]])
    return q @ blocks @ q.T


def _non_normal(rng: np.random.Generator, n: int, is_complex: bool) -> Matrix:
    strength = rng.uniform(0.5, 3.0)
    triangle = np.triu(random_matrix(rng, n, is_complex), 1) * strength / np.sqrt(n)
    triangle = triangle + np.diag(rng.uniform(-0.7, 0.7, n))
    q = random_orthogonal(rng, n, is_complex)
    return q @ triangle @ q.conj().T


def _jordan(rng: np.random.Generator, n: int, is_complex: bool) -> Matrix:
    block = rng.uniform(-0.6, 0.6) * np.eye(n) + rng.uniform(0.1, 0.8) * np.eye(n, k=1)
    return block.astype(complex) * np.exp(1j * rng.uniform(0, 6)) if is_complex else block


def _nilpotent(rng: np.random.Generator, n: int, is_complex: bool) -> Matrix:
    shift = rng.choice([0.5, 1.0, 2.0]) * np.eye(n, k=1)
    return shift * 1j if is_complex else shift


def _zero(rng: np.random.Generator, n: int, is_complex: bool) -> Matrix:
    return np.zeros((n, n), complex if is_complex else float)


def _identity(rng: np.random.Generator, n: int, is_complex: bool) -> Matrix:
    return np.eye(n, dtype=complex if is_complex else float)


def _symmetric_contraction(rng: np.random.Generator, n: int, is_complex: bool) -> Matrix:
    return with_eigenvalues(rng, rng.uniform(-0.9, 0.9, n), is_complex)


def _spd(rng: np.random.Generator, n: int, is_complex: bool) -> Matrix:
    return with_eigenvalues(rng, 10.0 ** rng.uniform(-1.0, 1.0, n), is_complex)


def _indefinite(rng: np.random.Generator, n: int, is_complex: bool) -> Matrix:
    return with_eigenvalues(rng, rng.choice([-1.0, 1.0], n) * rng.uniform(0.3, 3.0, n), is_complex)


def _skew(rng: np.random.Generator, n: int, is_complex: bool) -> Matrix:
    draw = random_matrix(rng, n, is_complex)
    return rng.uniform(0.1, 20.0) * (draw - draw.conj().T) / (2 * np.sqrt(n))


def _rotation(rng: np.random.Generator, n: int, is_complex: bool) -> Matrix:
    """Orthogonal with no eigenvalue near 1: I - J is regular, but no power of J gets smaller."""
    angle = rng.uniform(0.5, 2 * np.pi - 0.5, n)
    q = random_orthogonal(rng, n, is_complex)
    if is_complex:
        return (q * np.exp(1j * angle)) @ q.conj().T
    blocks = -np.eye(n)
    for i in range(0, n - 1, 2):
        c, s = np.cos(angle[i]), np.sin(angle[i])
        blocks[i : i + 2, i : i + 2] = np.array([[c, -s], [s, c]])
    return q @ blocks @ q.T


def _expanding(rng: np.random.Generator, n: int, is_complex: bool) -> Matrix:
    return -3.0 * random_orthogonal(rng, n, is_complex)


def _nearly_singular(rng: np.random.Generator, n: int, is_complex: bool) -> Matrix:
    values = rng.uniform(0.5, 2.0, n)
    values[0] = 10.0 ** rng.uniform(-17, -3)
    return with_singular_values(rng, values, is_complex)


def _singular(rng: np.random.Generator, n: int, is_complex: bool) -> Matrix:
    values = rng.uniform(0.5, 2.0, n)
    values[: rng.integers(1, max(2, n // 2 + 1))] = 0.0
    return with_singular_values(rng, values, is_complex)


def _regular(rng: np.random.Generator, n: int, is_complex: bool) -> Matrix:
    return with_singular_values(rng, rng.uniform(0.3, 2.0, n), is_complex)


@dataclass(frozen=True)
class Kind:
    """How a kind of system is made, and what holds of it."""

    make: Callable[[np.random.Generator, int, bool], Matrix]
    shifted: bool = True
    symmetric: bool = False
    definite: bool = False
    contractive: bool = False
    singular: bool = False
    in_range: bool = False  # b = A y instead of random
    factor: tuple[float, float] = (1.0, 1.0)  # the operator's size in single and in double precision


KINDS: dict[str, Kind] = {
    "contraction": Kind(_contraction, contractive=True),
    "normal": Kind(_normal, contractive=True),
    "non-normal": Kind(_non_normal, contractive=True),
    "jordan": Kind(_jordan, contractive=True),
    "nilpotent": Kind(_nilpotent, contractive=True),
    "J = 0": Kind(_zero, symmetric=True, definite=True, contractive=True),
    "J = I": Kind(_identity, symmetric=True, singular=True),
    "symmetric contraction": Kind(_symmetric_contraction, symmetric=True, definite=True, contractive=True),
    "positive definite": Kind(_spd, shifted=False, symmetric=True, definite=True),
    "indefinite": Kind(_indefinite, shifted=False, symmetric=True),
    "skew": Kind(_skew),
    "rotation": Kind(_rotation),
    "expanding": Kind(_expanding),
    "nearly singular": Kind(_nearly_singular, shifted=False),
    "singular, b in range": Kind(_singular, shifted=False, singular=True, in_range=True),
    "singular, b out of range": Kind(_singular, shifted=False, singular=True),
    "tiny": Kind(_regular, shifted=False, factor=(1e-9, 1e-30)),
    "huge": Kind(_regular, shifted=False, factor=(1e9, 1e30)),
}
