"""SciPy: operators in both directions, and its iterative solvers as one of ours.

Used by whoever writes ``import implicitgrad.scipy as igs``: ``as_linear_operator`` hands a Jacobian to ``eigsh`` and
its like, ``from_linear_operator`` takes a sparse matrix or a SciPy operator, ``ScipySolver`` solves with SciPy.
"""

try:
    import scipy as _scipy  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "implicitgrad.scipy: SciPy is not installed. Install it with pip install 'implicitgrad[scipy]'.",
        name=error.name,
    ) from error

from implicitgrad.scipy.operators import as_linear_operator, from_linear_operator
from implicitgrad.scipy.solver import ScipySolver

__all__ = ["ScipySolver", "as_linear_operator", "from_linear_operator"]
