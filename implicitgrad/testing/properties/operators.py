"""What must hold of a linear operator: it is linear, and its two products belong to one matrix.

``ig.check_operator`` makes the same checks for a program that wants a report; these are for a test, and look for the
usual suspects: a missing transpose, a missing conjugate, a sign, a factor, a constant term.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from implicitgrad.backends import Array, backend_of
from implicitgrad.errors import SettingTypeError
from implicitgrad.operators import LinearOperator
from implicitgrad.testing.problem import eps_of, scaled_norm
from implicitgrad.testing.properties.closeness import beyond_rounding, on_host

__all__ = ["assert_adjoint", "assert_linear"]

_DRAWS = 3  # a wrong adjoint that hides from one random pair with probability p hides from three with p^3


@dataclass(frozen=True)
class _Pair:
    """Random ``u`` and ``v`` with ``A v`` and ``A^H u``, all on the host; batches stay batches."""

    u: Any
    v: Any
    av: Any
    ahu: Any

    @property
    def size(self) -> Any:
        """What the rounding of the inner products is relative to."""
        return scaled_norm(self.u) * scaled_norm(self.av) + scaled_norm(self.ahu) * scaled_norm(self.v)

    @property
    def left(self) -> Any:
        """``<u, A v>``."""
        return (self.u.conj() * self.av).sum(axis=-1)

    @property
    def right(self) -> Any:
        """``<A^H u, v>``."""
        return (self.ahu.conj() * self.v).sum(axis=-1)


def assert_adjoint(operator: LinearOperator, like: Array | None = None, seed: int = 0) -> None:
    """Assert ``<u, A v> = <A^H u, v>`` for three random pairs, relative to ``norm(u) norm(A v)``: the dot test.

    Parameters
    ----------
    operator : LinearOperator, shape (m, n)
        With both products; for complex arrays ``rmatvec`` is the conjugate transpose.
    like : array, shape (..., n), optional
        Library, dtype, device and batch of the probes. Default: ``operator.example()``.
    seed : int
        Of the probes.

    Raises
    ------
    AssertionError
        The two differ beyond rounding; the message says by how much, in which draw, and which mistake fits: a missing
        transpose, a missing conjugate, a sign, a factor.
    SettingTypeError, MissingProductError
        ``operator`` is no ``LinearOperator``, or lacks a product.

    Notes
    -----
    Cost: three products of each kind; up to three more to name the mistake. The difference is not compared with the
    inner product itself, which can cancel.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> matrix = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> assert_adjoint(ig.DenseOperator(matrix))
    >>> assert_adjoint(ig.VJPOperator(lambda u: u @ matrix, 2, jvp=lambda v: v @ matrix))
    Traceback (most recent call last):
    ...
    AssertionError: assert_adjoint: <u, A v> = -0.3211 and <A^H u, v> = -0.1721 differ by 2.4e-01 of norm(u) \
