"""Fixed-point maps whose fixed point, Jacobian and parameter Jacobian are known in closed form, as NumPy callables.

The Jacobian ``J`` at the fixed point is drawn first, of any kind: a contraction of given norm, non-normal, singular
``I - J``. The map is then built around it, so that every expectation about the gradient is a formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from implicitgrad.errors import SettingError
from implicitgrad.operators import VJPOperator
from implicitgrad.testing.matrices import Matrix, contraction
from implicitgrad.testing.problem import operator_of

__all__ = ["FixedPointMap", "make_map", "map_of"]

_FORMS = ("affine", "tanh")


@dataclass(frozen=True, eq=False, repr=False)
class FixedPointMap:
    """A map ``f(z, W, b)`` with a known fixed point ``z_star``: ``W z + b``, or ``tanh(W z + b)``.

    Attributes
    ----------
    form : {"affine", "tanh"}
        The formula.
    W : ndarray, shape (n, n)
        Weights.
    b : ndarray, shape (n,)
        Chosen so that ``z_star`` is the fixed point, up to rounding.
    z_star : ndarray, shape (n,)
        The fixed point.
    source : str
        The line that builds the map again; its ``repr``.

    Examples
    --------
    >>> map_ = make_map("tanh", size=3, seed=0, norm=0.5)
    >>> bool(np.allclose(map_(map_.z_star), map_.z_star))
    True
    >>> round(float(np.linalg.norm(map_.J, 2)), 12)
    0.5
    """

    form: str
    W: Matrix
    b: Matrix
    z_star: Matrix
    source: str = ""

    def __repr__(self) -> str:
        """Return the line that builds the map again."""
        return self.source or f"<FixedPointMap {self.form} of size {self.size}>"

    def __call__(self, z: Matrix, W: Matrix | None = None, b: Matrix | None = None) -> Matrix:
        """Return ``f(z, W, b)``, with the map's own parameters where none are given; ``z`` has shape ``(..., n)``."""
        inner = z @ np.swapaxes(self.W if W is None else W, -1, -2) + (self.b if b is None else b)
        return np.tanh(inner) if self.form == "tanh" else inner

    @property
    def size(self) -> int:
        """``n``."""
        return int(self.z_star.shape[-1])

    @property
    def slope(self) -> Matrix:
        """``df/d(W z + b)`` at the fixed point, ``(n,)``: one, or ``1 - z_star**2``."""
        return 1.0 - self.z_star**2 if self.form == "tanh" else np.ones_like(self.z_star)

    @property
    def J(self) -> Matrix:
        """``df/dz`` at the fixed point, ``(n, n)``."""
        return self.slope[:, None] * self.W

    @property
    def parameter_jacobian(self) -> Matrix:
        """``df/d(W, b)`` at the fixed point, ``(n, n**2 + n)``: the columns are ``W`` row by row, then ``b``."""
        n = self.size
        weights = np.einsum("i,ij,k->ijk", self.slope, np.eye(n), self.z_star).reshape(n, n * n)
        return np.concatenate([weights, np.diag(self.slope)], axis=1)

    @property
    def operator(self) -> VJPOperator:
        """``J`` over plain callables, with both products."""
        made = operator_of(self.J, shifted=False)
        assert isinstance(made, VJPOperator)
        return made

    def adjoint(self, g: Matrix) -> Matrix:
        """Return ``u`` with ``(I - J)^H u = g``, by a dense solve in double precision."""
        wide = np.result_type(self.W.dtype, np.float64)
        return np.linalg.solve((np.eye(self.size) - self.J.astype(wide)).conj().T, np.asarray(g).astype(wide))

    def gradient(self, g: Matrix) -> dict[str, Matrix]:
        """Return ``dL/dW`` and ``dL/db`` for the cotangent ``g = dL/dz`` at the fixed point.

        Examples
        --------
        >>> map_ = map_of(np.array([[0.5]]), z_star=np.array([2.0]), form="affine")
        >>> map_.gradient(np.ones(1))  # z = b / (1 - W)
        {'W': array([[4.]]), 'b': array([2.])}
        """
        pulled = self.slope.conj() * self.adjoint(g)
        return {"W": np.outer(pulled, self.z_star.conj()), "b": pulled}


def make_map(
    form: str = "tanh",
    size: int = 4,
    seed: int = 0,
    norm: float = 0.6,
    dtype: Any = "float64",
) -> FixedPointMap:
    """Build a map whose ``J`` at the fixed point is a contraction with ``norm(J, 2) = norm``.

    Parameters
    ----------
    form : {"tanh", "affine"}
        The formula.
    size, seed : int
        ``n`` and the seed of everything that is drawn.
    norm : float
        With ``norm <= 0.7`` the whole map contracts, since ``|z_star| <= 1/2`` keeps the slope above 3/4 there.
    dtype : dtype or str
        Real or complex.

    Examples
    --------
    >>> make_map("affine", size=2, seed=1)
    make_map('affine', size=2, seed=1, norm=0.6)
    """
    rng, dtype = np.random.default_rng(seed), np.dtype(dtype)
    J = contraction(rng, size, norm, dtype.kind == "c")
    more = "" if dtype == np.dtype("float64") else f", dtype={str(dtype)!r}"
    source = f"make_map({form!r}, size={size}, seed={seed}, norm={norm!r}{more})"
    return map_of(J.astype(dtype), seed=seed + 1, form=form, source=source)


def map_of(
    J: Matrix, z_star: Matrix | None = None, seed: int = 0, form: str = "tanh", source: str = ""
) -> FixedPointMap:
    """Build a map around a Jacobian of your own: ``J`` at the fixed point is what you hand in, up to rounding.

    Parameters
    ----------
    J : ndarray, shape (n, n)
        Of any kind; where ``norm(J) >= 1`` the map may not be solved by iteration.
    z_star : ndarray, shape (n,), optional
        The fixed point; within ``(-1, 1)`` for ``"tanh"``. Default: drawn from ``[-1/2, 1/2]``.
    seed : int
        Of ``z_star``.
    form : {"tanh", "affine"}
        The formula.
    source : str
        How the map is built again.

    Examples
    --------
    >>> J = np.array([[0.5, 4.0], [0.0, 0.5]])  # spectral radius 1/2, norm above 4
    >>> bool(np.allclose(map_of(J).J, J))
    True
    """
    if form not in _FORMS:
        raise SettingError(f"map_of: got form={form!r}, expected one of {', '.join(map(repr, _FORMS))}.")
    J = np.asarray(J)
    if z_star is None:
        rng = np.random.default_rng(seed)
        angle = np.exp(2j * np.pi * rng.uniform(size=len(J))) if J.dtype.kind == "c" else 1.0
        z_star = (rng.uniform(-0.5, 0.5, len(J)) * angle).astype(J.dtype)
    if form == "affine":
        return FixedPointMap(form, J, (z_star - J @ z_star).astype(J.dtype), z_star, source)
    W = J / (1.0 - z_star**2)[:, None]
    return FixedPointMap(form, W, (np.arctanh(z_star) - W @ z_star).astype(J.dtype), z_star, source)
