"""How many of the last updates a random truncation keeps, and the weights that make its mean the whole sum.

Back-propagation through ``T`` updates is a sum of ``T`` terms; term ``k`` has gone back through ``k`` Jacobians. With a
random number ``N`` of kept updates term ``k`` survives with probability ``P(N > k)``, so the mean of

    sum_{k < N} term_k / P(N > k)

is the sum of all terms. Used by ``artbp``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from implicitgrad.errors import SettingError, SettingTypeError

__all__ = ["PoissonTruncation", "Truncation", "UniformTruncation"]


class Truncation(ABC):
    """Interface: a distribution of the number ``N`` of kept updates, 1 to ``T``; one with ``P(N = T) > 0`` for all T.

    A distribution of your own needs ``log_masses`` alone.
    """

    @abstractmethod
    def log_masses(self, steps: int) -> torch.Tensor:
        """Return ``log P(N = n)`` for ``n = 1 .. steps`` up to a constant, ``(steps,)`` in float64; the last finite."""

    def probabilities(self, steps: int) -> torch.Tensor:
        """Return ``P(N = n)`` for ``n = 1 .. steps``, ``(steps,)`` in float64.

        Examples
        --------
        >>> import implicitgrad.torch as igt
        >>> igt.UniformTruncation().probabilities(4)
        tensor([0.2500, 0.2500, 0.2500, 0.2500], dtype=torch.float64)
        """
        return torch.softmax(self.log_masses(steps), dim=0)

    def weights(self, steps: int) -> torch.Tensor:
        """Return the weight ``1 / P(N > k)`` of term ``k = 0 .. steps - 1``, ``(steps,)`` in float64; the first is 1.

        Infinite where the probability is below what float64 holds; such a draw does not occur.

        Examples
        --------
        >>> import implicitgrad.torch as igt
        >>> igt.UniformTruncation().weights(4)
        tensor([1.0000, 1.3333, 2.0000, 4.0000], dtype=torch.float64)
        """
        return torch.exp(-self._log_survival(steps))

    def ratios(self, steps: int) -> list[float]:
        """Return ``weight_k / weight_{k-1}`` for ``k = 1 .. steps - 1``: what one more step back multiplies by.

        From logarithms: finite where the weights themselves overflow.
        """
        log_survival = self._log_survival(steps)
        ratios: list[float] = torch.exp(log_survival[:-1] - log_survival[1:]).tolist()
        return ratios

    def sample(self, steps: int, generator: torch.Generator | None = None) -> int:
        """Return a number of kept updates, ``1 .. steps``, drawn on the CPU from ``generator`` or torch's own."""
        uniform = torch.rand((), dtype=torch.float64, generator=generator)
        below = torch.searchsorted(torch.cumsum(self.probabilities(steps), dim=0), uniform, right=True)
        return min(int(below) + 1, steps)  # rounding may leave the last cumulative sum below the number drawn

    def _log_survival(self, steps: int) -> torch.Tensor:
        """Return ``log P(N > k)`` for ``k = 0 .. steps - 1``, summed from the small end so that no digits are lost."""
        masses = torch.log_softmax(self.log_masses(steps), dim=0)
        tail = torch.logcumsumexp(masses.flip(0), dim=0).flip(0)
        return tail - tail[0]  # P(N > 0) = 1 to the bit


@dataclass(frozen=True)
class UniformTruncation(Truncation):
    """``P(N = n) = 1 / T``: half of the updates are kept in the mean, and term ``k`` weighs ``T / (T - k)``."""

    def log_masses(self, steps: int) -> torch.Tensor:
        """Return equal masses."""
        return torch.zeros(steps, dtype=torch.float64)


@dataclass(frozen=True)
class PoissonTruncation(Truncation):
    """``N`` is Poisson distributed under the condition ``1 <= N <= T``: few updates are kept, with large weights.

    Parameters
    ----------
    rate : float
        Mean of the Poisson distribution before the condition, positive. Default 5: of 100 updates about the last five
        are kept, which is where the paper cuts ("roughly at the 95th time step").

    Notes
    -----
    The weights ``1 / P(N > k)`` grow faster than any power: the variance is finite for every ``T``, since there are
    only ``T`` terms, but it is large unless the terms decay as fast as ``sqrt(P(N > k))``.
    """

    rate: float = 5.0

    def __post_init__(self) -> None:
        if isinstance(self.rate, bool) or not isinstance(self.rate, int | float):
            raise SettingTypeError(f"PoissonTruncation: got rate={self.rate!r}, expected a positive number.")
        if not 0 < self.rate < float("inf"):
            raise SettingError(f"PoissonTruncation: got rate={self.rate}, expected a positive, finite number.")

    def log_masses(self, steps: int) -> torch.Tensor:
        """Return ``n log(rate) - log(n!)``."""
        n = torch.arange(1, steps + 1, dtype=torch.float64)
        return n * torch.log(torch.tensor(float(self.rate), dtype=torch.float64)) - torch.lgamma(n + 1)
