"""From the numbers of a report to words: what is wrong, and what to do. Which numbers count, ``trust.py`` says."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from implicitgrad.diagnose.trust import SLOW, WEAK, contradictions, impossible_departure, unfinished

if TYPE_CHECKING:
    from implicitgrad.diagnose.report import Diagnosis

__all__ = ["advise", "useful_damping", "verdict"]

_NONNORMAL = 0.5
_GOOD_ENOUGH = 1e-2  # error of a truncated series that stochastic gradients hide


def verdict(d: Diagnosis) -> str:
    """Return ``healthy``, ``slow``, ``unsure`` or ``sick``, and why, in one line."""
    if d.coupled:
        return f"sick: the {d.coupled} rows are one system (COUPLED)"
    if not math.isfinite(d.radius):
        return "sick: J holds NaN or Inf"
    if contradictions(d):
        return "sick: the products with J contradict each other"
    if _off_the_fixed_point(d):
        return "sick: this is no fixed point"
    if d.sigma_min is not None and d.sigma_min <= WEAK:
        return "sick: I - J is singular to rounding" if _singular(d) else "sick: I - J is nearly singular"
    if not any(run.status == "CONVERGED" for run in d.solvers):
        return "sick: no solver found the adjoint"
    if names := unfinished(d):
        return f"unsure: the search for {' and '.join(names)} did not converge"
    if d.radius >= 1:
        return "slow: plain iteration diverges, the gradient exists"
    if d.radius > SLOW:
        return "slow: plain iteration takes hundreds of steps"
    return "healthy"


def advise(d: Diagnosis) -> tuple[str, ...]:
    """Return what to do, the most urgent first."""
    said = [_coupled_sentence(d)] if d.coupled else []
    if not math.isfinite(d.radius):
        return (
            *said,
            "Look at the map and its derivative at this point: a product with J is not finite, so nothing is known.",
        )
    reasons = contradictions(d)
    if reasons:
        said.append(_contradiction_sentence(d, reasons))
    said += _state_sentences(d, trusted=not reasons)
    if reasons:  # what follows is built on numbers that mean nothing
        return tuple(said)
    if names := unfinished(d):
        said.append(
            f"Raise max_iters, or use a wider dtype: the search for {' and '.join(names)} did not converge, so "
            "the numbers may be far off."
        )
    if d.sigma_min is not None and d.sigma_min <= WEAK:
        margin = (10 * WEAK) ** 2
        said.append(
            f"Regularize: add igt.lambda_min_penalty(f, z, *args, margin={margin:g}) to the loss, which keeps "
            f"sigma_min near {10 * WEAK:g}. As it is, a residual of {d.rtol:.0e} leaves an error of up to "
            f"{_share(d.rtol / d.sigma_min if d.sigma_min else math.inf, 'norm(g)')}, and gradients explode."
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
    if d.departure is not None and d.departure > _NONNORMAL and not impossible_departure(d):
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


def _state_error(d: Diagnosis) -> float:
    """Return how far the state may be off, relative to itself: ``norm(F(h) - h) / sigma_min``, to first order."""
    if not d.fixed_point_residual or d.sigma_min is None:
        return 0.0
    return d.fixed_point_residual / d.sigma_min if d.sigma_min > 0 else math.inf


def _singular(d: Diagnosis) -> bool:
    scale = 1.0 if d.norm is None else 1.0 + d.norm
    return d.sigma_min is not None and d.sigma_min <= 64 * d.eps * scale


def _coupled_sentence(d: Diagnosis) -> str:
    return (
        f"Treat the {d.coupled} rows as one system, for a product of one changes with the others: leave batch_ndim at "
        "0, here and in the solve (an operator of your own: hand over one vector of all rows). Or let the map treat "
        "each row by itself: BatchNorm in eval mode, or GroupNorm or LayerNorm in its place."
    )


def _contradiction_sentence(d: Diagnosis, reasons: list[str]) -> str:
    rows = " Rows that mix do this: try batch_ndim=0." if d.systems > 1 else ""
    return (
        f"Do not rely on these numbers: {', and '.join(reasons)}. Run ig.check_operator(J), for a torch map "
        "with J = igt.vjp_operator(f, z, *args, batch_ndim=...): it names the fault in a product, such as a wrong "
        f"transpose, a false claim of symmetry, or randomness.{rows} Half precision within the map (autocast) does "
        "this, too: try it in the dtype of the state."
    )


def _state_sentences(d: Diagnosis, trusted: bool) -> list[str]:
    """Return what the residual of the state says about the state; ``trusted`` where ``sigma_min`` means something."""
    error = _state_error(d) if trusted else 0.0
    off = f" The state may be off by {_share(error, 'itself')}." if error else ""
    if _off_the_fixed_point(d):
        return [
            "Solve the forward problem better first: an implicit gradient belongs to the fixed point, and this is not "
            f"one.{off} Raise max_iters of the forward solver, or use Anderson()."
        ]
    if not error > _GOOD_ENOUGH:
        return []
    wanted = _GOOD_ENOUGH * (d.sigma_min or 0.0)
    how = f"Ask the forward solver for rtol={wanted:.0e}"
    if wanted < 8 * d.eps:  # a residual that the state's own rounding does not reach
        how = f"No forward solve in {d.dtype} can tell: use a wider dtype, or regularize"
    return [
        f"Do not take the state for the fixed point.{off} Its residual is small, and is divided by sigma_min. {how}."
    ]


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


def _share(value: float, whole: str) -> str:
    if value >= 10:
        return f"{value:.2g} times {whole}" if math.isfinite(value) else f"any multiple of {whole}"
    return f"{value:.0%} of {whole}" if value >= 0.005 else f"{value:.0e} of {whole}"
