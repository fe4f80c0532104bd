"""The recurrent baselines: differentiate the iteration (BPTT and its truncations) or, as the paper does, its end (RBP).

For comparisons, and for maps that are iterated a fixed number of times whether they converge or not. Layers use
``fixed_point``, whose memory does not grow with the number of updates.
"""

from implicitgrad.torch.recurrent.rbp import rbp
from implicitgrad.torch.recurrent.truncation import PoissonTruncation, Truncation, UniformTruncation
from implicitgrad.torch.recurrent.unrolled import artbp, bptt, tbptt

__all__ = ["PoissonTruncation", "Truncation", "UniformTruncation", "artbp", "bptt", "rbp", "tbptt"]
