"""The Jacobian of a torch map at a point, as an operator: linearized once, applied many times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from implicitgrad.errors import BackendError, MissingProductError, SettingTypeError, ShapeError
from implicitgrad.operators import VJPOperator
from implicitgrad.torch.layout import Layout

__all__ = ["jacobian_of", "vjp_operator"]


def vjp_operator(
    f: Callable[..., Any],
    z: Any,
    *args: Any,
    batch_ndim: int = 0,
    symmetric: bool = False,
    forward_mode: bool = False,
) -> VJPOperator:
    """Return the Jacobian of ``f(z, *args)`` with respect to ``z``, at ``z``.

    Parameters
    ----------
    f : callable
        ``f(z, *args)`` returns a state of the structure, shapes and dtype of ``z``. Called once, with gradients on.
    z : tensor, or nested tuples, lists and dicts of tensors
        The point, of any shapes.
    *args
        Handed to ``f`` as they are.
    batch_ndim : int
        How many leading axes of each tensor of ``z`` count independent systems. 0 (default): the whole state is one
        system of ``n`` numbers. With 1, vectors are ``(B, n)`` and ``f`` must not mix the samples.
    symmetric : bool
        Claims that the Jacobian is its own conjugate transpose, as that of a Hopfield network or a Hessian is.
    forward_mode : bool
        Form ``J v`` by forward-mode AD, which calls ``f`` again each time, instead of by the transpose of the VJP. For
        maps without a second derivative; ten times dearer (``x * 2`` alone costs 128 us in forward mode).

    Returns
    -------
    VJPOperator, shape (n, n)
        On flat vectors ``(n,)`` or ``(*batch, n)``. It holds the graph of one call of ``f`` until it is dropped.

    Raises
    ------
    BackendError, ShapeError, DtypeError, DeviceError
        ``z`` is no state, or ``f`` returned something else than one like it.

    Notes
    -----
    ``J^H u`` is one ``torch.autograd.grad`` on a retained graph. ``J v`` differentiates the linear map ``u -> J^H u``
    on that graph, so it costs about one VJP too; its graph is built at the first ``J v``.

    Examples
    --------
    >>> import torch, implicitgrad as ig, implicitgrad.torch as igt
    >>> W = torch.tensor([[0.5, 0.2], [0.0, 0.3]])
    >>> J = igt.vjp_operator(lambda z: torch.tanh(W @ z), torch.zeros(2))
    >>> ig.adjoint_solve(J, torch.tensor([1.0, 0.0])).x
    tensor([2.0000, 0.5714])
    """
    layout = Layout.of("vjp_operator", z, batch_ndim)
    with torch.enable_grad():
        point = layout.ravel(z).detach().clone().requires_grad_()
        image = layout.ravel_output("vjp_operator", f(layout.unravel(point), *args))
    jvp = None
    if forward_mode:

        def flat_map(flat: torch.Tensor) -> torch.Tensor:
            return layout.ravel_output("vjp_operator", f(layout.unravel(flat), *args))

        def jvp(tangent: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = torch.func.jvp(flat_map, (point.detach(),), (tangent,))[1]
            return result.detach()

    return jacobian_of(image, point, symmetric=symmetric, jvp=jvp)


def jacobian_of(
    image: torch.Tensor,
    point: torch.Tensor,
    symmetric: bool = False,
    jvp: Callable[[torch.Tensor], torch.Tensor] | None = None,
    size: int | None = None,
    twice: bool = True,
) -> VJPOperator:
    """Return ``d image / d point`` for two flat tensors ``(..., n)`` that a retained graph connects.

    ``size`` is the length of the whole vector where the tensors are shards of it. ``twice`` says whether the graph can
    be differentiated twice, as a JVP without forward mode needs.
    """
    if image.shape != point.shape:
        raise SettingTypeError(f"jacobian_of: got {tuple(image.shape)} of {tuple(point.shape)}, expected equal shapes.")

    def vjp(u: torch.Tensor) -> torch.Tensor:
        _check_batch(u, point)
        if not image.requires_grad:
            return torch.zeros_like(point)
        (product,) = torch.autograd.grad(image, point, u, retain_graph=True, allow_unused=True)
        return torch.zeros_like(point) if product is None else product

    pullback: list[Any] = []  # the graph of u -> J^H u, and u itself, once they are wanted

    def transposed_vjp(v: torch.Tensor) -> torch.Tensor:
        _check_batch(v, point)
        if not pullback:
            u = torch.zeros_like(image, requires_grad=True)
            product = None
            if image.requires_grad:
                with torch.enable_grad():
                    (product,) = torch.autograd.grad(image, point, u, create_graph=True, allow_unused=True)
            pullback.extend((u, product))
        u, product = pullback
        if product is None or not product.requires_grad:
            return torch.zeros_like(point)
        try:
            (result,) = torch.autograd.grad(product, u, v, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            if "not implemented" not in str(error):
                raise
            raise MissingProductError(
                f"vjp_operator: got a map without a second derivative ({error}), expected one: J v is formed as the "
                "transpose of the VJP. Use a solver that needs the VJP only (GMRES, BiCGSTAB, Neumann), or run "
                "attention in torch.nn.attention.sdpa_kernel(SDPBackend.MATH)."
            ) from error
        return torch.zeros_like(point) if result is None else result

    return VJPOperator(
        vjp,
        size=point.shape[-1] if size is None else size,
        jvp=transposed_vjp if jvp is None and twice else jvp,
        dtype=point.dtype,
        symmetric=symmetric,
        batched=point.ndim > 1,
        like=point.detach(),
    )


def _check_batch(u: torch.Tensor, point: torch.Tensor) -> None:
    if not isinstance(u, torch.Tensor):
        raise BackendError(
            f"vjp_operator: got a vector of type {type(u).__qualname__}, expected a torch.Tensor, as the state is. "
            "Convert it with torch.from_numpy."
        )
    if u.shape != point.shape:
        raise ShapeError(
            f"vjp_operator: got a vector of shape {tuple(u.shape)}, expected {tuple(point.shape)}: the graph belongs "
            "to that batch. Use batch_ndim to say which axes count systems."
        )
