"""Torch maps with known answers, and the torch side of ``assert_implicit_gradient``; imported where torch is wanted."""

try:
    import optree as _optree  # noqa: F401
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(
        f"implicitgrad.testing.layers: the package {_missing.name!r} is not installed, expected torch and optree. "
        'Install them with: pip install "implicitgrad[torch]"'
    ) from _missing

from implicitgrad.testing.layers.assertion import Check
from implicitgrad.testing.layers.maps import TorchMap, torch_map

__all__ = ["Check", "TorchMap", "torch_map"]
