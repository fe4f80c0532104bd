"""What one pass of an implicit layer did, forward and backward."""

from __future__ import annotations

from typing import Any

from implicitgrad.solvers import Solution
from implicitgrad.status import Status

__all__ = ["Report"]


class Report:
    """Filled by ``fixed_point(..., report=report)``: the forward part at once, the backward part by ``backward()``.

    Parameters
    ----------
    trajectory : bool
        Keep the points at which the forward solver has called the map; memory grows with their number.

    Attributes
    ----------
    forward : Solution or None
        The fixed point found: ``x`` is the flat state ``(..., n)``, ``residual_norm`` is ``norm(f(z) - z)``,
        ``rhs_norm`` is ``norm(f(z))`` and ``num_matvecs`` counts calls of ``f``.
    backward : Solution or None
        The adjoint of the last backward pass: ``num_matvecs`` counts VJPs, ``num_rmatvecs`` JVPs; ``seconds`` is the
        time that its solve took. In forward mode, the tangent.
    trajectory : list
        The states at which the forward solver has called the map, in their structure, with the axes of a ``vmap`` in
        front; empty unless asked for.

    Notes
    -----
    Tensors in it are detached. One report serves one call at a time: the next call overwrites it.

    Examples
    --------
    >>> import torch, implicitgrad.torch as igt
    >>> report, x = igt.Report(), torch.ones(3, requires_grad=True)
    >>> igt.fixed_point(lambda z, x: torch.tanh(0.5 * z + x), torch.zeros(3), x, report=report).sum().backward()
    >>> report.forward.status.name, report.backward.status.name, report.status.name
    ('CONVERGED', 'CONVERGED', 'CONVERGED')
    """

    def __init__(self, *, trajectory: bool = False) -> None:
        self.keeps_trajectory = trajectory
        self.forward: Solution | None = None
        self.backward: Solution | None = None
        self.trajectory: list[Any] = []

    @property
    def status(self) -> Status | None:
        """The worst of the pass: a bad forward status makes it ``FORWARD_NOT_CONVERGED``; None before any pass."""
        if self.forward is not None and not self.forward.is_good:
            return Status.FORWARD_NOT_CONVERGED
        last = self.backward if self.backward is not None else self.forward
        if last is None:
            return None
        if isinstance(last.status, Status):
            return last.status
        statuses: list[Status] = sorted(last.status.ravel(), key=lambda s: (s.is_good, s is Status.CONVERGED))
        return statuses[0] if statuses else Status.CONVERGED

    def __repr__(self) -> str:
        """Return both messages."""
        parts = (("forward", self.forward), ("backward", self.backward))
        return "\n".join(f"{name}: {'not run' if part is None else part.message}" for name, part in parts)
