"""The picture of a report: eigenvalues around the unit circle, the course of each solver, singular values near zero.

The one place of the core that imports matplotlib; ``Diagnosis.plot()`` imports it when it is called. No state of pyplot
is touched, so a picture can be drawn in a training job as well as in a notebook.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(
        f"Diagnosis.plot: the package {_missing.name!r} is not installed, expected matplotlib. "
        'Install it with: pip install "implicitgrad[plot]"'
    ) from _missing

from implicitgrad.diagnose.page import times

if TYPE_CHECKING:
    from implicitgrad.diagnose.report import Diagnosis, SolverRun

__all__ = ["draw"]

_INK, _QUIET, _RULE, _ALARM, _GOOD = "#1f2933", "#7b8794", "#d9dee4", "#c0392b", "#2f855a"
_FATES = {"DIVERGED": "diverged", "MAX_ITERS": "too slow"}
_TOP = 10.0  # relative residual where the picture ends
_NEAR = 0.05  # an eigenvalue as near to 1 as that makes plain iteration slow and I - J nearly singular
# One colour a solver, so that two reports can be compared; the first is the one that the eye meets first.
_COLOURS = {
    "GMRES": "#1d4ed8",
    "Neumann": "#d97706",
    "BiCGSTAB": "#0d9488",
    "MINRES": "#7c3aed",
    "CG": "#be185d",
    "LSMR": "#64748b",
    "NormalEquations(CG)": "#a16207",
}


def draw(report: Diagnosis, path: Any = None) -> Figure:
    """Return the figure of a report; save it too where ``path`` is given."""
    figure = Figure(figsize=(13.2, 4.7), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    places = ((0.045, 0.225), (0.345, 0.235), (0.785, 0.2))  # the legend stands between the last two
    left, middle, right = (figure.add_axes((x, 0.125, width, 0.63)) for x, width in places)
    sick = report.verdict.startswith("sick")
    figure.text(
        0.045,
        0.945,
        f"A fixed point of {report.size:,} number{'s' if report.size > 1 else ''}",
        size=14,
        weight="bold",
        color=_INK,
        va="center",
    )
    verdict = report.verdict[0].upper() + report.verdict[1:]
    colour = _ALARM if sick else _GOOD if report.verdict == "healthy" else _INK
    figure.text(0.985, 0.945, verdict, size=12, color=colour, ha="right", va="center")
    _eigenvalues(left, report)
    _courses(middle, report)
    _singular_values(right, report)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    return figure


def _dress(axes: Any, title: str, subtitle: str) -> None:
    axes.set_title(title, size=11, color=_INK, loc="left", pad=24)
    axes.text(0, 1.035, subtitle, size=9, color=_QUIET, transform=axes.transAxes, va="bottom")
    axes.tick_params(colors=_QUIET, labelsize=9, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_RULE)


def _eigenvalues(axes: Any, report: Diagnosis) -> None:
    """Ritz values of J in the complex plane; the unit circle, and the point 1, where I - J is singular."""
    values = np.asarray(report.eigenvalues, complex)
    if not np.iscomplexobj(report.eigenvalues) or report.radius > 0:
        values = np.concatenate((values, values.conj()))  # of a pair one may have been kept
    reach = 1.12 * max(1.0, float(np.abs(values).max(initial=0.0)))
    axes.axhline(0, color=_RULE, linewidth=0.8, zorder=0)
    axes.axvline(0, color=_RULE, linewidth=0.8, zorder=0)
    axes.add_patch(Circle((0, 0), 1, facecolor="#f3f6f9", edgecolor=_QUIET, linewidth=1, zorder=0.5))
    axes.plot(1, 0, marker="+", markersize=22, markeredgewidth=1.2, color=_INK, zorder=2)  # under the eigenvalues
    alarming = (np.abs(values) >= 1) | (np.abs(1 - values) < _NEAR)
    for mask, colour, edge in ((~alarming, "#1d4ed8", 0), (alarming, _ALARM, 0.8)):
        style = {"color": colour, "alpha": 0.75 if edge == 0 else 1, "linewidth": edge, "edgecolor": "white"}
        axes.scatter(values[mask].real, values[mask].imag, s=22 if edge == 0 else 40, zorder=3 + edge, **style)
    axes.annotate("1", (1, 0), (8, 8), textcoords="offset points", size=10, color=_INK)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", anchor="W")
    outside = "diverges" if report.radius >= 1 else "converges"
    _dress(axes, "Eigenvalues of J", f"Ritz values; rho(J) = {report.radius:.3g}: plain iteration {outside}")


def _line(run: SolverRun, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the course of a solver up to where it leaves the picture, or to the residual that was recomputed.

    A residual below ``eps``, zero above all, is drawn at ``eps``, so that the axis has an end.
    """
    x, y = np.array([(0.0, 1.0), *run.course]).T
    y = np.nan_to_num(y, nan=_TOP, posinf=_TOP)
    over = np.flatnonzero(y > _TOP)
    if len(over):
        x, y = x[: over[0] + 1], y[: over[0] + 1]
    elif run.status == "CONVERGED":
        y[-1] = run.relative_residual
    return x, np.clip(y, eps, _TOP)


