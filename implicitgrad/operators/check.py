"""Is this operator what it claims to be? A few products decide, and the fault found is named."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from implicitgrad.backends import Array, Backend, backend_of
from implicitgrad.errors import OperatorError, SettingTypeError
from implicitgrad.operators.base import LinearOperator

__all__ = ["OperatorCheck", "check_operator"]

_FEW = 2  # splits of a batch that are tried after a failed solve
_DRAWS = 3  # a wrong adjoint that hides from one random pair with probability p hides from three with p^3


@dataclass
class OperatorCheck:
    """What ``check_operator`` measured.

    Attributes
    ----------
    tolerance : float
        The relative difference that rounding explains: ``16 sqrt(n) eps``.
    differences : dict of str to float
        The largest relative difference of each check that ran.
    faults : list of str
        A sentence for each check that failed; empty for a sound operator.
    """

    tolerance: float
    differences: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no fault was found."""
        return not self.faults

    def note(self, name: str, difference: float, sentence: str) -> None:
        """Keep the largest difference under ``name``; add the sentence, once, if it is beyond rounding."""
        known = self.differences.get(name)
        self.differences[name] = difference if known is None or not difference <= known else known
        if not difference <= self.tolerance and not (known is not None and not known <= self.tolerance):
            self.faults.append(
                f"{name}: {sentence} The relative difference is {difference:.1e}, "
                f"expected at most {self.tolerance:.1e}."
            )


def check_operator(
    operator: LinearOperator, like: Array | None = None, seed: int = 0, raises: bool = True
) -> OperatorCheck:
    """Check that an operator is linear, deterministic, consistent with its adjoint, and what it claims to be.

    Parameters
    ----------
    operator : LinearOperator
        For a ``VJPOperator`` without a JVP, the checks that need one are left out.
    like : array, optional
        A vector ``(n,)`` or batch ``(..., n)`` whose library, dtype, device and shape the random probes take.
        Default: ``operator.example()``.
    seed : int
        Of the probes.
    raises : bool
        Raise at the end if a fault was found (default), or only report it.

    Returns
    -------
    OperatorCheck
        The differences measured, and the faults.

    Raises
    ------
    OperatorError
        A check failed; the message names each fault: *determinism* (two identical calls differ: dropout, atomics),
        *linearity* (also a constant term), *adjoint identity* ``<u, A v> = <A^H u, v>`` (a wrong sign, transpose or
        conjugate in one of the products), *symmetry* (the claim is false), *batch independence* (one system's product
        depends on another's).
    ShapeError, DtypeError, DeviceError, BackendError
        A product has another shape, dtype or device than its input, or is no array.

    Notes
    -----
    The adjoint identity is measured against ``norm(A v) norm(u)``, not against the inner product, which can cancel
    (PyLops' ``dottest`` fails spuriously there). Cost: at most 14 products of each kind,
    and ``log2`` of the number of systems in a batch.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> matrix = np.array([[0.5, 0.2], [0.0, 0.3]])
    >>> ig.check_operator(ig.VJPOperator(lambda u: u @ matrix, 2, jvp=lambda v: v @ matrix.T)).ok
    True
    >>> wrong = ig.VJPOperator(lambda u: u @ matrix, 2, jvp=lambda v: v @ matrix)
    >>> print(ig.check_operator(wrong, raises=False).faults[0][:16])
    adjoint identity
    """
    if not isinstance(operator, LinearOperator):
        raise SettingTypeError(
            f"check_operator: got an object of type {type(operator).__qualname__}, expected a LinearOperator."
        )
    rows, columns = operator.shape
    like = operator.example() if like is None else like
    backend = backend_of(like, "check_operator")
    eps = _eps(backend, like)
    check = OperatorCheck(tolerance=16 * max(rows, columns, 1) ** 0.5 * eps)
    if min(rows, columns) == 0:
        return check
    domain, range_ = (backend.zeros((*like.shape[:-1], size), like) for size in (columns, rows))
    products: list[tuple[str, Callable[[Array], Array], Array]] = []
    if operator.has_forward:
        products.append(("matvec", operator.matvec, domain))
    if operator.has_adjoint and not (operator.symmetric and operator.has_forward):
        products.append(("rmatvec", operator.rmatvec, range_))
    for name, apply, prototype in products:
        _check_map(check, backend, name, apply, prototype, seed)
    for draw in range(_DRAWS):
        v, u = backend.random_like(domain, seed + 11 + 2 * draw), backend.random_like(range_, seed + 12 + 2 * draw)
        if operator.symmetric:
            product = operator.matvec if operator.has_forward else operator.rmatvec
            gap = _pairing_gap(backend, u, product(v), product(u), v)
            check.note("symmetry", gap, "<u, A v> and <A u, v> differ, so the claim symmetric=True is false.")
        if operator.has_forward and operator.has_adjoint:
            gap = _pairing_gap(backend, u, operator.matvec(v), operator.rmatvec(u), v)
            sentence = "<u, A v> and <A^H u, v> differ, so one product has a wrong sign, transpose or conjugate."
            check.note("adjoint identity", gap, sentence)
    if raises and check.faults:
        raise OperatorError(f"check_operator: {operator!r} failed. " + " ".join(check.faults))
    return check


