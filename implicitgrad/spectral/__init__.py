"""Eigenvalues and singular values of operators, and bounds on them: what keeps ``I - J`` invertible, and how far."""

from implicitgrad.spectral.extremal import largest_eigenvalue, smallest_eigenvalue
from implicitgrad.spectral.radius import spectral_radius
from implicitgrad.spectral.result import SpectralResult
from implicitgrad.spectral.singular import operator_norm, smallest_singular_value

__all__ = [
    "SpectralResult",
    "largest_eigenvalue",
    "operator_norm",
    "smallest_eigenvalue",
    "smallest_singular_value",
    "spectral_radius",
]
