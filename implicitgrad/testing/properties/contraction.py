"""``assert_contraction``: is ``norm(J) < q``? Answered by an upper bound or by a refutation, never by a lower bound."""

from __future__ import annotations

from typing import Any

import numpy as np

from implicitgrad.backends import backend_of
from implicitgrad.errors import SettingError, SettingTypeError, ShapeError
from implicitgrad.operators import DenseOperator, LinearOperator
from implicitgrad.spectral import operator_norm, spectral_radius
from implicitgrad.testing.problem import eps_of

__all__ = ["assert_contraction"]

_NORMS = (1, 2, np.inf, "fro")
_SMALL = 1024  # columns formed one by one; a dense SVD of that size takes a second
_RULE = "Only an upper bound shows a contraction."


def assert_contraction(
    J: Any,
    *args: Any,
    at: Any = None,
    norm: Any = 2,
    factor: float = 1.0,
    confidence: float | None = None,
    max_size: int = _SMALL,
) -> None:
    """Assert ``norm(J) < factor``, by an upper bound on the norm.

    Parameters
    ----------
    J : LinearOperator, or array of shape (n, n), or callable
        The Jacobian of a map at a point. A torch map ``f(z, *args)`` is linearized at ``at``.
    *args
        Further arguments of the torch map.
    at : tensor or nested tensors, optional
        The point, of any shapes; for a callable only. The claim is about this point and, by continuity, about some
        neighbourhood of it, not about the whole map: no finite number of points shows that.
    norm : {1, 2, inf, "fro"}
        Which norm. In any of them ``norm(J) < 1`` makes the iteration and the Neumann series converge, and
        ``norm(J)**(K + 1)`` bounds what K terms leave out (proposition P2).
    factor : float
        What the norm is to stay below.
    confidence : float, optional
        For ``norm=2`` of an operator with more than ``max_size`` columns: accept an upper bound that holds with this
        probability over the random start of the search. Default: only certainty will do.
    max_size : int
        Up to this ``n`` the matrix is formed, by ``n`` products, and its norm is exact up to rounding.

    Raises
    ------
    AssertionError
        *No contraction*: a lower bound on the norm reaches ``factor``; the message says the norm, by how much it is too
        large, and the spectral radius, which may still be below one. *Undecided*: the norm lies between a lower bound
        below ``factor`` and an upper bound above it; nothing is claimed then.
    SettingError, SettingTypeError, ShapeError
        An unknown norm; ``at`` is missing or not wanted; ``J`` is not square.

    Examples
    --------
    >>> import numpy as np
    >>> assert_contraction(np.array([[0.5, 0.3], [0.0, 0.5]]))
    >>> assert_contraction(np.array([[0.5, 4.0], [0.0, 0.5]]))
    Traceback (most recent call last):
    ...
    AssertionError: assert_contraction: no contraction: norm(J, 2) = 4.062, expected below 1 (n = 2). The spectral \
radius is 0.5: iteration converges in the long run, but a step can magnify an error by 4.062.
    >>> assert_contraction(np.array([[0.9, 0.3], [0.0, 0.9]]), norm=np.inf, factor=1.1)
    Traceback (most recent call last):
    ...
    AssertionError: assert_contraction: no contraction: norm(J, inf) = 1.2, expected below 1.1 (n = 2). The spectral \
radius is 0.9: iteration converges in the long run, but a step can magnify an error by 1.2.
    """
    if not any(norm == known for known in _NORMS):
        raise SettingError(f"assert_contraction: got norm={norm!r}, expected 1, 2, inf or 'fro'.")
    operator = _operator_of(J, args, at)
    n = operator.shape[1]
    if n <= max_size:
        _assert_exactly(*_matrix_of(operator), norm, factor)
        return
    if norm != 2:
        raise AssertionError(
            f"assert_contraction: undecided: norm(J, {norm}) takes the whole matrix, n = {n} products, and max_size is "
            f"{max_size}. Raise max_size, or take norm=2 with confidence=0.999."
        )
    _assert_by_search(operator, factor, confidence)


def _operator_of(J: Any, args: tuple[Any, ...], at: Any) -> LinearOperator:
    if isinstance(J, LinearOperator) or not callable(J):
        if args or at is not None:
            raise SettingTypeError(
                f"assert_contraction: got at= or further arguments with J of type {type(J).__qualname__}, expected "
                "them with a torch map only: an operator belongs to one point already."
            )
        operator = J if isinstance(J, LinearOperator) else DenseOperator(np.asarray(J) if isinstance(J, list) else J)
    else:
        if at is None:
            raise SettingTypeError(
                "assert_contraction: got a map without a point, expected at=z. Sampled values of a map give lower "
                "bounds on its Lipschitz constant only, so the Jacobian at a point is what is checked."
            )
        from implicitgrad.torch import vjp_operator  # who has a torch map has torch; its error names the extra

        operator = vjp_operator(J, at, *args)
    if operator.shape[0] != operator.shape[1]:
        raise ShapeError(f"assert_contraction: got J of shape {operator.shape}, expected a square one.")
    return operator


