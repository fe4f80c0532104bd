"""Gradients through fixed points: solve ``(I - J)^H z = g`` with any vector-Jacobian product, and know how well.

``import implicitgrad as ig`` loads NumPy and nothing heavier; ``implicitgrad.torch``, ``implicitgrad.scipy`` and
``implicitgrad.testing`` are imported by whoever wants them.
"""

from implicitgrad.adjoint import adjoint_solve, solve, tangent_solve
from implicitgrad.diagnose import Diagnosis, diagnose
from implicitgrad.errors import (
    BackendError,
    ConvergenceWarning,
    DeviceError,
    DtypeError,
    ImplicitGradError,
    MissingProductError,
    NotConvergedError,
    OperatorError,
    SettingError,
    SettingTypeError,
    ShapeError,
)
from implicitgrad.operators import DenseOperator, LinearOperator, VJPOperator, check_operator, identity_minus
from implicitgrad.solvers import (
    CG,
    GMRES,
    LSMR,
    MINRES,
    Auto,
    BiCGSTAB,
    Dense,
    Neumann,
    NormalEquations,
    Richardson,
    RussianRoulette,
    Solution,
    Solver,
)
from implicitgrad.spectral import (
    Estimate,
    GradientError,
    SpectralResult,
    gershgorin_lower_bound,
    gradient_error_bound,
    largest_eigenvalue,
    neumann_error_bound,
    neumann_terms,
    operator_norm,
    smallest_eigenvalue,
    smallest_singular_value,
    spectral_radius,
    squared_frobenius_norm,
    trace,
)
from implicitgrad.status import Status

__version__ = "0.1.0.dev0"

__all__ = [
    "CG",
    "GMRES",
    "LSMR",
    "MINRES",
    "Auto",
    "BackendError",
    "BiCGSTAB",
    "ConvergenceWarning",
    "Dense",
    "DenseOperator",
    "DeviceError",
    "Diagnosis",
    "DtypeError",
    "Estimate",
    "GradientError",
    "ImplicitGradError",
    "LinearOperator",
    "MissingProductError",
    "Neumann",
    "NormalEquations",
    "NotConvergedError",
    "OperatorError",
    "Richardson",
    "RussianRoulette",
    "SettingError",
    "SettingTypeError",
    "ShapeError",
    "Solution",
    "Solver",
    "SpectralResult",
    "Status",
    "VJPOperator",
    "adjoint_solve",
    "check_operator",
    "diagnose",
    "gershgorin_lower_bound",
    "gradient_error_bound",
    "identity_minus",
    "largest_eigenvalue",
    "neumann_error_bound",
    "neumann_terms",
    "operator_norm",
    "smallest_eigenvalue",
    "smallest_singular_value",
    "solve",
    "spectral_radius",
    "squared_frobenius_norm",
    "tangent_solve",
    "trace",
]