norm(A v), expected at most 2.0e-14 (draw 0 of seed 0, shape (2, 2), float64). rmatvec gives A u: the transpose is \
missing.
    """
    _check_type("assert_adjoint", operator)
    pairs = []
    for draw in range(_DRAWS):
        v, u, eps = _probes(operator, like, seed + 2 * draw)
        pairs.append(_Pair(on_host(u), on_host(v), on_host(operator.matvec(v)), on_host(operator.rmatvec(u))))
    condition = max(*operator.shape, 1) ** 0.5
    for draw, pair in enumerate(pairs):
        gap = np.abs(pair.left - pair.right)
        finite = np.isfinite(gap).all()
        if finite and not beyond_rounding(gap, pair.size, 1, eps, condition):
            continue
        ratio = np.asarray(gap / np.maximum(pair.size, 1e-300))
        worst = np.unravel_index(np.argmax(np.nan_to_num(ratio, nan=np.inf)), ratio.shape)
        left, right = np.asarray(pair.left)[worst], np.asarray(pair.right)[worst]
        where = f"system {', '.join(map(str, worst))}, " if ratio.ndim else ""
        raise AssertionError(
            f"assert_adjoint: <u, A v> = {left:.4g} and <A^H u, v> = {right:.4g} differ by {2 * ratio[worst]:.1e} of "
            f"norm(u) norm(A v), expected at most {64 * condition * eps:.1e} ({where}draw {draw} of seed {seed}, shape "
            f"{operator.shape}, {_dtype_name(operator, like)}). " + _mistake(operator, like, seed, pairs, eps)
        )


def _mistake(operator: LinearOperator, like: Array | None, seed: int, pairs: list[_Pair], eps: float) -> str:
    """Return the sentence of the first simple mistake that explains all pairs."""
    if not all(np.isfinite(p.left).all() and np.isfinite(p.right).all() for p in pairs):
        return "A product holds NaN or Inf."
    n = max(*operator.shape, 1)
    condition = n**0.5

    def fits(pairing: Callable[[_Pair], Any]) -> bool:
        return not any(beyond_rounding(np.abs(pairing(p)), p.size, 1, eps, condition) for p in pairs)

    if fits(lambda p: p.left + p.right):
        return "The sign of one product is wrong."
    if np.iscomplexobj(pairs[0].u) and fits(lambda p: (p.u * p.av).sum(axis=-1) - (p.ahu * p.v).sum(axis=-1)):
        return "rmatvec gives A^T u: the conjugate is missing."
    if operator.shape[0] == operator.shape[1]:
        _, u, _ = _probes(operator, like, seed)
        straight, conjugated = on_host(operator.matvec(u)), on_host(operator.matvec(u.conj())).conj()
        for product, sentence in (
            (straight, "rmatvec gives A u: the transpose is missing."),
            (conjugated, "rmatvec gives conj(A) u: the transpose is missing."),
        ):
            if not beyond_rounding(scaled_norm(product - pairs[0].ahu), scaled_norm(product), n, eps, condition):
                return sentence
    factor = complex(np.vdot(pairs[0].left, pairs[0].right) / max(np.vdot(pairs[0].left, pairs[0].left).real, 1e-300))
    shown = f"{factor.real:.4g}" if abs(factor.imag) <= 1e-6 * abs(factor) else f"({factor:.3f})"
    if not abs(factor) <= 1e-12 and fits(lambda p: (p.right - factor * p.left) / (1 + abs(factor))):
        return f"rmatvec is {shown} times too large."
    return "One product has a wrong transpose, conjugate or sign, or belongs to another matrix."


def assert_linear(operator: LinearOperator, like: Array | None = None, seed: int = 0) -> None:
    """Assert ``A (a v + b w) = a A v + b A w`` for random vectors, and ``A 0 = 0``, for each product there is.

    Parameters
    ----------
    operator, like, seed
        As for ``assert_adjoint``; an operator with one product is checked by that one.

    Raises
    ------
    AssertionError
        Which product, by how much, and why: two identical calls differ (dropout left on), ``A 0`` is not zero (a
        constant term), ``A(2 v)`` is not ``2 A v``, or sums are not preserved.

    Notes
    -----
    Cost: six calls of each product.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> assert_linear(ig.DenseOperator(np.array([[1.0, 2.0], [3.0, 4.0]])))
    >>> assert_linear(ig.VJPOperator(lambda u: 2 * u + 1, 2))
    Traceback (most recent call last):
    ...
    AssertionError: assert_linear: rmatvec: A 0 is not zero but has norm 1.4e+00: a constant term (seed 0, \
shape (2, 2), float64).
    """
    _check_type("assert_linear", operator)
    v, u, eps = _probes(operator, like, seed)
    w, t, _ = _probes(operator, like, seed + 2)
    if operator.has_forward:
        _assert_linear("matvec", operator.matvec, v, w, eps, operator, seed)
    if operator.has_adjoint and not (operator.symmetric and operator.has_forward):
        _assert_linear("rmatvec", operator.rmatvec, u, t, eps, operator, seed)


def _assert_linear(
    name: str, product: Callable[[Array], Array], v: Array, w: Array, eps: float, operator: LinearOperator, seed: int
) -> None:
    where = f"(seed {seed}, shape {operator.shape}, {_dtype_name(operator, v)})"
    first, again, aw = on_host(product(v)), on_host(product(v)), on_host(product(w))
    n = max(*operator.shape, 1)
    size = scaled_norm(abs(first) + abs(aw))
    a, b = -1.5, 0.75

    def assert_small(difference: Any, sentence: str, factor: float = 1.0) -> None:
        gap = scaled_norm(difference)
        if not np.isfinite(gap).all() or beyond_rounding(gap, factor * size, n, eps, n**0.5):
            relative = np.max(gap / np.maximum(size, 1e-300))
            raise AssertionError(f"assert_linear: {name}: {sentence} {relative:.1e} of norm(A v) {where}.")

    assert np.isfinite(first + aw).all(), f"assert_linear: {name}: got NaN or Inf {where}"
    assert_small(first - again, "two identical calls differ (dropout, or a state that moves), by")
    constant = scaled_norm(on_host(product(0 * v)))
    if beyond_rounding(constant, size, n, eps, n**0.5):
        raise AssertionError(
            f"assert_linear: {name}: A 0 is not zero but has norm {np.max(constant):.1e}: a constant term {where}."
        )
    assert_small(on_host(product(-2.0 * v)) + 2.0 * first, "A(-2 v) differs from -2 A v, by", 2.0)
    assert_small(on_host(product(a * v + b * w)) - (a * first + b * aw), "A(a v + b w) differs from a A v + b A w, by")


def _check_type(name: str, operator: object) -> None:
    if not isinstance(operator, LinearOperator):
        raise SettingTypeError(
            f"{name}: got an object of type {type(operator).__qualname__}, expected a LinearOperator. Wrap callables "
            "with VJPOperator(vjp, size=n, jvp=jvp), an array with DenseOperator, a SciPy one with "
            "implicitgrad.scipy.from_linear_operator."
        )


def _dtype_name(operator: LinearOperator, like: Array | None) -> str:
    like = operator.example() if like is None else like
    return backend_of(like).dtype_name(like.dtype)


def _probes(operator: LinearOperator, like: Array | None, seed: int) -> tuple[Array, Array, float]:
    """Return a random vector of the domain, one of the range, and the spacing of their dtype."""
    like = operator.example() if like is None else like
    backend = backend_of(like)
    rows, columns = operator.shape
    domain, range_ = (backend.zeros((*like.shape[:-1], size), like) for size in (columns, rows))
    return (
        backend.random_like(domain, seed),
        backend.random_like(range_, seed + 1),
        eps_of(backend.dtype_name(like.dtype)),
    )
