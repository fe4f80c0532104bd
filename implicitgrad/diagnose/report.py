"""The report itself: numbers, a page of text, a dictionary, a picture. It measures nothing."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from implicitgrad.diagnose.advice import advise, verdict
from implicitgrad.diagnose.page import page

__all__ = ["Diagnosis", "NeumannError", "SolverRun"]


@dataclass(frozen=True)
class NeumannError:
    """The truncated Neumann series after ``products`` products.

    Attributes
    ----------
    products : int
        ``K``: the terms ``t = 0 .. K`` are summed.
    error : float or None
        ``norm(z_K - z) / norm(z)`` as measured; None where no solver found ``z``.
    bound : float
        ``norm_upper^(K+1)``, which bounds ``norm(J)^(K+1)``, what proposition 2 promises; Inf where no upper bound is
        known, as without a JVP.
    """

    products: int
    error: float | None
    bound: float


@dataclass(frozen=True)
class SolverRun:
    """One solver on ``(I - J)^H z = g``.

    Attributes
    ----------
    name, status : str
    products : int
        VJPs and JVPs, the final check included.
    relative_residual : float
        Recomputed.
    course : tuple of (float, float)
        Products, and the method's own estimate of the relative residual after them.
    """

    name: str
    status: str
    products: int
    relative_residual: float
    course: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Diagnosis:
    """What ``diagnose`` found. For a batch each number is that of the worst system.

    Attributes
    ----------
    size, systems : int
        ``n``, and how many systems.
    coupled : int
        0; or how many rows were handed over as independent systems and are none. Then all numbers are of these rows as
        one system, ``size`` and ``systems`` too.
    coupling : float
        Relative change of a row's product with the other rows; 0.0 where there is none.
    repeatable, matched : bool
        Whether two identical products were the same; whether ``J v`` and ``J^H u`` were of one matrix in the searches.
    dtype : str
    eps : float
        Its spacing at 1.
    fixed_point_residual : float or None
        ``norm(F(h) - h) / norm(F(h))``; None where only ``J`` was given.
    radius : float
        ``rho(J)``: plain iteration converges below 1, by this factor a step in the long run.
    norm : float or None
        ``norm(J, 2)`` as far as it was found, a lower bound; every step contracts where it is below 1. None without a
        JVP, like the next ones.
    norm_upper : float or None
        An upper bound on it, with the probability that ``operator_norm`` gives; infinite where none is known.
    sigma_min : float or None
        Smallest singular value of ``I - J``; an adjoint is at most ``1 / sigma_min`` times its cotangent.
    sigma_min_interval : tuple of float, or None
        ``(lower, upper)`` for it; ``upper`` always holds, ``lower`` under ``sigma_min_condition``.
    sigma_min_condition : str or None
    sigma_min_residual : float or None
        ``norm((I - J)^H u - sigma_min v)``: some singular value is that near, always.
    radius_converged, norm_converged, sigma_min_converged : bool
        Whether the searches came to their end.
    departure : float or None
        From normality: ``lambda_max(J^H J - J J^H) / norm(J)^2``, between 0 (normal) and 1.
    rtol : float
        The relative residual that ``solvers`` were asked for.
    neumann : tuple of NeumannError
    solvers : tuple of SolverRun
    eigenvalues, singular_values : ndarray
        Ritz values: of ``J``, complex, and of ``I - J``.
    """

    size: int
    systems: int
    coupled: int
    coupling: float
    repeatable: bool
    matched: bool
    dtype: str
    eps: float
    fixed_point_residual: float | None
    radius: float
    radius_converged: bool
    norm: float | None
    norm_upper: float | None
    norm_converged: bool
    sigma_min: float | None
    sigma_min_interval: tuple[float, float] | None
    sigma_min_condition: str | None
    sigma_min_residual: float | None
    sigma_min_converged: bool
    departure: float | None
    rtol: float
    neumann: tuple[NeumannError, ...]
    solvers: tuple[SolverRun, ...]
    eigenvalues: Any = field(repr=False)
    singular_values: Any = field(repr=False)

    @property
    def contraction(self) -> bool | None:
        """Whether every step brings two states nearer, ``norm(J) < 1``; None where that is not known."""
        if self.norm is None or self.norm_upper is None:
            return None
        return True if self.norm_upper < 1 else False if self.norm >= 1 else None

    @property
    def recommended(self) -> str:
        """The solver with the fewest products of those that converged; what to try where none did."""
        converged = [run for run in self.solvers if run.status == "CONVERGED"]
        if converged:
            return min(converged, key=lambda run: run.products).name
        return "Dense" if self.size <= 256 else "LSMR" if self.norm is not None else "GMRES"

    @property
    def verdict(self) -> str:
        """``"healthy"``, ``"slow"``, ``"unsure"`` or ``"sick"``, with the reason."""
        return verdict(self)

    @property
    def advice(self) -> tuple[str, ...]:
        """What to do, in sentences; the most urgent first."""
        return advise(self)

    def __str__(self) -> str:
        """Return the page."""
        return "\n".join(page(self))

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers and sentences as what ``json.dumps`` takes; Inf and NaN become None."""
        plain = asdict(self)
        plain["eigenvalues"] = [[value.real, value.imag] for value in np.asarray(self.eigenvalues, complex).tolist()]
        plain["singular_values"] = np.asarray(self.singular_values, float).tolist()
        plain |= {
            "contraction": self.contraction,
            "recommended": self.recommended,
            "verdict": self.verdict,
            "advice": list(self.advice),
        }
        result: dict[str, Any] = _jsonable(plain)
        return result

    def plot(self, path: Any = None) -> Any:
        """Draw the three pictures of the report; return the matplotlib ``Figure``.

        Eigenvalues in the complex plane, with the unit circle and the point 1; residual against products for each
        solver; singular values of ``I - J``.

        Parameters
        ----------
        path : str or Path, optional
            Also save it there; the suffix says in which format.

        Raises
        ------
        ModuleNotFoundError
            Without matplotlib: ``pip install "implicitgrad[plot]"``.
        """
        from implicitgrad.diagnose.plot import draw  # matplotlib is loaded by who wants a picture

        return draw(self, path)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
