"""Solvers of ``A x = b``: one file a method. They see an operator and a right-hand side, never a Jacobian."""

from implicitgrad.solvers.auto import Auto
from implicitgrad.solvers.base import Solver
from implicitgrad.solvers.bicgstab import BiCGSTAB
from implicitgrad.solvers.cg import CG
from implicitgrad.solvers.dense import Dense
from implicitgrad.solvers.gmres import GMRES
from implicitgrad.solvers.lsmr import LSMR
from implicitgrad.solvers.minres import MINRES
from implicitgrad.solvers.neumann import Neumann
from implicitgrad.solvers.normal import NormalEquations
from implicitgrad.solvers.richardson import Richardson
from implicitgrad.solvers.roulette import RussianRoulette
from implicitgrad.solvers.solution import Solution

__all__ = [
    "CG",
    "GMRES",
    "LSMR",
    "MINRES",
    "Auto",
    "BiCGSTAB",
    "Dense",
    "Neumann",
    "NormalEquations",
    "Richardson",
    "RussianRoulette",
    "Solution",
    "Solver",
]
