"""Matrices of every kind with their spectra from dense NumPy, and how near two roads to a number have to come."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad.testing import KINDS

# A product and a dense decomposition each round; both are relative to the norm of what is applied.
ROUNDING = 16


@dataclass(frozen=True, eq=False)
class Case:
    """A matrix, its operator, and what NumPy says of it in double precision."""

    kind: str
    dense: Any
    operator: ig.LinearOperator
    eps: float
    size: float  # what the rounding of one product is relative to

    @property
    def singular_values(self):
        return np.linalg.svd(self.dense, compute_uv=False)

    @property
    def eigenvalues(self):
        return np.linalg.eigvalsh(self.dense)

    @property
    def rounding(self):
        return ROUNDING * self.eps * self.size


def make_case(kind, seed, dtype="float64", largest=40, operator=None):
    """Return ``I - J`` of a shifted kind, ``A`` of another; the operator keeps the shift outside, as users' do."""
    recipe = KINDS[kind]
    rng = np.random.default_rng([seed, len(kind)])
    n = int(rng.integers(1, largest + 1))
    dtype = np.dtype(dtype)
    eps = float(np.finfo(dtype).eps)
    factor = recipe.factor[eps < 1e-10]
    matrix = (factor * recipe.make(rng, n, dtype.kind == "c")).astype(dtype)
    exact = matrix.astype(np.result_type(dtype, np.float64))
    op = ig.DenseOperator(matrix, symmetric=recipe.symmetric)
    norm = float(np.linalg.norm(exact, 2))
    if recipe.shifted:
        return Case(kind, np.eye(n) - exact, ig.identity_minus(op), eps, 1 + norm)
    return Case(kind, exact, op, eps, norm)


@pytest.fixture
def cases():
    """Return a generator of cases: every kind asked for, ``rounds`` times."""

    def generate(rounds, kinds=KINDS, dtypes=("float64", "complex128"), largest=40):
        for turn in range(rounds):
            for kind in kinds:
                yield make_case(kind, turn, dtypes[turn % len(dtypes)], largest)

    return generate


SYMMETRIC = [name for name, kind in KINDS.items() if kind.symmetric]
