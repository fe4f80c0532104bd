"""What every spectral routine returns, and what it does where the answer is not what was asked for.

Used by ``extremal.py``, ``singular.py`` and ``radius.py``, and by whoever reads their results: the regularizers, the
report on a fixed point.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.errors import ConvergenceWarning, NotConvergedError, SettingTypeError
from implicitgrad.status import Status

__all__ = ["SpectralResult", "check_policy", "deliver"]


@dataclass(frozen=True, repr=False)
class SpectralResult:
    """An extreme eigenvalue or singular value and what is known about its error.

    For a batch ``(..., n)``, the quantities marked (*) are NumPy arrays ``(...)``. Numbers are in the unit of ``A``.

    Attributes
    ----------
    value : float (*)
        The value, recomputed from the returned vector: ``norm(A v)`` or ``v^H A v`` of the unit vector ``v``; for
        ``spectral_radius`` the modulus of the dominant eigenvalue.
    vector : array, shape (..., n)
        Unit eigenvector or right singular vector ``v``, in the library, dtype and device of the operator. Zero where
        none could be had (a product with NaN). For ``spectral_radius`` of a real operator, the dominant eigenvector's
        real part.
    left_vector : array, shape (..., m), or None
        Unit left singular vector ``u``; None for eigenvalues.
    upper, lower : float (*)
        ``lower <= true value <= upper``. On the side of the Ritz value (``upper`` for a smallest value, ``lower`` for
        a largest one) the bound holds always, the rounding of one product included; on the other one under
        ``condition``, and it is infinite where nothing is known.
    condition : str
        Under what the bound on the other side holds: ``"unconditional ..."``, ``"with probability p ..."``,
        ``"given a gap ..."`` or ``"none ..."``. For a batch, an array ``(...)`` of such sentences.
    residual_interval : tuple of float (*)
        ``(lo, hi)``: *some* eigenvalue or singular value of ``A`` lies in it, always. Whether it is the extreme one no
        residual can say.
    residual_norm : float (*)
        ``norm(A v - value v)``, or ``norm(A^H u - value v)`` with ``A v = value u``, recomputed.
    gap : float or None (*)
        Distance to the nearest other Ritz value, an estimate of the gap in the spectrum; None or NaN where there was
        only one.
    ritz_values : ndarray, shape (..., k)
        All Ritz values of the last projected problem, ascending (complex ones by modulus): what to plot.
    status : Status (*)
        ``CONVERGED``: the recomputed residual, with the gap, puts the value within ``rtol``, or within the rounding of
        one product where that is more.
    num_iters : int (*)
        Steps of the factorization.
    num_matvecs, num_rmatvecs : int
        Calls of ``A x`` and of ``A^H y``, the final check included; one call serves the whole batch.
    name : str
        The function that made it.
    eigenvalue : complex (*)
        Of ``spectral_radius``: the dominant eigenvalue itself. None elsewhere.
    vector_imag : array, shape (..., n), or None
        Of ``spectral_radius`` and a real operator: the imaginary part of the eigenvector.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> result = ig.smallest_singular_value(ig.DenseOperator(np.diag([3.0, 0.5, 2.0])))
    >>> round(float(result), 12), result.status.name
    (0.5, 'CONVERGED')
    """

    value: Any
    vector: Array
    left_vector: Array | None
    upper: Any
    lower: Any
    condition: Any
    residual_interval: tuple[Any, Any]
    residual_norm: Any
    gap: Any
    ritz_values: Any
    status: Any
    num_iters: Any
    num_matvecs: int
    num_rmatvecs: int
    name: str = ""
    eigenvalue: Any = None
    vector_imag: Array | None = None

    @property
    def converged(self) -> Any:
        """Whether the status is ``CONVERGED``: a ``bool``, or an array of them."""
        if isinstance(self.status, Status):
            return self.status is Status.CONVERGED
        return np.asarray(self.status == Status.CONVERGED, dtype=bool)

    @property
    def is_good(self) -> bool:
        """Whether every system converged."""
        return bool(np.all(self.converged))

    @property
    def message(self) -> str:
        """One paragraph: what was found, to within what, after how many products, and what to try."""
        products = f"{self.num_matvecs} matvecs"
        if self.num_rmatvecs:
            products += f" and {self.num_rmatvecs} rmatvecs"
        if isinstance(self.status, Status):
            return (
                f"{self.name} stopped after {products} at {self.value:.6g} with residual {self.residual_norm:.1e}: "
                f"{self.status.name}. {_sentence(self.status)}"
            )
        statuses = np.asarray(self.status, dtype=object)
        lines = []
        for status in sorted(set(statuses.ravel()), key=lambda s: s.name):
            mask = statuses == status
            worst = float(np.max(np.asarray(self.residual_norm)[mask]))
            lines.append(
                f"{int(mask.sum())} of {mask.size} systems: {status.name}, worst residual {worst:.1e}. "
                f"{_sentence(status)}"
            )
        return f"{self.name} stopped after {products}. " + " ".join(lines)

    def __float__(self) -> float:
        """Return the value; a batch has several and raises."""
        if not isinstance(self.status, Status):
            raise TypeError(f"float(SpectralResult): got a batch of shape {self.value.shape}; read .value instead.")
        return float(self.value)

    def __repr__(self) -> str:
        """Return the message without the arrays."""
        return f"<SpectralResult: {self.message}>"


# Where the sentence of a status speaks of a linear system, this is what it means for an eigenvalue.
_SENTENCES = {
    Status.CONVERGED: "The recomputed residual puts the value within rtol, or within rounding.",
    Status.MAX_ITERS: "max_iters was reached before the bound: raise max_iters or memory, or loosen rtol.",
    Status.STAGNATED: "The recomputed residual does not fall to the bound: loosen rtol, or use a wider dtype.",
    Status.NONFINITE_INPUT: "The start vector holds NaN or Inf.",
    Status.ADJOINT_MISMATCH: (
        "The products are not those of one symmetric matrix, or of a matrix and its adjoint: run check_operator, and "
        "use smallest_singular_value or spectral_radius where the operator is not symmetric."
    ),
}


def _sentence(status: Status) -> str:
    return _SENTENCES.get(status, status.sentence)


def check_policy(name: str, on_failure: Any) -> None:
    """Raise unless ``on_failure`` is one of the policies."""
    if not (isinstance(on_failure, str) and on_failure in ("raise", "warn", "return")):
        raise SettingTypeError(f"{name}: got on_failure={on_failure!r}, expected 'raise', 'warn' or 'return'.")


def deliver(result: SpectralResult, on_failure: str, stacklevel: int = 3) -> SpectralResult:
    """Return the result; raise or warn first if it is not what was asked for, as the policy says."""
    if not result.is_good and on_failure != "return":
        if on_failure == "raise":
            raise NotConvergedError(result.message, result)
        warnings.warn(result.message, ConvergenceWarning, stacklevel=stacklevel)
    return result
