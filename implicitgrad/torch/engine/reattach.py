"""The second engine of the implicit gradient: the graph of one evaluation, entered with a corrected cotangent.

``attach`` (``implicit.py``) hands all parameters to one ``autograd.Function``, exact at every order. It cannot serve a
map whose parameters are no tensors of its own: where FSDP2 shards a cell inside the map, autograd sees temporary
gathered copies, and hooks on the real graph free, gather and reduce them. Here that graph stays as it is. With
``z = F(z, w)`` and ``image = F(point, w)`` evaluated at ``point = z``, the gradient for ``w`` is ``(dF/dw)^H u``, which
is what flows out of ``image`` once its cotangent ``g`` has been replaced by ``u``, ``(I - J)^H u = g`` (Liao et al.
2018, eq. 8). ``point`` is a constant: the path through it is what ``u`` has accounted for.

First order only: ``u`` is a number to the graph, so its derivative would be wrong without a sound. It is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from implicitgrad.errors import SettingError
from implicitgrad.torch.engine.derivative import Adjoint
from implicitgrad.torch.engine.distributed import Lockstep, announced, gathering_group

__all__ = ["reattach"]


def reattach(function: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor, adjoint: Adjoint) -> torch.Tensor:
    """Return ``z``, a fixed point of ``function``, with gradients to whatever ``function`` depends on.

    Parameters
    ----------
    function : callable
        ``F`` on flat states ``(..., n)``, its other arguments bound. Called once, with gradients on; its graph is kept
        until the result is dropped or differentiated.
    z : tensor, shape (..., n)
        The fixed point; a history that it may have is not used.
    adjoint : Adjoint
        Settings of the backward solve, and who is told of it.

    Returns
    -------
    tensor, shape (..., n)
        ``z`` by value, in memory of its own; ``z`` itself where gradients are off or ``function`` depends on nothing
        that wants one.

    Raises
    ------
    SettingError
        In the backward pass, with ``create_graph=True``.
    NotConvergedError
        In the backward pass, as the policy of ``adjoint`` says.

    Notes
    -----
    Cost: one tracked call of ``function`` in the forward pass; the products of the solve and one pull-back in the
    backward pass, none of which calls it again. With modules of FSDP2 inside, each product gathers their parameters
    once, on all ranks of their mesh: a rank whose own samples are done goes on with products of zero for as long as
    another one needs them (``Lockstep``), at the price of one small reduction a product. The solver must get along with
    VJPs (GMRES, BiCGSTAB, Neumann; CG and MINRES for symmetric maps): a JVP is a second derivative to FSDP2, which has
    freed the parameters by then.

    No hook and nothing that refers to the result: a forward pass without a backward pass leaves nothing alive.

    Examples
    --------
    >>> import torch, implicitgrad as ig
    >>> w = torch.tensor([0.5], requires_grad=True)
    >>> settings = Adjoint("example", ig.GMRES(), "warn", lambda solution: None)
    >>> z = reattach(lambda z: w * z + 1, torch.tensor([2.0]), settings)  # z = 1 / (1 - w), dz/dw = z^2
    >>> z.backward()
    >>> w.grad
    tensor([4.])
    """
    z = z.detach()
    if not torch.is_grad_enabled():
        return z
    # Behind the gate, so that the last pull-back, which goes through the whole graph, ends there and leaves no .grad.
    # FSDP2 needs it to come this far: the gradient of a module's input is where it reduces those of its parameters.
    point = _Gate.apply(z.clone().requires_grad_())
    image = function(point)
    if not image.requires_grad:
        return z
    result: torch.Tensor = _Corrected.apply(adjoint, gathering_group(image, point), z, image, point)
    return result


class _Gate(torch.autograd.Function):
    """The identity, through which no gradient returns."""

    @staticmethod
    def forward(z: torch.Tensor) -> torch.Tensor:
        return z.view_as(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> None:
        return None


class _Corrected(torch.autograd.Function):
    """Forward: the value of ``z``. Backward: the cotangent of ``image`` is the adjoint instead of ``g``."""

    @staticmethod
    def forward(
        adjoint: Adjoint, group: Any, z: torch.Tensor, image: torch.Tensor, point: torch.Tensor
    ) -> torch.Tensor:
        return z.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.adjoint, ctx.group = inputs[:2]
        ctx.save_for_backward(*inputs[3:])  # inputs, whose graph does not lead here: no cycle

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise SettingError(
                f"{ctx.adjoint.name}: got a second derivative (create_graph=True) of a fixed point whose map shards "
                "its parameters, expected first order only. Keep the parameters of the map whole, or hand them to f as "
                "arguments."
            )
        image, point = ctx.saved_tensors

        def idle() -> None:
            torch.autograd.grad(image, point, torch.zeros_like(image), retain_graph=True, allow_unused=True)

        with Lockstep(ctx.group, idle) as ranks:
            shown = image if ctx.group is None else announced(image, ranks)
            u = ctx.adjoint.solve(shown, point, g, twice=ctx.group is None).x
        return None, None, None, u, None
