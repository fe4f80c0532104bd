"""Hypothesis strategies. Each builds its premise in, so no example is thrown away.

What hypothesis draws is small: a kind, a size, a seed, a scale. The matrix is then made from the seed, so that an
example shrinks towards a small system, and its ``repr`` says how to build it again.
"""

try:
    import hypothesis as _hypothesis  # noqa: F401
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(
        f"implicitgrad.testing.strategies: the package {_missing.name!r} is not installed, expected hypothesis. "
        'Install it with: pip install "implicitgrad[testing]"'
    ) from _missing

from implicitgrad.testing.strategies.maps import fixed_point_maps, pytrees
from implicitgrad.testing.strategies.spectra import (
    clustered_systems,
    contractions,
    jordan_systems,
    rotated_spectra,
    skew_systems,
)
from implicitgrad.testing.strategies.systems import (
    batches,
    contractive_systems,
    definite_systems,
    problems,
    scaled_systems,
    singular_systems,
    symmetric_systems,
)

__all__ = [
    "batches",
    "clustered_systems",
    "contractions",
    "contractive_systems",
    "definite_systems",
    "fixed_point_maps",
    "jordan_systems",
    "problems",
    "pytrees",
    "rotated_spectra",
    "scaled_systems",
    "singular_systems",
    "skew_systems",
    "symmetric_systems",
]
