"""Propositions of Liao et al. 2018 about Neumann-RBP, as checks of callables; ``docs/propositions.md`` numbers them.

Convention for the terms, tested at its boundary: ``K``-step Neumann spends ``K`` products and keeps the ``K + 1`` terms
``t = 0 .. K``; that is back-propagation through the last ``K + 1`` updates, and ``K + 1`` steps of RBP from zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from implicitgrad.adjoint import adjoint_solve
from implicitgrad.backends import Array, backend_of
from implicitgrad.operators import DenseOperator, VJPOperator, identity_minus
from implicitgrad.solvers import Neumann, Richardson
from implicitgrad.spectral import gershgorin_lower_bound, smallest_eigenvalue, smallest_singular_value
from implicitgrad.testing.properties import assert_close

__all__ = [
    "assert_gershgorin_bound",
    "assert_neumann_error_bound",
    "assert_neumann_is_truncated_bptt",
    "assert_rbp_is_neumann",
]


def assert_neumann_is_truncated_bptt(
    vjp: Callable[[Array], Array],
    parameter_vjp: Callable[[Array], Array],
    g: Array,
    steps: int,
    truncated_gradient: Array | None = None,
) -> None:
    """P1: at a fixed point, ``K``-step Neumann gives the gradient of back-propagation through ``K + 1`` updates.

    Parameters
    ----------
    vjp : callable
        ``u -> J^H u`` at the fixed point.
    parameter_vjp : callable
        ``u -> (dF/dw)^H u`` at the fixed point, flat.
    g : array, shape (n,)
        ``dL/dh``.
    steps : int
        ``K``.
    truncated_gradient : array, optional
        What back-propagation through ``K + 1`` unrolled updates gave, by other means such as automatic
        differentiation. By default it is formed here, one update after the other: the cotangent of each update's
        output is pulled back to the parameter, and to the state that the update before it made.

    Examples
    --------
    >>> import numpy as np
    >>> J, B = np.array([[0.5, 0.2], [0.0, 0.3]]), np.array([[1.0, 2.0], [0.0, 1.0]])
    >>> assert_neumann_is_truncated_bptt(lambda u: u @ J, lambda u: u @ B, np.ones(2), steps=4)
    """
    if truncated_gradient is None:
        cotangent = g
        truncated_gradient = parameter_vjp(cotangent)
        for _ in range(steps):
            cotangent = vjp(cotangent)
            truncated_gradient = truncated_gradient + parameter_vjp(cotangent)
    solver = Neumann(rtol=0.0, atol=0.0, max_iters=steps)
    solution = adjoint_solve(VJPOperator(vjp, size=g.shape[-1]), g, solver=solver)
    expected = _products(g, steps)
    assert solution.num_matvecs == expected, f"P1: {solution.num_matvecs} products, expected {expected}"
    size = _sum_of_sizes(vjp, parameter_vjp, g, steps)
    _assert_same(
        f"P1: Neumann with K = {steps} products and {steps + 1} unrolled updates:",
        parameter_vjp(solution.x),
        truncated_gradient,
        steps,
        size,
    )


def assert_neumann_error_bound(jacobian: Any, steps: int, order: Any = 2) -> None:
    """P2: ``norm(sum_{t=0..K} J^t - (I - J)^-1) <= norm((I - J)^-1) norm(J)^(K + 1)`` in a sub-multiplicative norm.

    Parameters
    ----------
    jacobian : ndarray, shape (n, n)
        ``J``, with ``I - J`` invertible.
    steps : int
        ``K``.
    order : {1, 2, inf, "fro"}
        The norm, as ``numpy.linalg.norm`` names it. The sum is formed by the ``Neumann`` solver, column by column.

    Notes
    -----
    Once the bound is below the rounding of the sum itself, only rounding is left to compare, so a floor is added: that
    of ``K + 1`` products, relative to the sum of the norms of the terms.

    Examples
    --------
    >>> import numpy as np
    >>> assert_neumann_error_bound(np.array([[0.5, 0.2], [0.0, 0.3]]), steps=4)
    """
    jacobian = np.asarray(jacobian)
    n, eps = jacobian.shape[-1], np.finfo(jacobian.dtype).eps
    exact = jacobian.astype(np.result_type(jacobian.dtype, np.float64))
    inverse = np.linalg.inv(np.eye(n) - exact)
    J = VJPOperator(lambda u: u @ jacobian, size=n)
    solver = Neumann(rtol=0.0, atol=0.0, max_iters=steps)
    partial = adjoint_solve(J, np.eye(n, dtype=jacobian.dtype), solver=solver).x  # row i is e_i^T sum J^t
    norm_j = float(np.linalg.norm(exact, order))
    bound = float(np.linalg.norm(inverse, order)) * norm_j ** (steps + 1)
    sizes = [float(np.linalg.norm(np.linalg.matrix_power(np.abs(exact), t))) for t in range(steps + 1)]
    floor = 8 * n * eps * ((steps + 1) * sum(sizes) + float(np.linalg.norm(inverse)) * float(np.linalg.cond(inverse)))
    error = float(np.linalg.norm(partial - inverse, order))
    assert error <= bound + floor, (
        f"P2: the error of K = {steps} terms is {error:.3e}, expected at most {bound:.3e} and {floor:.1e} for rounding "
        f"(norm {order}, n = {n}, norm(J) = {norm_j:.3g})"
    )


def assert_rbp_is_neumann(vjp: Callable[[Array], Array], g: Array, steps: int) -> None:
    """P3: ``K + 1`` steps of RBP (``Richardson``) from zero equal ``K``-step Neumann, and cost as many products.

    Examples
    --------
    >>> import numpy as np
    >>> J = np.array([[0.5, 0.2], [0.0, 0.3]])
    >>> assert_rbp_is_neumann(lambda u: u @ J, np.ones(2), steps=4)
    """
    J = VJPOperator(vjp, size=g.shape[-1])
    neumann = adjoint_solve(J, g, solver=Neumann(rtol=0.0, atol=0.0, max_iters=steps))
    rbp = adjoint_solve(J, g, solver=Richardson(rtol=0.0, atol=0.0, max_iters=steps + 1))
    expected = _products(g, steps)
    assert rbp.num_matvecs == neumann.num_matvecs == expected, (
        f"P3: {rbp.num_matvecs} and {neumann.num_matvecs} products, expected {expected} for both"
    )
    size = _sum_of_sizes(vjp, lambda u: u, g, steps)
    _assert_same(f"P3: {steps + 1} steps of RBP and Neumann with K = {steps}:", rbp.x, neumann.x, steps, size)


def assert_gershgorin_bound(J: Any) -> None:
    """Assert, for ``A = (I - J)^H (I - J)``: every Gershgorin form ``<= lambda_min(A) <=`` every Ritz value.

    Parameters
    ----------
    J : LinearOperator or array, shape (n, n)
        With both products. The exact ``lambda_min`` is the square of the smallest singular value of the dense matrix.

    Raises
    ------
    AssertionError
        One of ``paper <= norm <= rows <= lambda_min``, ``paper <= frobenius <= lambda_min``, or ``lambda_min <=`` the
        upper bounds of ``smallest_eigenvalue(A)`` and ``smallest_singular_value(I - J)``, fails; by how much.

    Notes
    -----
    ``rows`` and ``frobenius`` have no order. ``eps n norm(A)`` is allowed for rounding: of the products, and of the
    dense oracle. Cost: ``2 n`` products for each form, and two searches.

    Examples
    --------
    >>> import numpy as np
    >>> assert_gershgorin_bound(np.array([[0.5, 0.2], [0.0, 0.3]]))
    """
    J = DenseOperator(np.asarray(J)) if not hasattr(J, "matvec") else J
    B = identity_minus(J)
    A = B.H @ B
    like = J.example()
    backend, n = backend_of(like), J.shape[1]
    eps = np.finfo(backend.dtype_name(like.dtype)).eps
    unit = np.eye(n, dtype=np.result_type(backend.to_numpy(like).dtype, np.float64))
    dense = np.stack([backend.to_numpy(B.matvec(backend.from_numpy(row, like))) for row in unit], axis=-1)
    values = np.linalg.svd(dense.astype(unit.dtype), compute_uv=False)
    exact, allowed = float(values[-1]) ** 2, float(8 * n * eps * values[0] ** 2)
    bounds = {form: float(gershgorin_lower_bound(A, bound=form)) for form in ("paper", "frobenius", "norm", "rows")}
    chains = [("paper", "norm"), ("norm", "rows"), ("paper", "frobenius")]
    for smaller, larger in chains:
        assert bounds[smaller] <= bounds[larger] + allowed, (
            f"gershgorin: the form {smaller!r} is {bounds[smaller]:.6g} and {larger!r} is {bounds[larger]:.6g}, "
            f"expected the other order, within {allowed:.1e} (n = {n})"
        )
    for form, bound in bounds.items():
        assert bound <= exact + allowed, (
            f"gershgorin: the form {form!r} is {bound:.6g}, above lambda_min = {exact:.6g} by {bound - exact:.1e}, "
            f"expected at most {allowed:.1e} for rounding (n = {n})"
        )
    ritz = {
        "smallest_eigenvalue(A)": smallest_eigenvalue(A, on_failure="return").upper,
        "smallest_singular_value(I - J)**2": smallest_singular_value(B, on_failure="return").upper ** 2,
    }
    for name, upper in ritz.items():
        assert exact <= float(upper) + allowed, (
            f"gershgorin: the Ritz value {float(upper):.6g} of {name} is below lambda_min = {exact:.6g} by "
            f"{exact - float(upper):.1e}, expected at most {allowed:.1e} for rounding (n = {n})"
        )


def _assert_same(what: str, actual: Array, expected: Array, steps: int, size: Array) -> None:
    try:
        assert_close(actual, expected, condition=steps + 1, scale=size)
    except AssertionError as error:
        raise AssertionError(f"{what} {error}") from None


def _products(g: Array, steps: int) -> int:
    """Return how many products ``steps`` steps take: none where ``g = 0``, whose answer is known."""
    return steps if np.max(backend_of(g).max_abs(g)) > 0 else 0


def _sum_of_sizes(vjp: Callable[[Array], Array], pull_back: Callable[[Array], Array], g: Array, steps: int) -> Array:
    """Return the sum of ``|terms|``: what the rounding of the sum of the terms is relative to."""
    total = abs(pull_back(g))
    for _ in range(steps):
        g = vjp(g)
        total = total + abs(pull_back(g))
    return total
