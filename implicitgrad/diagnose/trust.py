"""Which numbers of a report can be believed: what contradicts what, and what a search left open.

Of one matrix ``rho(J) <= norm(J)``, the departure from normality is at most 1, and ``J v`` pairs with ``J^H u``. Where
that fails the products are not those of a matrix, and no number means anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from implicitgrad.diagnose.report import Diagnosis

__all__ = ["SLOW", "WEAK", "contradictions", "converges", "impossible_departure", "unfinished"]

# sigma_min where a gradient may be magnified a hundred times: SGD would need a hundredth of its step.
WEAK = 1e-2
SLOW = 0.95  # rho(J) from which 20 Neumann terms leave a third of the error


def contradictions(d: Diagnosis) -> list[str]:
    """Return what cannot be true of one matrix, nor be blamed on a search that was cut short."""
    found = []
    if not d.repeatable:
        found.append("two identical products differ")
    if not d.matched or any(run.status == "ADJOINT_MISMATCH" for run in d.solvers):
        found.append("J v and J^T u are not of one matrix (ADJOINT_MISMATCH)")
    if _above_the_norm(d) and d.norm_upper is not None and d.radius > (1 + _slack(d)) * d.norm_upper:
        found.append("rho(J) is above norm(J)")
    if impossible_departure(d) and d.norm_converged:
        found.append("the departure from normality is above 1")
    return found


def unfinished(d: Diagnosis) -> list[str]:
    """Return the numbers of the verdict that a search did not settle, nor anything else."""
    names = []
    if not d.radius_converged and d.radius <= SLOW and not converges(d):
        names.append("rho(J)")
    if _above_the_norm(d) or impossible_departure(d):
        names.append("norm(J)")
    if d.sigma_min_interval is not None and not d.sigma_min_converged and not d.sigma_min_interval[0] > WEAK:
        names.append("sigma_min(I - J)")
    return names


def converges(d: Diagnosis) -> str:
    """Return who else says that plain iteration converges: the norm, or the Neumann series; "" where nobody does."""
    if not d.radius < 1:
        return ""
    if d.contraction:
        return "since norm(J) < 1"
    return "as Neumann did" if any(r.name == "Neumann" and r.status == "CONVERGED" for r in d.solvers) else ""


def impossible_departure(d: Diagnosis) -> bool:
    """Return whether the departure from normality is one that no matrix has."""
    return d.departure is not None and d.departure > 1 + 2 * _slack(d)


def _slack(d: Diagnosis) -> float:
    """Return by how much ``rho(J)`` may be found above ``norm(J)``: both are Ritz values, the norm to 1e-4."""
    return max(0.01, 8 * d.eps)


def _above_the_norm(d: Diagnosis) -> bool:
    return d.norm is not None and d.radius > (1 + _slack(d)) * d.norm
