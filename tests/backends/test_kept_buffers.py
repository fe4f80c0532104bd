"""A callable may answer in one buffer again and again: each answer that was taken is still what it was."""

import numpy as np
import pytest

from implicitgrad.backends import backend_of


def _numpy():
    buffer = np.zeros(3)
    return (lambda u: np.multiply(u, 2.0, out=buffer)), lambda values: np.array(values)


def _torch():
    torch = pytest.importorskip("torch")
    buffer = torch.zeros(3, dtype=torch.float64)
    return (lambda u: torch.mul(u, 2.0, out=buffer)), lambda values: torch.tensor(values, dtype=torch.float64)


def _torch_view():
    torch = pytest.importorskip("torch")
    buffer = torch.zeros(2, 3, dtype=torch.float64)

    def product(u):
        buffer[1].copy_(u).mul_(2.0)
        return buffer[1]

    return product, lambda values: torch.tensor(values, dtype=torch.float64)


@pytest.mark.fault(54)
@pytest.mark.parametrize("made", [_numpy, _torch, _torch_view], ids=["numpy", "torch", "a row of a torch buffer"])
def test_later_calls_leave_earlier_answers_alone(made):
    """FAULTS 54: products of three vectors, all held until the last one is there."""
    function, array = made()
    vectors = [array([1.0, 2.0, 3.0]), array([-4.0, 5.0, 6.0]), array([7.0, 8.0, -9.0])]
    backend = backend_of(vectors[0])
    answers = [backend.call_foreign(function, x)[0] for x in vectors]
    for x, answer in zip(vectors, answers, strict=True):
        assert np.array_equal(backend.to_numpy(answer), 2.0 * backend.to_numpy(x))
