"""The one exception of the data loaders: what was got, what was expected, what to do."""

from __future__ import annotations

from implicitgrad.errors import ImplicitGradError


class DataError(ImplicitGradError, ValueError):
    """A data set has an unknown name, cannot be found, or its files are not what they claim to be."""
