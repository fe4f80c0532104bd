"""implicitgrad for PyTorch: ``import implicitgrad.torch as igt``.

``fixed_point``, ``root``, ``argmin`` and the module ``FixedPoint`` solve an equation and differentiate through it
implicitly; a ``Report`` tells what a pass did, forward and backward, ``diagnose`` what is wrong with a fixed point, and
``lambda_min_penalty`` keeps it from going wrong. ``vjp_operator`` hands the Jacobian of any torch map to the solvers.
"""

try:
    import optree as _optree  # noqa: F401
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(
        f"implicitgrad.torch: the package {_missing.name!r} is not installed, expected torch and optree. "
        'Install them with: pip install "implicitgrad[torch]"'
    ) from _missing

from implicitgrad.backends.sharded import Sharded
from implicitgrad.torch.diagnose import diagnose
from implicitgrad.torch.fixed_point import fixed_point, implicit_gradient
from implicitgrad.torch.forward import Anderson, Broyden, Equation, ForwardSolver, NewtonKrylov, Picard
from implicitgrad.torch.module import FixedPoint
from implicitgrad.torch.operators import vjp_operator
from implicitgrad.torch.recurrent import PoissonTruncation, Truncation, UniformTruncation, artbp, bptt, rbp, tbptt
from implicitgrad.torch.regularizers import (
    gershgorin_penalty,
    jacobian_norm_penalty,
    lambda_min,
    lambda_min_penalty,
    spectral_radius_penalty,
)
from implicitgrad.torch.report import Report
from implicitgrad.torch.root import argmin, root

__all__ = [
    "Anderson",
    "Broyden",
    "Equation",
    "FixedPoint",
    "ForwardSolver",
    "NewtonKrylov",
    "Picard",
    "PoissonTruncation",
    "Report",
    "Sharded",
    "Truncation",
    "UniformTruncation",
    "argmin",
    "artbp",
    "bptt",
    "diagnose",
    "fixed_point",
    "gershgorin_penalty",
    "implicit_gradient",
    "jacobian_norm_penalty",
    "lambda_min",
    "lambda_min_penalty",
    "rbp",
    "root",
    "spectral_radius_penalty",
    "tbptt",
    "vjp_operator",
]
