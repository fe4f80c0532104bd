"""From the numbers of a report to words: what is wrong, and what to do about it. The thresholds are all here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from implicitgrad.diagnose.report import Diagnosis

__all__ = ["advise", "useful_damping", "verdict"]

# sigma_min where a gradient may be magnified a hundred times: SGD would need a hundredth of its step.
_WEAK = 1e-2
_SLOW = 0.95  # rho(J) from which 20 Neumann terms leave a third of the error
_NONNORMAL = 0.5
_GOOD_ENOUGH = 1e-2  # error of a truncated series that stochastic gradients hide


def verdict(d: Diagnosis) -> str:
    """Return ``healthy``, ``slow`` or ``sick``, and why, in one line."""
    if not math.isfinite(d.radius):
        return "sick: J holds NaN or Inf"
    if _off_the_fixed_point(d):
        return "sick: this is no fixed point"
    if d.sigma_min is not None and d.sigma_min <= _WEAK:
        return "sick: I - J is singular to rounding" if _singular(d) else "sick: I - J is nearly singular"
    if not any(run.status == "CONVERGED" for run in d.solvers):
        return "sick: no solver found the adjoint"
    if d.radius >= 1:
        return "slow: plain iteration diverges, the gradient exists"
    if d.radius > _SLOW:
        return "slow: plain iteration takes hundreds of steps"
    return "healthy"


def advise(d: Diagnosis) -> tuple[str, ...]:
    """Return what to do, the most urgent first."""
    if not math.isfinite(d.radius):
        return (
            "Look at the map and its derivative at this point: a product with J is not finite, so nothing is known.",
        )
    said = []
    if d.fixed_point_residual is not None and _off_the_fixed_point(d):
        off = f" The state may be off by {d.fixed_point_residual / d.sigma_min:.0e} of itself." if d.sigma_min else ""
        said.append(
            "Solve the forward problem better first: an implicit gradient belongs to the fixed point, and this is not "
            f"one.{off} Raise max_iters of the forward solver, or use Anderson()."
        )
    if d.sigma_min is not None and d.sigma_min <= _WEAK:
        margin = (10 * _WEAK) ** 2
        said.append(
            f"Regularize: add igt.lambda_min_penalty(f, z, *args, margin={margin:g}) to the loss, which keeps "
            f"sigma_min near {10 * _WEAK:g}. As it is, a residual of {d.rtol:.0e} leaves an error of up to "
            f"{_share(d.rtol / d.sigma_min if d.sigma_min else math.inf)} of norm(g), and gradients explode."
        )
    said.append(_solver_sentence(d))
    if d.radius >= 1:
        said.append(_damping_sentence(d))
    elif d.norm is not None and d.norm >= 1:
        said.append(
            f"Errors may grow, up to {d.norm:.2g} times a step, before they shrink: rho(J) speaks of the long run "
            "only. Do not stop a Neumann series early."
        )
    if d.radius < 1:
        said.append(_neumann_sentence(d))
    if d.departure is not None and d.departure > _NONNORMAL:
        said.append("J is far from normal: trust sigma_min and norm(J), not the eigenvalues.")
    if d.norm is None:
        said.append("Give the operator a JVP (VJPOperator(..., jvp=...)): without it sigma_min cannot be known.")
    return tuple(said)


def useful_damping(eigenvalues: np.ndarray) -> float | None:
    """Return the damping ``d`` at which ``(1 - d) J + d I`` contracts best, by these eigenvalues; None where none does.

    For an eigenvalue ``mu`` the factor ``abs(1 - s (1 - mu))``, ``s = 1 - d``, is below 1 if and only if ``Re mu < 1``
    and ``s < 2 Re(1 - mu) / abs(1 - mu)^2``; half of that is best for that ``mu``.
    """
    away = 1 - np.asarray(eigenvalues, complex)
    if not len(away) or (away.real <= 0).any():
        return None
    share = float(np.min(away.real / np.abs(away) ** 2))
    return max(0.0, 1 - share)


def _off_the_fixed_point(d: Diagnosis) -> bool:
    return d.fixed_point_residual is not None and not d.fixed_point_residual <= d.eps**0.5


def _singular(d: Diagnosis) -> bool:
    scale = 1.0 if d.norm is None else 1.0 + d.norm
    return d.sigma_min is not None and d.sigma_min <= 64 * d.eps * scale


def _solver_sentence(d: Diagnosis) -> str:
    converged = sorted((run for run in d.solvers if run.status == "CONVERGED"), key=lambda run: run.products)
    if not converged:
        return f"No solver came to {d.rtol:.0e}. Try {d.recommended}(), a wider dtype, or regularize."
    best = converged[0]
    text = f"Solve with adjoint=ig.{best.name}(): {best.products} products for a residual of {d.rtol:.0e}."
    if best.name.startswith("NormalEquations"):
        text = text.replace(f"ig.{best.name}()", "ig.NormalEquations(ig.CG())")
    neumann = next((run for run in converged if run.name == "Neumann"), None)
    if neumann is not None and neumann is not best and neumann.products <= 1.5 * best.products:
        text += f" Neumann takes {neumann.products} and keeps two vectors only."
    return text


def _damping_sentence(d: Diagnosis) -> str:
    damping = useful_damping(d.eigenvalues)
    if damping is None:
        return (
            "Plain iteration and the Neumann series diverge, and damping cannot help: an eigenvalue of J has a real "
            "part of 1 or more. Use Anderson() forward and a Krylov solver backward, or regularize."
        )
    return (
        f"Plain iteration and the Neumann series diverge. Damp: Picard(damping={damping:.2g}) converges by the "
        "eigenvalues seen; Anderson() needs no damping. Backward use a Krylov solver."
    )


def _neumann_sentence(d: Diagnosis) -> str:
    known = [(n.products, n.error) for n in d.neumann if n.error is not None]
    enough = next((k for k, error in known if error <= _GOOD_ENOUGH), None)
    if enough is not None:
        return f"A Neumann series of K = {enough} is right to 1% for this cotangent."
    # Slower than the eigenvalues say where J is far from normal: what was measured counts too.
    rate = max([d.radius, *(error ** (1 / (k + 1)) for k, error in known[-1:])])
    if not 0 < rate < 1:
        return "A Neumann series did not come near: do not use a short one."
    count = math.ceil(math.log(_GOOD_ENOUGH) / math.log(rate))
    return f"A Neumann series takes about K = {count} products for 1%; a shorter one is biased by that much more."


def _share(value: float) -> str:
    return f"{value:.0%}" if value < 10 else f"{value:.0e} times"
