"""Forward solvers: who finds the fixed point."""

from implicitgrad.torch.forward.anderson import Anderson
from implicitgrad.torch.forward.base import ForwardSolver
from implicitgrad.torch.forward.broyden import Broyden
from implicitgrad.torch.forward.equation import Equation
from implicitgrad.torch.forward.newton import NewtonKrylov
from implicitgrad.torch.forward.picard import Picard

__all__ = ["Anderson", "Broyden", "Equation", "ForwardSolver", "NewtonKrylov", "Picard"]
