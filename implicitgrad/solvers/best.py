"""Which iterate of a cycle comes back: the best, system by system, or the last where that is what was asked for.

Most methods know the residual of the iterate that they yield. A stationary one (``Foreseen``) learns it with the
product that leads to the next iterate, and yields a guess; so its last iterate comes back, and the best of those behind
it is kept at hand until that has been measured.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.backends.host import any_true, finite, negate, pick
from implicitgrad.solvers.system import System

__all__ = ["Best", "Foreseen"]


class Best:
    """The best iterates so far, from ``x`` on; with ``takes_last`` the latest whose residual is a finite number.

    Attributes
    ----------
    x : array, callable or None
        Of all systems; a callable forms them when asked, None is zero.
    norm : float, or array (...)
        Their residual norms.
    """

    def __init__(self, system: System, x: Array | None, takes_last: bool) -> None:
        self._system, self._takes_last = system, takes_last
        self.x: Any = x
        self.norm: Any = pick(system.live, math.inf, math.inf)

    def see(self, norms: Any, iterate: Any) -> None:
        """Look at what the method yields."""
        self.offer(norms, iterate)

    def offer(self, norms: Any, iterate: Any) -> None:
        """Take iterates of live systems whose residual norms are smaller than what there is."""
        system = self._system
        better = norms < (math.inf if self._takes_last else self.norm)
        if system.single:
            if better:
                self.x, self.norm = iterate, norms
        elif callable(iterate):
            self.x = iterate  # formed at the end; the systems that have left do not move any more
        else:
            better = better & system.live
            if better.any():
                self.x = system.chosen(better, iterate, self.x)
                self.norm = np.where(better, norms, self.norm)

    def leave(self, gone: Any, claimed: Any, norms: Any, iterate: Any) -> None:
        """Let the systems in ``gone`` go, some of which claim to be done with the iterate."""

    def result(self) -> Array:
        """Return the iterates that come back."""
        x = self.x() if callable(self.x) else self.x
        return self._system.zero() if x is None else x

    def behind(self) -> tuple[Any, Array] | None:
        """Return residual norms and iterates to fall back on, where those of ``result`` are not known."""
        return None


class Foreseen(Best):
    """The same where the norms that are yielded are guesses: the last iterate comes back, to be measured.

    What the method learns of the iterates behind it, ``system.passed`` and ``system.latest``, is kept to fall back on.
    """

    def __init__(self, system: System, x: Array | None) -> None:
        super().__init__(system, x, takes_last=False)
        self._last: Array | None = None
        self._takes: Any = pick(system.live, False, False)  # whose last iterate comes back

    def see(self, norms: Any, iterate: Any) -> None:
        """Take what the method has found to be better than what came after it."""
        if self._system.passed is not None:
            self.offer(*self._system.passed)
            self._system.passed = None

    def leave(self, gone: Any, claimed: Any, norms: Any, iterate: Any) -> None:
        """Keep the last iterate of those in ``gone``, and the one before it unless they claim to be done."""
        system = self._system
        if any_true(last := gone & finite(norms)):
            self._last, self._takes = system.chosen(last, iterate, self._last), self._takes | last
        if system.latest is not None:
            size, form = system.latest
            known = gone & negate(claimed) & (size < self.norm)
            if any_true(known):
                self.offer(pick(known, size, math.inf), form())

    def result(self) -> Array:
        """Return the last iterates, where there are any that are numbers."""
        x = super().result()
        return x if self._last is None else self._system.chosen(self._takes, self._last, x)

    def behind(self) -> tuple[Any, Array] | None:
        """Return the best of those whose residual is known."""
        return (self.norm, self.x) if any_true(self.norm < math.inf) else None
