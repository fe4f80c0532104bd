"""Loss terms that keep ``I - J`` invertible, so that the gradient through a fixed point exists and stays small.

``lambda_min`` is the number itself; ``lambda_min_penalty`` keeps it above a margin. Only this folder knows that an
eigenvalue ends up in a loss.
"""

from implicitgrad.torch.regularizers.gershgorin import gershgorin_penalty
from implicitgrad.torch.regularizers.lambda_min import lambda_min, lambda_min_penalty
from implicitgrad.torch.regularizers.norms import jacobian_norm_penalty
from implicitgrad.torch.regularizers.radius import spectral_radius_penalty

__all__ = ["gershgorin_penalty", "jacobian_norm_penalty", "lambda_min", "lambda_min_penalty", "spectral_radius_penalty"]