def _check_map(
    check: OperatorCheck, backend: Backend, name: str, apply: Callable[[Array], Array], like: Array, seed: int
) -> None:
    """Determinism, linearity and batch independence of one product."""
    x, y = backend.random_like(like, seed + 1), backend.random_like(like, seed + 2)
    kept = backend.copy(x)
    ax, again, ay = apply(x), apply(x), apply(y)
    if not backend.equal(kept, x):
        check.faults.append(f"{name} in place: the product changed its input. Write into a copy.")
        return
    if not _finite(backend, ax) or not _finite(backend, ay):
        check.faults.append(f"{name} finite: the product of a finite vector holds NaN or Inf.")
        return
    check.note(
        f"{name} determinism",
        0.0 if backend.equal(ax, again) else max(_gap(backend, ax, again), 1.0),
        "two identical calls differ; freeze dropout and other randomness for the solve.",
    )
    a, b = -1.5, 0.75
    combined = apply(a * x + b * y)
    check.note(
        f"{name} linearity",
        max(_gap(backend, combined, a * ax + b * ay), _gap(backend, apply(-2.0 * x), -2.0 * ax)),
        "A (a x + b y) is not a A x + b A y; the map is not linear, or has a constant term.",
    )
    if like.ndim > 1 and math.prod(like.shape[:-1]) > 1:
        gaps = []
        for half in _splits(like):
            mixed, expected = apply(backend.select(half, x, y)), backend.select(half, ax, ay)
            gaps.append(_gap(backend, mixed, expected))
        sentence = "a system's product changes with the other systems of the batch."
        check.note(f"{name} batch independence", _largest(np.array(gaps)), sentence)


def mixes_systems(operator: LinearOperator, like: Array) -> tuple[bool, int]:
    """Say whether a system's product with ``A`` reaches other systems of the batch, and how many products that took.

    For after a solve that failed, so with four products at the most, and a fifth where they say yes: vectors are zero
    for one half of the systems, whose product is zero then. It decides for a batch of up to four; of a larger one it
    can miss a link between few.
    """
    backend = backend_of(like)
    domain = backend.zeros((*like.shape[:-1], operator.shape[1]), like)
    x, limit, spent = backend.random_like(domain, 0), _eps(backend, like) ** 0.5, 0
    for half in _splits(like)[:_FEW]:
        for part in (half, ~half):
            product = operator.apply(backend.select(part, x, domain))
            sizes, spent = np.asarray(backend.max_abs(product)), spent + 1
            reached = sizes[~part].max()
            if math.isfinite(reached) and reached > limit * sizes[part].max():
                constant = np.asarray(backend.max_abs(operator.apply(domain)))  # of a map that is not linear
                return bool(reached > 2 * constant[~part].max()), spent + 1
    return False, spent


def _splits(like: Array) -> list[np.ndarray[Any, Any]]:
    """Return host masks ``(...)`` of halves of a batch, such that any two systems are in different halves of one."""
    batch = like.shape[:-1]
    order = np.random.default_rng(0).permutation(math.prod(batch)).reshape(batch)
    return [(order >> bit) % 2 == 1 for bit in range((order.size - 1).bit_length())]


def _pairing_gap(backend: Backend, u: Array, av: Array, atu: Array, v: Array) -> float:
    """Return ``|<u, A v> - <A^H u, v>|`` relative to the larger of the two products of norms."""
    if not (_finite(backend, av) and _finite(backend, atu)):
        return float("nan")
    difference = backend.inner(u, av) - backend.inner(atu, v)
    scale = backend.norm(u) * backend.norm(av) + backend.norm(atu) * backend.norm(v)
    ratio = backend.quotient(abs(difference), scale)
    return _largest(backend.to_host(ratio))


def _gap(backend: Backend, x: Array, y: Array) -> float:
    """Return ``max |x - y|`` of the worst system relative to its larger entry."""
    scale = backend.max_abs(x) + backend.max_abs(y)
    difference = backend.max_abs(x - y)
    return max((d / s if s else d for d, s in zip(_flat(difference), _flat(scale), strict=True)), default=0.0)


def _flat(values: object) -> list[float]:
    return [values] if isinstance(values, float) else list(values.ravel())  # type: ignore[attr-defined]


def _largest(values: object) -> float:
    return float(max(_flat(values), key=lambda v: (v != v, v)))


def _finite(backend: Backend, x: Array) -> bool:
    return all(v - v == 0 for v in _flat(backend.max_abs(x)))


def _eps(backend: Backend, like: Array) -> float:
    facts = backend.facts(like.dtype)
    if facts is None:
        raise SettingTypeError(f"check_operator: got probes of dtype {like.dtype}, expected floating point.")
    return facts.eps
