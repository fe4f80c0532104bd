"""Loss terms that keep ``I - J`` invertible, so that the gradient through a fixed point exists and stays small.

``lambda_min`` is the number itself; ``lambda_min_penalty`` keeps it above a margin. Only this folder knows that an
eigenvalue ends up in a loss.
"""

from implicitgrad.torch.regularizers.lambda_min import lambda_min, lambda_min_penalty

__all__ = ["lambda_min", "lambda_min_penalty"]
