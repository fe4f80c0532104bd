"""The spectral radius of the Jacobian as a loss term: ``max(0, rho(J) - (1 - margin))``.

``rho(J) < 1`` is what plain iteration and the Neumann series need; ``lambda_min`` is what the gradient needs. For the
dominant eigenvalue ``mu`` with right and left eigenvectors ``x`` and ``y``, ``J x = mu x`` and ``y^H J = mu y^H``,

    d rho = Re( conj(mu) / abs(mu)  *  y^H dJ x / (y^H x) )

(Greenbaum, Li & Overton 2020, SIAM Rev. 62, thm. 1). Complex pairs come from real vectors two by two.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from implicitgrad.errors import ConvergenceWarning, NotConvergedError, SettingTypeError
from implicitgrad.operators.algebra import shifted
from implicitgrad.spectral import SpectralResult, spectral_radius
from implicitgrad.status import Status
from implicitgrad.torch.regularizers.first_order import first_order_only
from implicitgrad.torch.regularizers.linearized import Linearized, MapAt
from implicitgrad.torch.regularizers.search import check_number

__all__ = ["spectral_radius_penalty"]


def spectral_radius_penalty(
    f: Callable[..., Any],
    z: Any,
    *args: Any,
    margin: float = 0.0,
    batch_ndim: int = 0,
    rtol: float | None = None,
    max_iters: int | None = None,
    memory: int | None = None,
    seed: int = 0,
    on_failure: str = "warn",
    return_result: bool = False,
) -> Any:
    """Return ``max(0, rho(J) - (1 - margin))``, ``J = df/dz`` at ``z``, one number a system.

    Parameters
    ----------
    f, z, *args
        As for ``lambda_min``; gradients flow to ``args``, to what ``f`` captures, and to ``z``.
    margin : float
        ``rho(J) <= 1 - margin`` is wanted. 0 (default): that plain iteration converges at all.
    batch_ndim : int
        How many leading axes count independent systems.
    rtol, max_iters, memory
        Of ``spectral_radius``, which is run for ``J`` and for ``J^H``.
    seed : int
        Of the random starts.
    on_failure : {"warn", "raise", "return"}
        What to do where the eigenvalue or one of its vectors has not converged, or where the two searches met different
        eigenvalues of one modulus; the gradient of such a system is 0.
    return_result : bool
        Return ``(penalty, result)``; the ``SpectralResult`` has ``eigenvalue``, status and counts.

    Returns
    -------
    tensor, shape (...)
        Real.

    Raises
    ------
    NotConvergedError, SettingError
        By ``on_failure``; unknown settings; in a backward pass with ``create_graph=True``.

    Notes
    -----
    ``rho`` is not Lipschitz where the dominant eigenvalue is defective: its slope grows without bound on the way there,
    as ``1 / abs(y^H x)``. ``jacobian_norm_penalty`` and ``lambda_min_penalty`` have no such place. A small ``rho`` does
    not bound the adjoint of a non-normal ``J``; ``lambda_min`` does.

    Examples
    --------
    >>> import torch
    >>> import implicitgrad.torch as igt
    >>> r = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    >>> turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    >>> penalty = igt.spectral_radius_penalty(lambda z: r * turn @ z, torch.zeros(2, dtype=torch.float64))
    >>> penalty.backward()
    >>> round(penalty.item(), 9), round(r.grad.item(), 9)  # the eigenvalues are 1.2 i and -1.2 i
    (0.2, 1.0)
    """
    name = "spectral_radius_penalty"
    check_number(name, "margin", margin)
    if on_failure not in ("warn", "raise", "return"):
        raise SettingTypeError(f"{name}: got on_failure={on_failure!r}, expected 'warn', 'raise' or 'return'.")
    linearized = MapAt(name, f, z, args, batch_ndim).linearized()
    settings = {"rtol": rtol, "max_iters": max_iters, "memory": memory, "seed": seed, "on_failure": "return"}
    pair = _Pair.of(linearized, settings)
    result = pair.result
    good = np.asarray(result.converged)
    if not good.all() and on_failure != "return":
        message = f"{name}: {result.message}"
        if on_failure == "raise":
            raise NotConvergedError(message, result)
        warnings.warn(f"{message} Its gradient is taken as 0.", ConvergenceWarning, stacklevel=2)
    moved = pair.first_order(linearized)
    rho = torch.as_tensor(result.value, dtype=moved.dtype, device=moved.device)
    value = first_order_only(name, torch.relu(rho + (moved - moved.detach()) - (1 - margin)))
    return (value, result) if return_result else value


class _Pair:
    """The dominant eigenvalue with both of its vectors; complex numbers on the host, real vectors in torch."""

    def __init__(self, right: SpectralResult, left: SpectralResult) -> None:
        mu, nu = (np.asarray(r.eigenvalue, dtype=complex) for r in (right, left))
        real = right.vector_imag is not None
        # The search for J^H finds conj(mu), or for a real matrix mu just as well: its vector is then conjugated.
        self._conjugate = real & (np.abs(nu - mu) < np.abs(nu - mu.conj()))
        nu = np.where(self._conjugate, nu.conj(), nu)
        tolerance = torch.finfo(right.vector.dtype).eps ** 0.25 * np.abs(mu)
        self.matched = np.abs(nu - mu.conj()) <= tolerance
        usable = np.asarray(right.converged) & np.asarray(left.converged) & self.matched & (mu != 0)
        status = np.array(right.status, dtype=object)
        status[np.asarray(right.converged) & (mu != 0) & ~usable] = Status.STAGNATED
        self.result = replace(
            right,
            status=status.item() if status.shape == () else status,
            num_matvecs=right.num_matvecs + left.num_rmatvecs,
            num_rmatvecs=right.num_rmatvecs + left.num_matvecs,
        )
        self._mu, self._usable = mu, usable
        self._x, self._y = _vector(right), _vector(left)
        flip = torch.as_tensor(self._conjugate, device=self._y.device).unsqueeze(-1)
        self._y = torch.where(flip, self._y.conj(), self._y)

    @classmethod
    def of(cls, linearized: Linearized, settings: dict[str, Any]) -> _Pair:
        """Search for both vectors; a second time for the left one where it belongs to another eigenvalue."""
        like = linearized.point.detach()
        J = linearized.operator()
        right = spectral_radius(J, like=like, **settings)
        pair = cls(right, spectral_radius(J.H, like=like, **settings))
        if pair.matched.all() or like.ndim > 1:
            return pair
        # Two of one modulus, such as 0.9 and -0.9: a shift towards the one that was found makes it the largest alone.
        shift = 0.5 * right.value * (1.0 if right.eigenvalue.real >= 0 else -1.0)
        other = spectral_radius(shifted(shift, 1.0, J.H), like=like, **settings)
        return cls(right, replace(other, eigenvalue=other.eigenvalue - shift))

    def first_order(self, linearized: Linearized) -> torch.Tensor:
        """Return ``Re(conj(mu) / abs(mu) * y^H J x / (y^H x))``, whose derivative at fixed vectors is that of rho."""
        x, y = self._x, self._y
        overlap = (y.conj() * x).sum(dim=-1)
        mu = torch.as_tensor(self._mu, device=x.device).to(x.dtype)
        usable = torch.as_tensor(self._usable, device=x.device)
        weight = torch.where(usable, mu.conj() / (mu.abs() * overlap), 0.0)  # no NaN is passed on: it is not chosen
        y = weight.conj().unsqueeze(-1) * y
        if linearized.point.is_complex():
            return (linearized.vjp(y).conj() * x).sum(dim=-1).real
        parts = [(linearized.vjp(y.real.contiguous()), x.real)]
        if bool(x.imag.any()):
            parts.append((linearized.vjp(y.imag.contiguous()), x.imag))
        total: torch.Tensor = sum((product * part).sum(dim=-1) for product, part in parts)  # type: ignore[assignment]
        return total


def _vector(result: SpectralResult) -> torch.Tensor:
    vector: torch.Tensor = result.vector
    return vector if result.vector_imag is None else torch.complex(vector, result.vector_imag)
