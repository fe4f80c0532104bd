"""Sums of squares ``norm(M, F)^2`` of an operator that is known by its products: exact, by unit vectors, or estimated.

Exact: ``sum_i norm(M e_i)^2``, a chunk of unit vectors at a time. Estimated (Hutchinson 1990, Commun. Stat. Simul.
Comput. 19): the mean of ``norm(M e)^2`` over vectors ``e`` of random signs, unbiased because the mean of ``e e^H`` is
``I``. Used by the Gershgorin and the Jacobian-norm penalties.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from implicitgrad.errors import SettingError, SettingTypeError
from implicitgrad.torch.regularizers.linearized import Linearized, MapAt
from implicitgrad.torch.regularizers.streamed import streamed

__all__ = ["Probes", "unit_vectors"]

_BYTES = 2**25  # of unit vectors that go through a backward pass at once
Product = Callable[[Linearized, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Probes:
    """The vectors that an operator is probed with, and the settings they come from, checked."""

    name: str
    estimator: str
    probes: int
    seed: int
    generator: Any
    chunk: int | None

    def __post_init__(self) -> None:
        """Raise for settings that make no sense."""
        name = self.name
        if self.estimator not in ("exact", "hutchinson"):
            raise SettingTypeError(f"{name}: got estimator={self.estimator!r}, expected 'exact' or 'hutchinson'.")
        for label, value in (("probes", self.probes), ("chunk", self.chunk)):
            if label == "chunk" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise SettingTypeError(f"{name}: got {label}={value!r}, expected an integer >= 1.")
            if value < 1:
                raise SettingError(f"{name}: got {label}={value!r}, expected an integer >= 1.")
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            raise SettingTypeError(
                f"{name}: got generator of type {type(self.generator).__qualname__}, expected a torch.Generator. "
                "Make one with torch.Generator().manual_seed(0)."
            )

    def rows(self, function: MapAt) -> int:
        """Return how many vectors are probed at once."""
        if self.chunk is not None:
            return self.chunk
        z = function.z
        return max(1, min(function.size, _BYTES // max(1, z.numel() * z.element_size())))

    def sum_of_squares(self, function: MapAt, product: Product) -> torch.Tensor:
        """Return ``norm(M, F)^2`` of each system, or its estimate, differentiable; ``product`` is ``M e``."""
        if self.estimator == "hutchinson":
            linearized = function.linearized()
            signs = self._signs(linearized.point)
            return _squares(torch.stack([product(linearized, e) for e in signs])).mean(dim=0)

        def terms(linearized: Linearized) -> Iterator[torch.Tensor]:
            for e in unit_vectors(linearized.point, self.rows(function)):
                yield _squares(product(linearized, e)).sum(dim=0)

        with torch.no_grad():
            value = sum(terms(function.linearized()))
        return streamed(function, torch.as_tensor(value), terms)

    def _signs(self, point: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed) if self.generator is None else self.generator
        shape = (self.probes, *point.shape)
        bits = torch.randint(0, 2, shape, generator=generator, device=generator.device)
        return (2 * bits - 1).to(dtype=point.dtype, device=point.device)


def unit_vectors(point: torch.Tensor, rows: int) -> Iterator[torch.Tensor]:
    """Yield the unit vectors ``e_1 .. e_n`` of each system, ``rows`` at a time: ``(rows, ..., n)``."""
    size = point.shape[-1]
    for first in range(0, size, rows):
        index = torch.arange(first, min(first + rows, size), device=point.device)
        e = torch.nn.functional.one_hot(index, size).to(point.dtype)
        yield e.reshape(len(index), *(1 for _ in point.shape[:-1]), size).expand(len(index), *point.shape)


def _squares(x: torch.Tensor) -> torch.Tensor:
    """Return ``norm(x)^2`` over the last axis; of half precision in float32, where float16 would overflow."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return torch.linalg.vector_norm(x, dim=-1).square() if x.is_complex() else x.square().sum(dim=-1)
