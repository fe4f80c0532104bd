"""Recurrent back-propagation as the paper has it: run a fixed number of updates, then K steps of one of three adjoints.

For people who come from the paper; ``fixed_point`` finds the fixed point by better means, stops by a residual, and
chooses the adjoint solver itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from implicitgrad.errors import SettingError, SettingTypeError
from implicitgrad.solvers import CG, Neumann, NormalEquations, Richardson, Solver
from implicitgrad.torch.engine.compiled import uncompiled
from implicitgrad.torch.engine.flat import FlatFunction
from implicitgrad.torch.layout import Layout
from implicitgrad.torch.passes import Pass, measured
from implicitgrad.torch.recurrent.unrolled import checked_steps, updated_without_history
from implicitgrad.torch.report import Report

__all__ = ["rbp"]

METHODS = ("neumann", "rbp", "cg")


@uncompiled
def rbp(
    f: Callable[..., Any],
    z0: Any,
    *args: Any,
    steps: int,
    method: str = "neumann",
    truncate: int,
    start: Any = None,
    eta: float = 0.0,
    batch_ndim: int = 0,
    on_failure: Any = "warn",
    report: Report | None = None,
    generator: torch.Generator | None = None,
) -> Any:
    """Return the state after ``steps`` updates with the gradient of RBP, Neumann-RBP or CG-RBP.

    Parameters
    ----------
    f, z0, *args
        As for ``fixed_point``. The gradient for ``z0`` is zero.
    steps : int
        ``T``, updates ``z <- f(z, *args)`` without history; 0 if ``z0`` is the fixed point already.
    method : {"neumann", "rbp", "cg"}
        ``"neumann"``: ``Neumann(max_iters=K, rtol=0)``, the paper's algorithm 2, ``K`` products. ``"rbp"``: ``K`` steps
        of ``z <- J^H z + g`` (Almeida 1987, Pineda 1987; algorithm 1), ``Richardson``; from zero the first step costs
        no product, so they equal Neumann with ``K - 1``. ``"cg"``: ``K`` steps of
        conjugate gradients on the normal equations, ``NormalEquations``, ``K`` products with each of ``J`` and ``J^H``.
    truncate : int
        ``K``, at least 0.
    start : None, "uniform" or tensors like the state
        First guess of the adjoint. None (default) is zero. ``"uniform"`` draws from [0, 1), as the reference code's RBP
        does: its error ``(J^H)^K z_0`` does not scale with the loss, which is why RBP fails at small ``K`` in the
        paper's table A1 (proposition P3).
    eta : float
        Shift of the normal equations, ``method="cg"`` only; 1e-5 in the reference code, where it biases the gradient.
    batch_ndim, on_failure, report
        As for ``implicit_gradient``: the last state is checked to be a fixed point, and the failure policy applies
        where it is none.
    generator : torch.Generator, optional
        On the device of the state, for ``start="uniform"``.

    Returns
    -------
    tensor, or nested tensors
        ``h^T``, of the structure of ``z0``.

    Raises
    ------
    SettingError, SettingTypeError
        Unknown method or start; ``eta`` without ``method="cg"``; no number of steps.
    As ``implicit_gradient``.

    Notes
    -----
    The budget is fixed, so the status of the backward solve is ``TRUNCATED``: the gradient is as good as ``K`` steps
    make it, and ``report.backward.bias`` estimates the rest where the method knows one. The Jacobian is that at
    ``h^T``; the reference code takes it at ``h^{T-1}``, which is the same point once the iteration has arrived.

    Examples
    --------
    >>> import torch, implicitgrad.torch as igt
    >>> w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    >>> z = igt.rbp(lambda z, w: w * z + 1, torch.zeros((), dtype=torch.float64), w, steps=60, truncate=2)
    >>> z.backward()
    >>> w.grad.item()  # z (1 + w + w^2): truncate=3 of tbptt
    3.5
    """
    steps = checked_steps("rbp", "steps", steps, least=0)
    truncate = checked_steps("rbp", "truncate", truncate, least=0)
    adjoint = _adjoint(method, truncate, eta)
    if isinstance(start, str) and start != "uniform":
        raise SettingError(f"rbp: got start={start!r}, expected None, 'uniform' or tensors like the state.")
    z = updated_without_history("rbp", f, z0, args, steps)
    layout = Layout.of("rbp", z, batch_ndim)
    if isinstance(start, str):
        start = torch.rand((*layout.batch, layout.size), generator=generator, **layout.kind)
    this = Pass(FlatFunction("rbp", f, layout, args), adjoint, on_failure, report, adjoint_x0=start)
    return this.run(z, partial(measured, origin=f"the state after {steps} updates"))


def _adjoint(method: str, truncate: int, eta: float) -> Solver:
    """Return the solver of the paper's name, with a budget of exactly ``truncate`` steps."""
    if method not in METHODS:
        raise SettingError(f"rbp: got method={method!r}, expected one of {METHODS}.")
    if method != "cg" and eta != 0:
        raise SettingError(f"rbp: got eta={eta} with method={method!r}, expected it with method='cg' alone.")
    budget: dict[str, Any] = {"max_iters": truncate, "rtol": 0.0, "atol": 0.0}
    if method == "neumann":
        return Neumann(**budget)
    if method == "rbp":
        return Richardson(**budget)
    if isinstance(eta, bool) or not isinstance(eta, int | float):
        raise SettingTypeError(f"rbp: got eta={eta!r}, expected a number, at least 0.")
    return NormalEquations(CG(**budget), shift=float(eta))
