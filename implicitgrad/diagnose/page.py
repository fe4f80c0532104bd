"""The page of a report: its numbers in rows, then what to do."""

from __future__ import annotations

import math
from textwrap import wrap
from typing import TYPE_CHECKING

from implicitgrad.diagnose.trust import converges, impossible_departure

if TYPE_CHECKING:
    from implicitgrad.diagnose.report import Diagnosis

__all__ = ["page", "times"]


def page(d: Diagnosis) -> list[str]:
    """Return the lines of the page."""
    systems = "" if d.systems == 1 else f", the worst of {d.systems} systems"
    noun = "numbers" if d.size > 1 else "number"
    lines = [f"Fixed point of {d.size} {noun}, {d.dtype}{systems}: {d.verdict}", ""]

    def row(label: str, value: str, note: str = "") -> None:
        lines.append(f"  {label:<24}{value:<13}{note}".rstrip())

    if d.coupled:
        row("coupling", f"{d.coupling:.1e}", "of a row's product with the other rows, relative")
        lines.append(f"  {'':<24}All numbers below are of the {d.coupled} rows as one system.")
    if d.fixed_point_residual is not None:
        row("norm(F(h) - h)", f"{d.fixed_point_residual:.1e}", "relative to norm(F(h))")
    row("rho(J)", f"{d.radius:.4g}", _of_iteration(d))
    bounded = d.norm_upper is not None and math.isfinite(d.norm_upper)
    if d.norm is not None:
        kind = {True: "a contraction", False: "no contraction", None: "perhaps a contraction"}[d.contraction]
        row("norm(J)", f"{d.norm:.4g}", kind + (f"; at most {d.norm_upper:.4g}" if bounded else ""))
    if d.sigma_min is not None and d.sigma_min_interval is not None:
        row("sigma_min(I - J)", f"{d.sigma_min:.4g}", f"adjoints up to {times(d.sigma_min)} their cotangent")
        low, high = d.sigma_min_interval
        sure = "" if d.sigma_min_converged else "; the search did not converge"
        row("  residual", f"{d.sigma_min_residual:.1e}", f"some singular value is that near{sure}")
        row("  lies in", f"[{low:.3g}, {high:.3g}]")
        lines.append(f"  {'  lower end':<24}{d.sigma_min_condition}")
    if d.departure is not None:
        kind = "normal" if d.departure < 0.05 else "far from normal" if d.departure > 0.5 else "not normal"
        row(
            "departure",
            f"{d.departure:.2g}",
            "above 1, which no matrix has" if impossible_departure(d) else f"{kind} (0 to 1)",
        )
    lines += ["", f"  Solver, to a relative residual of {d.rtol:.0e}     products   residual   status"]
    for run in sorted(d.solvers, key=lambda run: (run.status != "CONVERGED", run.products)):
        mark = "*" if run.name == d.recommended and run.status == "CONVERGED" else " "
        lines.append(f"  {mark} {run.name:<44}{run.products:>6}   {run.relative_residual:8.1e}   {run.status}")
    lines += ["", f"  {'Neumann series of K products':<31}" + "".join(f"{f'K = {n.products}':>11}" for n in d.neumann)]
    lines.append(f"  {'  error, measured':<31}" + "".join(f"{_number(n.error):>11}" for n in d.neumann))
    if d.norm is not None:
        base = f"{d.norm_upper:.4g}" if bounded else "norm(J)"
        lines.append(
            f"  {f'  error, at most {base}^(K+1)':<31}"
            + "".join(f"{f'{n.bound:.1e}' if bounded else 'unknown':>11}" for n in d.neumann)
        )
    lines += ["", "  What to do"]
    for sentence in d.advice:
        lines += _wrapped(sentence)
    return lines


def _of_iteration(d: Diagnosis) -> str:
    """Return whether plain iteration converges, and who says so."""
    if d.radius_converged:
        return "iteration converges" if d.radius < 1 else "iteration diverges"
    witness = converges(d)
    what = "perhaps converges" if d.radius < 1 else "perhaps diverges"
    return f"iteration {f'converges, {witness}' if witness else what}; the search did not converge"


def _wrapped(sentence: str, width: int = 96) -> list[str]:
    return wrap(sentence, width, initial_indent="  - ", subsequent_indent="    ")


def times(sigma: float) -> str:
    """Return by how much an adjoint may be larger than its cotangent, in words."""
    if sigma <= 0:
        return "any number of times"
    return (
        f"{1 / sigma:.3g} times"
        if sigma > 1e-2
        else f"{1 / sigma:,.0f} times"
        if sigma > 1e-7
        else f"{1 / sigma:.0e} times"
    )


def _number(value: float | None) -> str:
    if value is None:
        return "unknown"
    return "diverges" if value > 1e3 else f"{value:.1e}"
