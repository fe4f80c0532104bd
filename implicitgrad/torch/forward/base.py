"""Finding the fixed point z = f(z): the interface of forward solvers.

A solver says where ``f`` is evaluated next; the books of each sample (what is best, who has ended and how) are kept by
``search.py``, for all solvers alike. States are arrays of any library that has a backend.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from time import perf_counter
from typing import Any

import torch

from implicitgrad.backends import Array
from implicitgrad.solvers.base import refuse_unknown
from implicitgrad.solvers.solution import Solution
from implicitgrad.torch.forward.equation import Equation, Map, equation_of
from implicitgrad.torch.forward.search import Search

__all__ = ["ForwardSolver"]


class ForwardSolver(ABC):
    """Interface of the solvers of ``z = f(z)``. A finished one is a frozen dataclass with these three settings."""

    rtol: float | None
    atol: float
    max_iters: int

    def __new__(cls, *args: Any, **kwargs: Any) -> ForwardSolver:
        """Refuse unknown settings in words."""
        refuse_unknown(cls.__name__, [f.name for f in fields(cls)], kwargs)  # type: ignore[arg-type]
        return super().__new__(cls)

    @property
    def name(self) -> str:
        """The name that reports use."""
        return type(self).__name__

    @abstractmethod
    def iterate(self, search: Search) -> None:
        """Visit points from ``search.start`` on, until no sample is live: ``while search.running``."""

    def solve(
        self, equation: Equation | Map, z0: Array, first: Array | None = None, trajectory: bool = False
    ) -> Solution:
        """Solve ``z = f(z)``.

        Parameters
        ----------
        equation : Equation or callable
            ``f`` on flat states ``(..., n)``, or an ``Equation`` that knows more than the map. Called with
            gradients off.
        z0 : array, shape (..., n)
            Where to start. The bound is not relative to it: a good start only saves calls, ``z*`` costs one.
        first : array, shape (..., n), optional
            ``f(z0)``, if the caller has it: used instead of the first call, which is not counted then.
        trajectory : bool
            Keep the points at which ``f`` was evaluated, ``z0`` first: one state a call. A sample that has ended stands
            still in it.

        Returns
        -------
        Solution
            ``x`` is the best iterate ``z``, ``residual_norm`` is ``norm(f(z) - z)`` as measured there, ``rhs_norm``
            what that is relative to, ``norm(f(z))`` or the equation's scale, and ``bound`` is
            ``max(rtol * rhs_norm, atol)``. ``num_matvecs`` counts calls of ``f``, those that linearize it included;
            ``num_rmatvecs`` counts products with its Jacobian, ``J v`` and ``J^H u`` together. ``history`` holds the
            residual norms at the points of ``trajectory``.

        Raises
        ------
        BackendError, ShapeError, DtypeError, DeviceError
            ``z0`` is no array ``(..., n)`` of floating point, or ``f`` does not return one like it.
        OperatorError
            ``f`` changed its state in place. An exception of ``f`` itself passes through unchanged.
        """
        started = perf_counter()
        settings = self.rtol, self.atol, int(self.max_iters)
        # Out of inference mode too: in it no derivative can be had, and one of zero is what autograd would answer.
        with torch.inference_mode(False), torch.no_grad():
            search = Search(self.name, equation_of(equation), z0, *settings, first, trajectory)
            if search.running:
                self.iterate(search)
            return search.solution(perf_counter() - started)
