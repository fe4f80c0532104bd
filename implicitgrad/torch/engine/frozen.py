"""A map that is one fixed function for the length of a solve, whatever dropout and batch normalization do.

A solver calls the map many times, in the forward pass and again in the backward pass. Dropout would draw another mask
each time, so there would be no fixed point to find, and running statistics would move with every call. Here every call
begins from the same state of the random number generators and of the captured buffers, and leaves both as it found
them; what one call leaves behind is left behind once, by the last one of the forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["Frozen"]


class Frozen:
    """The surroundings of one map, as the first call found them.

    Attributes
    ----------
    is_random : bool
        Whether the first call drew from torch's generators. Others (NumPy's, a ``torch.Generator``) are not seen.
    writes : bool
        Whether the first call wrote to captured buffers.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: list[torch.Tensor] = []
        self._after: list[torch.Tensor] = []
        self._written: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._settled = False
        self.is_random = False

    def begin(self) -> None:
        """Remember the generators; called before the first call."""
        self._before = self._generators()

    def end(self, written: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """See what the first call has changed, and undo it.

        Parameters
        ----------
        written : list of (tensor, tensor)
            The buffers it wrote to, each with a copy of what it held before.
        """
        self._written = written
        _fill(written)
        self._after = self._generators()
        self.is_random = not all(map(torch.equal, self._before, self._after))
        if not self.is_random:
            self._before, self._after = [], []

    @property
    def writes(self) -> bool:
        """Whether a call of the map writes to buffers, so that one more is owed for what it leaves in them."""
        return bool(self._written)

    @property
    def moves(self) -> bool:
        """Whether a call of the map leaves anything behind."""
        return self.is_random or self.writes

    def apart(
        self, image: torch.Tensor, written: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    ) -> torch.Tensor:
        """Return ``image`` in memory of its own: it may lie in a buffer that is about to be put back.

        What requires a gradient cannot: a buffer that a graph is written to is refused.
        """
        written = self._written if written is None else written
        return image.clone() if written and not image.requires_grad else image

    @contextmanager
    def again(self) -> Iterator[None]:
        """Surround a call that is to equal the first one and to leave nothing behind: not later either, in backward."""
        outside = self._generators() if self.is_random else []
        found = [(t, t.detach().clone()) for t, _ in self._written]
        _fill(self._written)
        self._set(self._before)
        try:
            yield
        finally:
            self._set(outside)
            _fill(found)

    @contextmanager
    def once(self) -> Iterator[None]:
        """Surround the call whose traces stay: statistics move, and the generators go on from where it left them."""
        self._settled = True
        self._set(self._before)
        try:
            yield
        finally:
            self._set(self._after)

    def buffers(self) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """Return the buffers that the map writes to, and stand-ins for one call, which hold what the first call found.

        A call whose graph is kept must write to stand-ins: the graph has saved what was written, and would not notice
        when the buffer is filled again.
        """
        return tuple(t for t, _ in self._written), tuple(before.clone() for _, before in self._written)

    def _generators(self) -> list[torch.Tensor]:
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        return states

    def _set(self, states: list[torch.Tensor]) -> None:
        if states:
            torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.cuda.set_rng_state(states[1], self._device)


def _fill(contents: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for t, content in contents:
        t.data.copy_(content)  # .data: to graphs outside it is no change, since what they have saved comes back
