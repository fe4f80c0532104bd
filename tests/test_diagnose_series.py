"""The Neumann series that ``diagnose`` advises is long enough, also where the eigenvalues promise a shorter one."""

import re

import numpy as np
import pytest

import implicitgrad as ig


def _jordan(size, coupling):
    return 0.5 * np.eye(size) + coupling * np.eye(size, k=1)


@pytest.mark.parametrize(
    "matrix",
    [np.diag([0.97, 0.5, 0.1]), _jordan(8, 0.6), _jordan(12, 0.5)],
    ids=["normal", "jordan 8", "jordan 12"],
)
def test_the_number_of_products_that_is_advised_is_right_to_one_percent(matrix):
    """sum_{t=0..K} (J^T)^t g is within 2% of the solution for the K in the sentence, which is beyond what was tried."""
    n = len(matrix)
    g = np.ones(n)
    report = ig.diagnose(ig.DenseOperator(matrix), g)
    assert report.radius == pytest.approx(max(np.diag(matrix)), abs=0.1)
    (sentence,) = (words for words in report.advice if "Neumann series takes" in words)
    count = int(re.search(r"K = (\d+)", sentence)[1])
    assert count > max(row.products for row in report.neumann)
    exact = np.linalg.solve(np.eye(n) - matrix.T, g)
    total = term = g
    for _ in range(count):
        term = matrix.T @ term
        total = total + term
    assert np.linalg.norm(total - exact) <= 0.02 * np.linalg.norm(exact)
