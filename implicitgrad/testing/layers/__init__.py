"""Torch maps with known answers, and the torch side of ``assert_implicit_gradient``; imported where torch is wanted."""

from implicitgrad.testing.layers.assertion import Check
from implicitgrad.testing.layers.maps import TorchMap, torch_map

__all__ = ["Check", "TorchMap", "torch_map"]
