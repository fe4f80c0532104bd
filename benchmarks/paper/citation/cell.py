"""One update of the paper's graph network: sum over the neighbours, then a GRU.

    m = A h,    r = sigmoid(W_r [m h]),  z = sigmoid(W_z [m h]),  q = tanh(W_q m + r * (U_q h)),    F(h) = q + z (h - q)

It runs 100 times an epoch, nearly always without gradients; for that there is a second way to the same numbers, which
takes half the time of ``torch.gru_cell``. Who uses it: ``methods.py``.
"""

from __future__ import annotations

import torch

from .graph import Propagate

__all__ = ["Update", "initial_cell"]


def initial_cell(size: int, generator: torch.Generator, device: str = "cpu") -> list[torch.Tensor]:
    """Return weights ``(3 k, k)`` for messages and states, He-normal as the paper's, and two zero biases ``(3 k,)``."""
    weights = [torch.empty(3 * size, size) for _ in range(2)]
    for weight in weights:
        torch.nn.init.kaiming_normal_(weight, generator=generator)
    return [p.to(device).requires_grad_() for p in (*weights, torch.zeros(3 * size), torch.zeros(3 * size))]


class Update:
    """``F(h, W, U, b, c)`` on a graph; ``h`` of shape ``(n, k)``, parameters as ``torch.nn.GRUCell`` holds them.

    With gradients on, it is ``torch.gru_cell``. Without, it works in buffers of its own and prepares the parameters
    once each time they have changed, so one object serves one set of parameters and one thread.
    """

    def __init__(self, adjacency: torch.Tensor) -> None:
        self.adjacency = adjacency
        self._prepared_for: tuple[int, ...] | None = None
        self._size = 0

    def __call__(self, h: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            return torch.gru_cell(Propagate.apply(h, self.adjacency), h, *parameters)
        version = tuple(number for p in parameters for number in (p.data_ptr(), p._version))
        if version != self._prepared_for:
            self._prepare(h, *parameters)
            self._prepared_for = version
        return self._without_gradients(h)

    def _prepare(self, h: torch.Tensor, W: torch.Tensor, U: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> None:
        n, k = h.shape
        if k != self._size:
            self._size = k
            self._both = h.new_empty(n, 2 * k)  # [m h]
            self._gates = h.new_empty(n, 2 * k)  # [r z]
            self._q, self._Uh = h.new_empty(n, k), h.new_empty(n, k)
        # r and z see the sum of both products, so they are one product with [m h].
        self._gate_weight = torch.cat([W[: 2 * k], U[: 2 * k]], dim=1).T.contiguous()
        self._gate_bias = b[: 2 * k] + c[: 2 * k]
        # tanh(x) = 2 sigmoid(2 x) - 1, and sigmoid is three times as fast; doubling is exact.
        self._W_q, self._b_q = 2 * W[2 * k :].T.contiguous(), 2 * b[2 * k :]
        self._U_q, self._c_q = 2 * U[2 * k :].T.contiguous(), 2 * c[2 * k :]

    def _without_gradients(self, h: torch.Tensor) -> torch.Tensor:
        k, both, gates, q = self._size, self._both, self._gates, self._q
        both[:, :k] = self.adjacency @ h
        both[:, k:] = h
        torch.addmm(self._gate_bias, both, self._gate_weight, out=gates).sigmoid_()
        torch.addmm(self._b_q, both[:, :k], self._W_q, out=q)
        torch.addmm(self._c_q, h, self._U_q, out=self._Uh)
        q.addcmul_(gates[:, :k], self._Uh).sigmoid_().mul_(2).sub_(1)
        return torch.lerp(q, h, gates[:, k:])  # a new tensor: nobody's h is written to