def _matrix_of(operator: LinearOperator) -> tuple[Any, float]:
    """Return ``(..., n, n)`` on the host, in double precision, and the spacing of the format of its entries."""
    like = operator.example()
    backend = backend_of(like)
    n = operator.shape[1]
    product = operator.matvec if operator.has_forward else operator.rmatvec
    columns = []
    for i in range(n):
        unit = np.zeros(like.shape)
        unit[..., i] = 1.0
        column = backend.to_numpy(product(backend.from_numpy(unit, like)))
        columns.append(column.astype(np.result_type(column.dtype, np.float64)))
    matrix = np.stack(columns, axis=-1) if columns else np.zeros((*like.shape[:-1], 0, 0))
    if not operator.has_forward:
        matrix = matrix.conj().swapaxes(-1, -2)
    return matrix, eps_of(backend.dtype_name(like.dtype))


def _assert_exactly(values: Any, eps: float, norm: Any, factor: float) -> None:
    """Compare the norm of the matrix; what its entries lost to rounding is added to the upper bound."""
    n = values.shape[-1]
    if n == 0:
        return
    assert np.isfinite(values).all(), f"assert_contraction: J holds NaN or Inf (n = {n})"
    norms = np.asarray(np.linalg.norm(values, ord=norm, axis=(-2, -1)))
    worst = np.unravel_index(np.argmax(norms), norms.shape)
    size = float(norms[worst])
    rounding = n * eps * float(np.linalg.norm(values[worst]))
    if size + rounding < factor:
        return
    where = f"n = {n}" + (f", system {', '.join(map(str, worst))} of {norms.shape}" if norms.ndim else "")
    if size < factor:
        raise AssertionError(
            f"assert_contraction: undecided: norm(J, {norm}) = {size:.6g} is below {factor:g} by less than the "
            f"rounding of its entries, {rounding:.1e} ({where}). {_RULE} Use a wider dtype."
        )
    radius = float(np.abs(np.linalg.eigvals(values[worst])).max())
    raise AssertionError(
        f"assert_contraction: {_verdict(size)}norm(J, {norm}) = {size:.4g}, expected below {factor:g} ({where}). "
        + _long_run(radius, size)
    )


def _assert_by_search(operator: LinearOperator, factor: float, confidence: float | None) -> None:
    """Compare the interval of ``operator_norm``: its lower end, a Ritz value, is certain, the upper one may not be."""
    found = operator_norm(operator, on_failure="return", confidence=0.999 if confidence is None else confidence)
    lower, upper = float(np.max(found.lower)), float(np.max(found.upper))
    size = f"n = {operator.shape[1]}, {found.num_matvecs + found.num_rmatvecs} products"
    if lower >= factor:
        radius = float(np.max(spectral_radius(operator, on_failure="return").value))
        raise AssertionError(
            f"assert_contraction: {_verdict(lower)}norm(J, 2) >= {lower:.4g}, expected below {factor:g} ({size}). "
            + _long_run(radius, lower)
        )
    conditions = sorted(set(np.ravel(np.asarray(found.condition, dtype=object)).tolist()))
    certain = all(condition.startswith("unconditional") for condition in conditions)
    if upper < factor and (certain or confidence is not None):
        return
    raise AssertionError(
        f"assert_contraction: undecided: norm(J, 2) is at least {lower:.6g}, which shows no contraction however small "
        f"it is, and at most {upper:.6g}, {'; '.join(conditions)} ({size}). {_RULE} Raise max_size to form the matrix, "
        "or accept a probability: confidence=0.999."
    )


def _verdict(norm: float) -> str:
    return "no contraction: " if norm >= 1 else "not that much of a contraction: "


def _long_run(radius: float, norm: float) -> str:
    if radius >= 1:
        return f"The spectral radius is {radius:.4g}: iteration does not converge either."
    if norm < 1:
        return f"The spectral radius is {radius:.4g}."
    return (
        f"The spectral radius is {radius:.4g}: iteration converges in the long run, but a step can magnify an error by "
        f"{norm:.4g}."
    )
