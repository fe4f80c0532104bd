"""Eigenvalues and singular values of operators, and bounds on them: what keeps ``I - J`` invertible, and how far."""

from implicitgrad.spectral.bounds import GradientError, gradient_error_bound, neumann_error_bound, neumann_terms
from implicitgrad.spectral.extremal import largest_eigenvalue, smallest_eigenvalue
from implicitgrad.spectral.gershgorin import gershgorin_lower_bound
from implicitgrad.spectral.radius import spectral_radius
from implicitgrad.spectral.result import SpectralResult
from implicitgrad.spectral.singular import operator_norm, smallest_singular_value
from implicitgrad.spectral.trace import Estimate, squared_frobenius_norm, trace

__all__ = [
    "Estimate",
    "GradientError",
    "SpectralResult",
    "gershgorin_lower_bound",
    "gradient_error_bound",
    "largest_eigenvalue",
    "neumann_error_bound",
    "neumann_terms",
    "operator_norm",
    "smallest_eigenvalue",
    "smallest_singular_value",
    "spectral_radius",
    "squared_frobenius_norm",
    "trace",
]
