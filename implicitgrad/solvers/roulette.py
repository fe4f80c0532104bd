"""Russian roulette on the Neumann series: cut at a random place, reweighted so that the mean is the whole sum.

Used through ``adjoint_solve`` and ``fixed_point(adjoint=RussianRoulette(...))`` where a cheap gradient may be noisy but
not biased: the noise averages out over the steps of a stochastic optimizer, a bias does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.backends.host import pick, quotient
from implicitgrad.errors import SettingError, SettingTypeError
from implicitgrad.operators import identity_minus
from implicitgrad.solvers.base import check_settings
from implicitgrad.solvers.iterative import IterativeSolver
from implicitgrad.solvers.system import System
from implicitgrad.status import Status

__all__ = ["RussianRoulette"]


@dataclass(frozen=True, kw_only=True)
class RussianRoulette(IterativeSolver):
    """An unbiased random truncation of the Neumann series: ``x = sum_{t=0..T} (I - A)^t b / P(T >= t)``, ``T`` random.

    For ``A = (I - J)^H`` the mean of ``x`` is ``(I - J)^{-H} g``, so the gradient is unbiased at a finite expected
    cost. The terms ``t = 0 .. min_iters`` are always kept; after each further one the sum goes on with probability
    ``continuation``, and the terms are divided by the probability of having come so far.

    Parameters
    ----------
    continuation : float
        ``q``, in (0, 1). ``P(T >= t) = q^(t - m)`` for ``t >= m``, with ``m = min_iters``.
    min_iters : int
        ``m``, the products that are always spent, at least 0. More of them: less noise.
    final_residual : bool
        Spend one product more to measure the residual of ``x``. It does not tell how good the mean is.
    rng : numpy.random.Generator, optional
        Where ``T`` is drawn from; each call moves it on. None (default): fresh entropy in each call. There is no
        global state: ``torch.manual_seed`` and ``numpy.random.seed`` do not reach it. Processes that share one system
        must be handed generators of one seed, or they stop at different terms.

    Raises
    ------
    SettingError, SettingTypeError
        ``continuation`` is not in (0, 1); ``rng`` is no ``Generator``: a seed in a frozen solver would draw the same
        ``T`` at each call, which is a bias.

    Notes
    -----
    Forsythe & Leibler 1950 (after von Neumann and Ulam) and Kahn 1955, "Use of different Monte Carlo sampling
    techniques", for the device; Lyne et al. 2015, "On Russian roulette estimates for Bayesian inference with
    doubly-intractable likelihoods", Statist. Sci. 30, sec. 3, and Chen et al. 2019, "Residual flows for invertible
    generative modeling", NeurIPS, sec. 3.1, for its variance and for terms that are always kept.

    *Unbiased* where the series converges, ``rho(I - A) < 1``. *The variance is finite* where
    ``rho(I - A)^2 < continuation``, since the L2 norm of term ``t`` is ``norm((I - A)^t b) q^(-(t - m) / 2)`` and
    Minkowski's inequality adds them up; for a normal ``I - A`` and a ``b`` with a part in the dominant eigenspace the
    condition is also necessary. A non-normal ``I - A`` obeys the same condition, but the variance grows with its powers
    before they decay. Where the condition fails, single draws are arbitrarily far off and averages do not settle:
    take a larger ``continuation``, or a solver.

    ``T`` is drawn for each system of a batch by itself, so that their errors are independent and average out; a system
    that is done is frozen. *Cost* of one system: ``m + q / (1 - q)`` products in the mean, 14 with the default
    settings, with no upper end. One call serves the batch, so ``B`` systems cost the largest of ``B`` draws, about
    ``m + log(B) / log(1/q)`` calls: ``num_iters`` has each system's own ``T``, ``num_matvecs`` the calls. Two vectors.

    The status is ``SAMPLED``; ``Solution.bias`` is 0, or infinite where the last term of the draw was no smaller than
    the one before, so that the series seems not to converge. No standard error is given: one draw does not know it.
    Hand in ``b`` as a batch of copies and take the standard deviation over the draws, as in the example. ``history``
    is the residual of the plain sum, without the weights. From ``x0`` the series is that of ``b - A x0``: a good guess
    makes the noise as small as its residual.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> J = ig.DenseOperator(np.array([[0.5, 0.2], [0.0, 0.25]]))
    >>> solver = ig.RussianRoulette(continuation=0.5, min_iters=1, rng=np.random.default_rng(0))
    >>> draws = ig.adjoint_solve(J, np.tile([1.0, 1.0], (10_000, 1)), solver=solver)
    >>> standard_error = draws.x.std(axis=0) / 100
    >>> bool((abs(draws.x.mean(axis=0) - [2.0, 28 / 15]) < 4 * standard_error).all())
    True
    >>> draws.status[0].name, round(draws.num_iters.mean())
    ('SAMPLED', 2)
    """

    continuation: float = 0.9
    min_iters: int = 5
    final_residual: bool = False
    rng: np.random.Generator | None = None

    # To the driver it is a fixed budget, which ``budget`` draws.
    rtol: ClassVar[float] = 0.0  # type: ignore[misc]
    atol: ClassVar[float] = 0.0  # type: ignore[misc]
    max_iters: ClassVar[int] = 0  # type: ignore[misc]
    stationary: ClassVar[bool] = True
    series: ClassVar[bool] = True
    outcome: ClassVar[Status] = Status.SAMPLED

    def __post_init__(self) -> None:
        check_settings(self)
        q = self.continuation
        if isinstance(q, bool) or not isinstance(q, int | float | np.integer | np.floating):
            raise SettingTypeError(f"RussianRoulette: got continuation={q!r}, expected a number in (0, 1).")
        if not 0 < q < 1:
            raise SettingError(
                f"RussianRoulette: got continuation={q!r}, expected a number in (0, 1). 0 would never reach the later "
                "terms, which is Neumann(max_iters=K, rtol=0); 1 would never stop, which is Neumann()."
            )
        if self.rng is not None and not isinstance(self.rng, np.random.Generator):
            raise SettingTypeError(
                f"RussianRoulette: got rng of type {type(self.rng).__qualname__}, expected a numpy.random.Generator or "
                "None. Write rng=np.random.default_rng(seed)."
            )

    def budget(self, size: int, batch: tuple[int, ...]) -> Any:
        """Draw ``T``: one number, or an array ``(...)`` with one for each system of a batch."""
        rng = np.random.default_rng() if self.rng is None else self.rng
        beyond = rng.geometric(1.0 - self.continuation, size=batch if batch else None)  # P(beyond > k) = q^k
        drawn = beyond + (int(self.min_iters) - 1)
        return drawn if batch else int(drawn)

    def bias(self, system: System, residual_norm: Any) -> Any:
        """Return 0, the mean over draws being the solution; infinite where the last terms grew: there is no mean."""
        return pick(system.kept.get("grows", False if system.single else np.zeros(system.batch, bool)), math.inf, 0.0)

    def iterations(self, system: System, x: Array | None, r: Array) -> Iterator[tuple[Any, Any]]:
        """Add the weighted terms; the driver takes a system out at its own ``T``."""
        backend = system.backend
        contraction = identity_minus(system.operator)
        x, term = (r if x is None else x + r), r
        del r
        size, ratio = backend.host_norm(term), 1.0
        step, weight = 0, 1.0
        grows: Any = False if system.single else np.zeros(system.batch, bool)  # of the last term that a system has seen
        while True:
            yield size * ratio, x
            x, term = system.park(x, term)
            system.num_matvecs += 1
            term = contraction.apply(term)
            step += 1
            if step > self.min_iters:
                weight /= self.continuation
            x = x + (term if weight == 1.0 else weight * term)
            before, size = size, backend.host_norm(term)
            ratio = quotient(size, before)
            grows = system.kept["grows"] = pick(system.live, ratio >= 1, grows)
