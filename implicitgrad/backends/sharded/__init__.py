"""Vectors split over processes: ``Sharded``, the array, and ``BACKEND``, what solvers do on it."""

from implicitgrad.backends.sharded.array import Sharded
from implicitgrad.backends.sharded.verbs import BACKEND, ShardedBackend

__all__ = ["BACKEND", "Sharded", "ShardedBackend"]
