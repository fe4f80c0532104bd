"""Outcomes of a solve: what happened, and what to try. The value of each member is its sentence.

Solvers report one status per system. Statuses are data, not exceptions: ``adjoint_solve`` decides, by ``on_failure``,
whether a bad one raises.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["Status"]


class Status(Enum):
    """How a solve of one system ended.

    Examples
    --------
    >>> from implicitgrad import Status
    >>> Status.CONVERGED.is_good, Status.SINGULAR.is_good
    (True, False)
    >>> print(Status.INDEFINITE.sentence)
    A direction of zero or negative curvature was met, so the operator is not positive definite: use MINRES or GMRES.
    """

    CONVERGED = "The recomputed residual of the returned x is within the bound."
    TRUNCATED = (
        "The fixed budget of iterations (rtol = atol = 0) was spent, as asked; the residual was not measured, "
        "pass final_residual=True to have it."
    )
    SAMPLED = (
        "The series was cut at a random place and reweighted, as asked: x is one draw of an unbiased estimate, not a "
        "solution; average draws, or raise continuation, for less noise."
    )
    MAX_ITERS = "max_iters was reached before the bound: raise max_iters, loosen rtol, or choose another solver."
    STAGNATED = (
        "The residual stopped falling above the bound. At the floor of the float format nothing more can be had: "
        "loosen rtol or use a wider dtype. Above it, use another solver (GMRES: a longer restart), or ask whether what "
        "is looked for is there: a root, a minimum without a kink."
    )
    DIVERGED = (
        "The iterates grow without bound, as those of Neumann, Richardson and Picard do where the spectral radius of "
        "the map is at least one: use GMRES for a linear system, Anderson, Broyden or NewtonKrylov for a map, or damp "
        "it. Those of argmin do where the loss has no minimum."
    )
    BREAKDOWN = (
        "The method's recurrence broke down, by a division by nearly zero or by drift from the truth, and a fresh "
        "start gained nothing: use GMRES or LSMR."
    )
    SINGULAR = (
        "The operator is singular on the space the method searched and the right-hand side is not in its range, as far "
        "as rounding tells: use LSMR for a least-squares solution, or keep I - J invertible."
    )
    INDEFINITE = (
        "A direction of zero or negative curvature was met, so the operator is not positive definite: "
        "use MINRES or GMRES."
    )
    LEAST_SQUARES = (
        "The system has no solution within the bound; x minimizes the residual norm: "
        "check that I - J is invertible, or remove the shift."
    )
    ADJOINT_MISMATCH = (
        "<A p, r> and <p, A^T r> differ beyond rounding, so jvp and vjp are not of one matrix: run check_operator."
    )
    COUPLED = (
        "The leading axes are no independent systems: the residual of one that was done has changed with the others, "
        "or a product of some reaches the rest. Leave batch_ndim at 0, or let the map treat each sample by itself."
    )
    OVERFLOW = "The solution is too large for its dtype: scale the right-hand side down, or use a wider dtype."
    NONFINITE_INPUT = "The right-hand side or x0 holds NaN or Inf: look at the loss and at the forward pass."
    NONFINITE_OPERATOR = (
        "A product of the operator held NaN or Inf, or numbers whose squares overflow: look at the map and its "
        "derivative at this point."
    )
    FORWARD_NOT_CONVERGED = (
        "The forward solve did not reach a fixed point, so the implicit gradient belongs to another point: "
        "give the forward pass more iterations, or make the map contract."
    )

    @property
    def sentence(self) -> str:
        """What happened and what to try."""
        return self.value

    @property
    def is_good(self) -> bool:
        """True where the solve did what was asked: it converged, or made the approximation that was named."""
        return self in (Status.CONVERGED, Status.TRUNCATED, Status.SAMPLED)
