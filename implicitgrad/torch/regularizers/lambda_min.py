"""``lambda_min((I - J)^H (I - J))`` of a torch map as a loss term: condition II of implicit differentiation.

The gradient through a fixed point exists while ``lambda_min > 0`` (Liao et al. 2018, condition II), and it is magnified
by up to ``1 / sqrt(lambda_min)``. Three gradients of the same number, which agree where the pair has converged:

* *Hellmann-Feynman* (1939): ``norm((I - J)^H u)^2`` at the frozen left singular vector ``u``: one VJP with a graph;
* *adjoint*: the derivative of the Golub-Kahan process by its adjoint recurrence, exact for any number of steps;
* *unrolled*: autograd through every step of it, as the paper proposes.

Users: ``lambda_min_penalty``, training loops, ``docs/regularizers.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from implicitgrad.torch.regularizers.linearized import MapAt
from implicitgrad.torch.regularizers.search import Search, check_number

__all__ = ["lambda_min", "lambda_min_penalty"]


def lambda_min(
    f: Callable[..., Any],
    z: Any,
    *args: Any,
    method: str = "hellmann-feynman",
    batch_ndim: int = 0,
    rtol: float | None = None,
    max_iters: int | None = None,
    memory: int | None = None,
    start: torch.Tensor | None = None,
    seed: int = 0,
    on_failure: str = "warn",
    return_result: bool = False,
) -> Any:
    """Return ``lambda_min((I - J)^H (I - J))``, ``J = df/dz`` at ``z``, differentiable.

    Gradients flow to the tensors in ``args``, to what ``f`` captures, and to ``z``: where ``z`` comes from
    ``fixed_point``, with its history, the part through the fixed point is in the gradient too.

    Parameters
    ----------
    f : callable or torch.nn.Module
        ``f(z, *args)`` returns a state like ``z``.
    z : tensor, or nested tuples, lists and dicts of tensors
        The point. Detach it only if the regularizer shall not see that the fixed point moves.
    *args
        Further arguments of ``f``.
    method : {"hellmann-feynman", "adjoint", "unrolled"}
        How to differentiate.

        ====================  =======================  =====================  ==============================
        method                memory besides z         gradient is that of    second derivative
        ====================  =======================  =====================  ==============================
        ``hellmann-feynman``  graph of one VJP         the converged pair     refused in words
        ``adjoint``           2 k vectors              the k-step value       refused in words
        ``unrolled``          graphs of 2 k products,  the k-step value       exact at simple singular values
                              2 k^2 vectors
        ====================  =======================  =====================  ==============================
    batch_ndim : int
        How many leading axes count independent systems; one number each. 0 (default): the whole state is one system.
    rtol : float, optional
        The singular vectors, and with them the gradient, are wanted to this relative accuracy, by the gap. Default by
        dtype: ``sqrt(eps) / 4``. 0, for ``adjoint`` and ``unrolled``: exactly ``max_iters`` steps, reported as
        ``TRUNCATED``, without a warning; at a fixed small number the value is often good to three digits and the
        gradient not to one.
    max_iters : int, optional
        Most steps, one JVP and one VJP each. Default: ``min(10 n, 1000)``; ``min(n, 300)`` for ``adjoint`` and
        ``unrolled``, which keep their vectors.
    memory : int, optional
        Most basis vectors a side, ``hellmann-feynman`` only: restarted beyond. See ``smallest_singular_value``.
    start : tensor, shape (..., n), optional
        First right vector, flat; ``result.vector`` of the step before saves products in training. A hundredth of a
        random vector is added, so that the search leaves an invariant subspace. Default: random.
    seed : int
        Of the random start, and of the vectors drawn in an invariant subspace. Nothing global is touched.
    on_failure : {"warn", "raise", "return"}
        What to do if a pair has not converged: its value is an upper bound, its gradient may be far off.
    return_result : bool
        Return ``(value, result)``; the ``SpectralResult`` has ``sigma_min``, vectors, status and counts.

    Returns
    -------
    tensor, shape (...)
        ``sigma_min^2``, one number a system, real.

    Raises
    ------
    SettingError, ShapeError, BackendError, DtypeError, DeviceError
        Unknown settings; a ``start`` that is zero or of another shape; what ``vjp_operator`` raises.
    SettingError
        In a backward pass with ``create_graph=True``, except for ``unrolled``. Inside of a ``torch.func`` transform.
    NotConvergedError
        By ``on_failure``; its ``solution`` is the ``SpectralResult``.

    Notes
    -----
    The value is the square of ``sigma_min`` from Golub-Kahan on ``I - J`` itself: the product ``(I - J)^H (I - J)``
    would lose half of the digits. It is a minimum over the space that was searched, an upper bound always.

    Where the smallest singular value is repeated, ``lambda_min`` has a kink. What is returned is the gradient at one
    vector of the eigenspace, a subgradient (an element of Clarke's generalized gradient): finite, and for ``J = theta
    I`` exact for derivatives along ``theta``. Values closer than ``sqrt(eps) norm(I - J)`` count as repeated. Where
    ``lambda_min = 0`` the gradient is 0, since ``sigma_min^2`` is smooth there.

    Cost beyond the search of ``k`` steps: one VJP that is differentiated for ``hellmann-feynman``; ``2 k`` products and
    as many that are differentiated for ``adjoint``; backpropagation through ``2 k`` products for ``unrolled``, two to
    three times the whole of the first at n = 400 (``benchmarks/bench_regularizers.py``). Sources: Feynman 1939, Phys.
    Rev. 56, 340 (the paper's own reference); Kraemer et al. 2024, Gradients of functions of large matrices.

    Examples
    --------
    >>> import torch, implicitgrad.torch as igt
    >>> theta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    >>> value = igt.lambda_min(lambda z: theta * z, torch.zeros(3, dtype=torch.float64))
    >>> value.backward()
    >>> round(value.item(), 12), round(theta.grad.item(), 12)  # (1 - theta)^2 and its derivative
    (0.25, -1.0)
    """
    search = Search("lambda_min", method, rtol, max_iters, memory, start, seed, on_failure)
    value, result = search(MapAt("lambda_min", f, z, args, batch_ndim))
    return (value, result) if return_result else value


def lambda_min_penalty(
    f: Callable[..., Any],
    z: Any,
    *args: Any,
    margin: float,
    method: str = "hellmann-feynman",
    batch_ndim: int = 0,
    rtol: float | None = None,
    max_iters: int | None = None,
    memory: int | None = None,
    start: torch.Tensor | None = None,
    seed: int = 0,
    on_failure: str = "warn",
    return_result: bool = False,
) -> Any:
    """Return ``max(0, margin - lambda_min((I - J)^H (I - J)))``, one number a system.

    Parameters
    ----------
    margin : float
        The ``lambda_min`` that is wanted, without a unit, ``>= 0``: ``s^2`` keeps ``sigma_min`` near ``s`` or above,
        and the adjoint below ``norm(g) / s``. **0 is the paper's penalty** ``max(0, -lambda_min)``, **and identically
        zero**, value and gradient, since ``(I - J)^H (I - J)`` is positive semi-definite: it does nothing.
    f, z, *args, method, batch_ndim, rtol, max_iters, memory, start, seed, on_failure, return_result
        As for ``lambda_min``.

    Returns
    -------
    tensor, shape (...)
        Take its mean or sum for a loss.

    Raises
    ------
    As ``lambda_min``; SettingError for a ``margin`` that is negative or no number.

    Notes
    -----
    The gradient is 0 once ``lambda_min >= margin``. At ``lambda_min = 0`` it is 0 too, for ``sigma^2`` is flat there: a
    penalty cannot lift an exactly singular ``I - J``, so choose the margin wide enough to act before.

    Examples
    --------
    >>> import torch
    >>> import implicitgrad.torch as igt
    >>> W = torch.tensor([[0.9, 0.0], [0.0, 0.2]], dtype=torch.float64, requires_grad=True)
    >>> penalty = igt.lambda_min_penalty(lambda z: W @ z, torch.zeros(2, dtype=torch.float64), margin=0.04)
    >>> penalty.backward()
    >>> round(penalty.item(), 12), W.grad.round(decimals=12).tolist()
    (0.03, [[0.2, 0.0], [0.0, 0.0]])
    """
    check_number("lambda_min_penalty", "margin", margin)
    search = Search("lambda_min_penalty", method, rtol, max_iters, memory, start, seed, on_failure)
    value, result = search(MapAt("lambda_min_penalty", f, z, args, batch_ndim))
    penalty = torch.relu(margin - value)
    return (penalty, result) if return_result else penalty
