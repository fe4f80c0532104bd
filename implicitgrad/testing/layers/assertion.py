"""``assert_implicit_gradient`` on torch layers: the steps of the check, in order; each has its words where it fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from implicitgrad.errors import SettingError, SettingTypeError
from implicitgrad.testing.layers.comparison import Comparison
from implicitgrad.testing.layers.hessian import assert_second_derivatives
from implicitgrad.testing.layers.linearization import Linearization
from implicitgrad.testing.layers.premises import assert_derivative_of_map, assert_deterministic, assert_fixed
from implicitgrad.testing.layers.subject import NAME, Host, Subject, pulled, real_vector
from implicitgrad.torch import fixed_point

__all__ = ["Check"]

_DENSE = 512  # numbers of state up to which J is formed: as many VJPs, and a solve of 0.1 s
_SCALE = 2.0**-23  # 1.2e-7: a mean over a batch of pixels, a loss scaler undone; exact in every format


class Check:
    """One call of ``assert_implicit_gradient``, whose docstring describes the parameters.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([0.3], dtype=torch.float64)
    >>> Check(lambda z, x: torch.cos(0.5 * z + x), torch.zeros_like(x), (x,), None, 2, None, "auto", 0).run()
    """

    def __init__(
        self,
        f: Callable[..., Any],
        z0: Any,
        args: tuple[Any, ...],
        layer: Callable[..., Any] | None,
        order: int,
        rtol: float | None,
        method: str,
        seed: int,
    ) -> None:
        for name, value in (("f", f), ("layer", layer)):
            if not callable(value) and not (name == "layer" and value is None):
                raise SettingTypeError(f"{NAME}: got {name} of type {type(value).__qualname__}, expected a callable.")
        if method not in ("auto", "dense", "differences"):
            raise SettingError(f"{NAME}: got method={method!r}, expected 'auto', 'dense' or 'differences'.")
        if order not in (1, 2):
            raise SettingError(f"{NAME}: got order={order!r}, expected 1 or 2.")
        if rtol is not None and not (isinstance(rtol, int | float) and 0 < rtol < 1):
            raise SettingError(f"{NAME}: got rtol={rtol!r}, expected a number between 0 and 1, or None.")
        self.subject = Subject(f, z0, args)
        if self.subject.eps > 1e-5:
            raise SettingError(
                f"{NAME}: got a state of {self.subject.layout.dtype}, expected float32, float64 or complex: half "
                "precision tells no wrong gradient from a rounded one. Check the map in float64."
            )
        self.layer = partial(fixed_point, on_failure="return") if layer is None else layer
        self.order, self.seed = order, seed
        self.rtol = self.subject.eps**0.5 if rtol is None else float(rtol)
        self.dense = method == "dense" or (method == "auto" and self.subject.start.numel() <= _DENSE)

    def run(self) -> None:
        """Make all the checks, and leave buffers as they were."""
        with torch.enable_grad():
            self.subject.look(self.subject.start)
            try:
                self._steps()
            finally:
                self.subject.restore()

    def _steps(self) -> None:
        assert_deterministic(self.subject)
        flat, start = self.subject.solve(self.layer)
        self.subject.look(flat)
        at = Linearization(self.subject, flat, self.dense)
        assert_fixed(at, self.rtol)
        assert_derivative_of_map(at, self.seed)
        g = self.subject.cotangent(self.seed)
        *ours, of_start = self._gradients(flat, start, g)
        comparison = Comparison(at, g, self.rtol + at.residual, self.seed)
        comparison.assert_right(ours)
        self._assert_start(comparison, real_vector(of_start))
        again, start = self.subject.solve(self.layer)
        *small, _ = self._gradients(again, start, g * _SCALE)
        comparison.assert_the_same_when_scaled([t / _SCALE for t in small], ours)
        if self.order == 2:
            assert_second_derivatives(comparison, self.layer)

    def _gradients(self, flat: torch.Tensor, start: torch.Tensor, g: torch.Tensor) -> list[torch.Tensor]:
        if not flat.requires_grad and self.subject.tensors:
            raise AssertionError(
                f"{NAME}: the layer's output has no graph: nothing gets a gradient. Look for no_grad() or detach() "
                "around the solve, with nothing that re-attaches its result."
            )
        return [t.detach() for t in pulled(flat, [*self.subject.tensors, start], g)]

    def _assert_start(self, comparison: Comparison, gradient: Host) -> None:
        size, allowed = float(np.linalg.norm(gradient)), 4.0 * comparison.accuracy * comparison.amplified
        if not size <= allowed:
            raise AssertionError(
                f"{NAME}: z0 gets a gradient of norm {size:.1e} for a cotangent of norm 1, expected 0 within "
                f"{allowed:.1e}: a fixed point does not depend on where the search began. The iteration is part of "
                "the graph: too few unrolled steps, or a solve that was not detached."
            )
