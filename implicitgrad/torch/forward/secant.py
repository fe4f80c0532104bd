"""What Anderson and Broyden share: a window of differences, and the safeguards around the steps they give.

Both step to ``z = f_k - dF g``, where the columns of ``dF`` are the last differences of ``f`` and ``g`` solves a small
system: ``f_k - dF g`` is where a linear model of the residual vanishes (Fang & Saad 2009, Numer. Linear Algebra Appl.
16, sec. 2). They differ in the vectors that the residual is tested against, and in the small system.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np

from implicitgrad.backends import Array, Backend
from implicitgrad.backends.host import any_true, negate, pick
from implicitgrad.torch.forward.base import ForwardSolver
from implicitgrad.torch.forward.search import Search

__all__ = ["SecantMethod", "Window"]

# Inner products of vectors of these sizes, or of what is left of them when they have converged, stay away from the ends
# of float32.
_NEAR_ONE = (2.0**-20, 2.0**20)


class Window:
    """The last ``m`` differences of each sample: test vectors ``T``, image differences ``dF``, and a small matrix.

    Parameters
    ----------
    backend : Backend
        Arithmetic of the states' library.
    like : array, shape (..., n)
        A state.
    m : int
        Differences that are kept; the oldest is overwritten.
    size : host value
        Norm of the first residual. Where it is far from one, test vectors are divided by the power of two next to it,
        which changes no digit, so that inner products in single precision neither vanish nor overflow.

    Attributes
    ----------
    matrix : array, shape (..., m, m)
        On the host, in double: whatever the method writes there, one row and column a slot.
    sizes : array, shape (..., m)
        The same for one number a slot.
    held : array of bool, shape (..., m)
        The slots whose differences a sample makes use of.
    eps : float
        Spacing of the states' dtype, in which the inner products are computed.
    """

    def __init__(self, backend: Backend, like: Array, m: int, size: Any) -> None:
        self._backend, self._like = backend, like
        self._tests, self._images = backend.empty_rows(m, like), backend.empty_rows(m, like)
        facts = backend.facts(like.dtype)
        assert facts is not None  # the search has seen to it
        self.eps = facts.eps
        self.dtype: Any = complex if facts.is_complex else float
        self.matrix = np.zeros((*like.shape[:-1], m, m), self.dtype)
        self.sizes = np.zeros((*like.shape[:-1], m))
        self.held = np.zeros((*like.shape[:-1], m), bool)
        self.m, self._pushed = m, 0
        far = np.isfinite(size) & (size > 0) & ((size < _NEAR_ONE[0]) | (size > _NEAR_ONE[1]))
        self._exponent: Any = np.where(far, -np.frexp(size)[1], 0)
        self._scales = bool(self._exponent.any())
        if like.ndim == 1:
            self._exponent = int(self._exponent)

    @property
    def count(self) -> int:
        """Slots that have been filled."""
        return min(self._pushed, self.m)

    @property
    def order(self) -> list[int]:
        """The filled slots, the oldest difference first."""
        return [(self._pushed - self.count + i) % self.m for i in range(self.count)]

    @property
    def newest(self) -> int:
        """The slot filled last."""
        return (self._pushed - 1) % self.m

    def push(self, test: Array, d_image: Array) -> None:
        """Write a test vector and a difference of images over the oldest ones."""
        slot = self._pushed % self.m
        self._pushed += 1
        self._tests = self._backend.set_row(self._tests, slot, self._scaled(test))
        self._images = self._backend.set_row(self._images, slot, d_image)
        self.held[..., slot] = True

    def forget(self, where: Any) -> None:
        """Drop all differences of the samples in ``where``."""
        self.held = self.held & ~np.asarray(where)[..., None]

    def squared_norm(self, x: Array) -> Any:
        """Return ``x^H x`` of each sample on the host, in the units of ``test_products``."""
        return self._backend.to_host(self._backend.real(self._backend.squared_norm(self._scaled(x))))

    def test_products(self, x: Array) -> Any:
        """Return ``T^H x`` on the host, ``(..., count)``."""
        return self._products(self._tests, x)

    def image_products(self, x: Array) -> Any:
        """Return ``dF^H x`` on the host, ``(..., count)``, in the units of ``test_products``."""
        products = self._products(self._images, x)
        return products * 2.0 ** np.asarray(self._exponent, dtype=float)[..., None] if self._scales else products

    def _scaled(self, x: Array) -> Array:
        return self._backend.times_power_of_two(x, self._exponent) if self._scales else x

    def _products(self, rows: Array, x: Array) -> Any:
        backend = self._backend
        rows = backend.first_rows(rows, self.count)
        return np.asarray(backend.to_host_list(backend.row_products(rows, self._scaled(x))))

    def subtract(self, x: Array, coefficients: Any) -> Array:
        """Return ``x - dF g``."""
        backend = self._backend
        rows = backend.first_rows(self._images, self.count)
        return backend.subtract_rows(x, backend.coefficients(coefficients, self._like), rows)


class SecantMethod(ForwardSolver):
    """Interface of the methods with a window: what a difference is tested with, and the small system.

    A step to a residual of more than ``growth`` times the best one is taken back, but what it has taught is kept, so
    maps that expand are solved too as long as the window holds their expanding directions. A sample that does not
    improve for ``3 m`` steps forgets its window and goes on by plain iteration; one that does not improve by that
    either goes back, and returns to it with four times the patience.
    """

    m: int

    growth: ClassVar[float]

    @abstractmethod
    def append(self, window: Window, d_state: Array, d_residual: Array, d_image: Array) -> None:
        """Push one difference, and fill its row and column of ``window.matrix``."""

    @abstractmethod
    def coefficients(self, window: Window, residual: Array) -> Any:
        """Return ``g`` on the host, ``(..., count)``, zero where nothing is held."""

    def iterate(self, search: Search) -> None:
        """Visit ``z0`` and ``f(z0)``, then accelerated points; ``old`` is what differences are taken from."""
        point = best = search.visit(search.start)
        if not search.running:
            return
        window = Window(search.backend, search.start, int(self.m), point.size)
        mark = point.size  # the smallest residual since the last change between mixing and plain iteration
        waited: Any = 0 * search.iters  # steps since then
        patience: Any = waited + 3 * self.m
        plain: Any = waited > 0  # samples that take the steps of Picard for now
        orbit: Array | None = None  # where these go on, once a sample has turned to them
        while search.running:
            better = point.size <= best.size
            best = search.blend(better, point, best)
            improved = point.size < mark
            mark, waited = pick(improved, point.size, mark), pick(improved, 0, waited + 1)
            # Mixing can circle where the plain iteration converges, and the other way round: who does not improve for
            # long hands over to the other. Mixing begins anew at the best iterate. Plain steps form one orbit, with
            # more patience at each turn: near a fixed point that has just vanished, where the residual is small and
            # mixing is held, it has to lose what was gained before it gets on.
            stalled = waited > pick(plain, patience, 3 * self.m)
            if any_true(stalled):
                orbit = best.image if orbit is None else orbit
                orbit = search.choose(stalled & negate(plain) & (patience == 3 * self.m), best.image, orbit)
                orbit = search.choose(stalled & plain, point.image, orbit)
                patience = pick(stalled & negate(plain), 4 * patience, patience)
                plain = plain ^ stalled
                mark, waited = pick(stalled, math.inf, mark), pick(stalled, 0, waited)
            # A rejected step has taught its secant all the same: the next one starts from the best iterate and uses it.
            back = negate(plain) & (stalled | negate(point.size <= self.growth * best.size))
            old = search.blend(negate(back), point, best)
            if any_true(plain | stalled):
                window.forget(plain | stalled)
            z = old.image if orbit is None else search.choose(stalled & plain, orbit, old.image)
            if window.held.any():
                z = window.subtract(z, self.coefficients(window, old.residual))
            point = search.visit(z)
            if search.running:
                self.append(window, point.z - old.z, point.residual - old.residual, point.image - old.image)
