"""``assert_implicit_gradient``: is the gradient of a fixed-point layer right? The torch side is in ``layers``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["assert_implicit_gradient"]


def assert_implicit_gradient(
    f: Callable[..., Any],
    z0: Any,
    *args: Any,
    layer: Callable[..., Any] | None = None,
    order: int = 1,
    rtol: float | None = None,
    method: str = "auto",
    seed: int = 0,
) -> None:
    """Assert that a torch layer gives the implicit gradient of the fixed point ``z = f(z, *args)``.

    Checked, in this order: ``f`` is one map (two calls agree); the layer's output is a fixed point of it; the
    derivative of ``f`` itself; the gradient of every floating-point tensor in ``args`` and of every tensor that ``f``
    captures, for a random cotangent; the gradient of ``z0``, which is zero; the gradient of 2**-23 times the loss; and,
    where asked for, second derivatives.

    Parameters
    ----------
    f : callable or torch.nn.Module
        ``f(z, *args)`` returns a state like ``z``.
    z0 : tensor, or nested tuples, lists and dicts of tensors
        Where the layer starts: float32, float64 or complex.
    *args
        Further arguments of ``f``. The tensors among them are replaced by copies that want a gradient.
    layer : callable, optional
        ``layer(f, z0, *args) -> z``: yours, or another library's, wrapped. Default: ``igt.fixed_point``.
    order : {1, 2}
        2: second derivatives too.
    rtol : float, optional
        The relative residual to which the layer solves, forward and backward. Default ``sqrt(eps)``: 1.5e-8 in double,
        3.5e-4 in single precision. It sets every tolerance; a layer with looser solves is checked with its own value.
    method : {"auto", "dense", "differences"}
        What the gradient is compared with. ``"dense"``: ``J`` is formed by VJPs of ``f`` and the adjoint solved by
        LAPACK; ``"auto"`` does so up to 512 numbers of state. ``"differences"``: central differences of the whole
        solve, along the gradient itself and along a random direction, for each tensor.
    seed : int
        Of cotangent and directions.

    Raises
    ------
    AssertionError
        What is wrong: which argument, by how much, at which cosine, and which of the usual mistakes it is: the one-step
        gradient (JFB), a Neumann series cut after K products, ``J`` in the place of its transpose, a missing conjugate,
        dropped blocks, a factor, a detached tensor, an absolute tolerance. *Undecided* where ``(I - J)^-1`` is so large
        that ``rtol`` leaves more than 3 % of the gradient open; where ``I - J`` is singular there is none.
    ModuleNotFoundError
        torch is not installed; the message names the extra.

    Notes
    -----
    A gradient is right if it differs from the reference by at most ``4 s norm((I - J)^-1) (rtol + r)``: ``r`` is the
    measured relative residual of the fixed point, the cotangent has norm one, and ``s`` is how large ``(df/dw)^T v`` is
    for a random unit ``v``. That is what a backward solve to ``rtol`` may leave. The reference belongs to the point
    that the layer returned, so a loose forward solve does not look like a wrong gradient.

    Differences take the step ``cbrt(delta)`` relative to the tensor, ``delta`` being ``eps`` or the residual of the
    re-solved points if that is more: truncation and noise are of one size there, about ``delta**(2/3)``. Their error is
    estimated from a second difference at twice the step, and ten times the estimate is allowed.

    Cost: three calls of the layer with a backward pass, and about ``n`` VJPs (dense), or ten forward solves for each
    tensor. Buffers that ``f`` writes to are put back; no ``.grad`` is touched.

    Examples
    --------
    >>> import torch
    >>> from implicitgrad.testing import assert_implicit_gradient
    >>> _ = torch.manual_seed(0)
    >>> W = 0.3 * torch.randn(6, 6, dtype=torch.float64)
    >>> f = lambda z, W, x: torch.tanh(z @ W.T + x)
    >>> z0, x = torch.zeros(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    >>> assert_implicit_gradient(f, z0, W, x, order=2)

    A layer that iterates without a graph and attaches one last step, as many do:

    >>> def one_step(f, z, *args):
    ...     with torch.no_grad():
    ...         for _ in range(200):
    ...             z = f(z, *args)
    ...     return f(z, *args)
    >>> assert_implicit_gradient(f, z0, W, x, layer=one_step)
    Traceback (most recent call last):
    ...
    AssertionError: assert_implicit_gradient: 2 of 2 gradients are wrong (n = 6, float64, ...; by a dense solve).
      args[0], shape (6, 6): off by 0.18 of its norm, expected at most ...; cosine 0.98...
      args[1], shape (6,): off by 0.18 of its norm, expected at most ...; cosine 0.98...
      args[0], args[1]: this is the one-step gradient, adjoint u = g (JFB): the backward solve is missing.
    """
    from implicitgrad.testing.layers.assertion import Check  # torch: loaded by whoever calls this

    Check(f, z0, args, layer, order, rtol, method, seed).run()
