"""Eigenvalues and singular values of operators, and bounds on them: what keeps ``I - J`` invertible, and how far."""

from implicitgrad.spectral.result import SpectralResult
from implicitgrad.spectral.singular import operator_norm, smallest_singular_value

__all__ = ["SpectralResult", "operator_norm", "smallest_singular_value"]
