"""``FixedPoint``: an implicit layer as an ``nn.Module``."""

from __future__ import annotations

from typing import Any

import torch

from implicitgrad.errors import SettingTypeError
from implicitgrad.solvers import Solver
from implicitgrad.torch.fixed_point import fixed_point
from implicitgrad.torch.forward.base import ForwardSolver
from implicitgrad.torch.report import Report

__all__ = ["FixedPoint"]


class FixedPoint(torch.nn.Module):
    """The fixed point ``z = module(z, *args)`` as a layer: ``layer(z0, *args)``.

    Parameters
    ----------
    module : torch.nn.Module
        The cell: ``module(z, *args)`` returns a state like ``z``. Its parameters are the layer's, under ``"module."``.
    solver, adjoint, batch_ndim, on_failure
        As for ``fixed_point``; plain attributes, which may be changed between calls.
    trajectory : bool
        Keep the points at which the forward solver has called the cell, in ``report.trajectory``.

    Attributes
    ----------
    report : Report or None
        Of the last call: its forward solve, and the backward solve once it has run. Not part of the ``state_dict``.

    Raises
    ------
    SettingTypeError
        ``module`` is no ``nn.Module``; for a function write ``fixed_point``.

    Notes
    -----
    The layer has no hooks and keeps nothing between calls but the report, which holds the last state and adjoint,
    without history. It may be used several times in one graph, nested, copied, pickled, compiled around, and from
    several threads (of which the last to call leaves its report).

    Examples
    --------
    >>> import torch, implicitgrad.torch as igt
    >>> class Cell(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.linear = torch.nn.Linear(4, 4)
    ...     def forward(self, z, x):
    ...         return torch.tanh(0.3 * self.linear(z) + x)
    >>> layer = igt.FixedPoint(Cell(), batch_ndim=1)
    >>> z = layer(torch.zeros(8, 4), torch.randn(8, 4))
    >>> z.square().mean().backward()
    >>> bool(layer.report.backward.converged.all()), sorted(layer.state_dict())
    (True, ['module.linear.bias', 'module.linear.weight'])
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        solver: ForwardSolver | None = None,
        adjoint: Solver | str | None = None,
        batch_ndim: int = 0,
        on_failure: Any = "warn",
        trajectory: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(module, torch.nn.Module):
            raise SettingTypeError(
                f"FixedPoint: got a module of type {type(module).__qualname__}, expected a torch.nn.Module. For a "
                "function write fixed_point(f, z0, *args)."
            )
        self.module = module
        self.solver, self.adjoint, self.batch_ndim, self.on_failure = solver, adjoint, batch_ndim, on_failure
        self.trajectory = trajectory
        self.report: Report | None = None

    def forward(self, z0: Any, *args: Any, adjoint_x0: Any = None) -> Any:
        """Return the fixed point of ``module(., *args)`` from the start ``z0``, in the structure of ``z0``.

        ``adjoint_x0`` is a first guess of the adjoint, such as ``report.backward.x`` of the last pass of this batch.
        """
        self.report = report = Report(trajectory=self.trajectory)
        return fixed_point(
            self.module,
            z0,
            *args,
            solver=self.solver,
            adjoint=self.adjoint,
            batch_ndim=self.batch_ndim,
            on_failure=self.on_failure,
            report=report,
            adjoint_x0=adjoint_x0,
        )

    def extra_repr(self) -> str:
        """Return the settings that differ from the defaults."""
        defaults = {"solver": None, "adjoint": None, "batch_ndim": 0, "on_failure": "warn", "trajectory": False}
        return ", ".join(f"{k}={getattr(self, k)!r}" for k, v in defaults.items() if getattr(self, k) != v)