def _courses(axes: Any, report: Diagnosis) -> None:
    """Relative residual of the adjoint equation against products, a line a solver; one that diverges leaves above."""
    handles = []
    lines = [_line(run, report.eps) for run in report.solvers]
    lowest = min([report.rtol, *(float(y.min()) for _, y in lines)])
    order = sorted(
        range(len(lines)), key=lambda i: (report.solvers[i].status != "CONVERGED", report.solvers[i].products)
    )
    for run, (x, y) in ((report.solvers[i], lines[i]) for i in order):
        converged, best = run.status == "CONVERGED", run.name == report.recommended
        colour = _COLOURS.get(run.name, _QUIET)
        label = f"{run.name}  {run.products if converged else _FATES.get(run.status, 'failed')}"
        style = {"color": colour, "alpha": 1 if converged else 0.5, "zorder": 4 if best else 3}
        handles += axes.plot(x, y, linewidth=2.6 if best else 1.4, label=label, **style)
        axes.plot(x[-1], y[-1], marker="o" if converged else "x", markersize=5, **style)
    axes.axhline(report.rtol, color=_QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_yscale("log")
    axes.set(xlim=(0, 1.03 * max((run.products for run in report.solvers), default=1)), ylim=(lowest / 2, _TOP))
    axes.set_xlabel("products with J or its transpose", size=9, color=_QUIET)
    axes.legend(
        handles=handles,
        title="products",
        title_fontproperties={"size": 8.5},
        alignment="left",
        loc="upper left",
        bbox_to_anchor=(1.02, 1.02),
        fontsize=8.5,
        frameon=False,
        handlelength=1.4,
        labelcolor=_INK,
    )
    _dress(axes, "Course of the adjoint solve", f"relative residual, to {report.rtol:.0e}")


def _singular_values(axes: Any, report: Diagnosis) -> None:
    """The Ritz values of the smallest singular values of I - J, on a logarithmic axis; the interval of the smallest."""
    if report.sigma_min is None or not np.isfinite(report.sigma_min):
        why = "not known without a JVP" if report.sigma_min is None else "not finite"
        axes.text(0.5, 0.5, why, size=10, color=_QUIET, ha="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        _dress(axes, "Singular values of I - J", "")
        return
    floor = max(min(report.sigma_min, 1e-1), report.eps) / 4
    smallest = max(report.sigma_min, 2 * floor)  # a zero stands at the foot of the axis
    shown = np.maximum(np.sort(np.asarray(report.singular_values, float)), smallest)[:24]
    index = np.arange(1, len(shown) + 1)
    sick = report.verdict.startswith("sick") and report.sigma_min <= 1e-2
    colour = _ALARM if sick else _GOOD
    axes.axhspan(floor / 1e3, 1e-2, color="#fdf1f0", zorder=0, linewidth=0)
    axes.vlines(index[1:], floor / 1e3, shown[1:], color=_RULE, linewidth=1.2, zorder=1)
    axes.scatter(index[1:], shown[1:], s=20, color="#1d4ed8", alpha=0.75, linewidth=0, zorder=3)
    axes.vlines(1, floor / 1e3, smallest, color=colour, linewidth=2, zorder=3)
    axes.scatter([1], [smallest], s=46, color=colour, zorder=4, linewidth=0)
    axes.text(max(len(shown), 4) + 0.9, 8e-3, "gradients explode", size=8.5, color=_QUIET, ha="right", va="top")
    axes.set_yscale("log")
    top = float(shown.max(initial=smallest))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlim=(0, max(len(shown), 4) + 1), ylim=(min(floor, 4e-3), 3 * max(top, 1.0)))
    axes.set_xlabel("Ritz values, from the smallest", size=9, color=_QUIET)
    _dress(axes, "Singular values of I - J", f"adjoints up to {times(report.sigma_min)}")
