"""SciPy: operators in both directions, and its iterative solvers as one of ours.

Used by whoever writes ``import implicitgrad.scipy as igs``: ``as_linear_operator`` hands a Jacobian to ``eigsh`` and
its like, ``from_linear_operator`` takes a sparse matrix or a SciPy operator, ``ScipySolver`` solves with SciPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

import numpy as np

from implicitgrad.backends import Array, Scalar, backend_of, backend_of_dtype
from implicitgrad.errors import DtypeError, MissingProductError, OperatorError, SettingTypeError, ShapeError
from implicitgrad.operators import LinearOperator
from implicitgrad.operators.algebra import shifted, split_shift
from implicitgrad.operators.precision import in_half_precision
from implicitgrad.solvers.base import Solution, check_settings, check_system, default_max_iters
from implicitgrad.solvers.iteration import IterativeSolver
from implicitgrad.solvers.system import System
from implicitgrad.status import Status

try:
    from scipy.sparse import linalg
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "implicitgrad.scipy: SciPy is not installed. Install it with pip install 'implicitgrad[scipy]'.",
        name=error.name,
    ) from error

__all__ = ["ScipySolver", "as_linear_operator", "from_linear_operator"]


def as_linear_operator(A: LinearOperator, like: Array | None = None) -> Any:
    """Return ``A`` as a ``scipy.sparse.linalg.LinearOperator`` on NumPy vectors.

    Parameters
    ----------
    A : LinearOperator, shape (m, n)
        Its vectors may be of any library. For a Jacobian with a VJP alone hand in ``J.H``: SciPy applies ``matvec``.
    like : array, shape (n,), optional
        A vector of the kind that ``A`` takes: its library, dtype and device. None asks ``A.example()``.

    Returns
    -------
    scipy.sparse.linalg.LinearOperator, shape (m, n)
        ``dtype`` is that of ``like`` (float32 for half precision). Vectors ``(n,)`` and ``(n, 1)``; ``matmat`` hands
        the ``k`` columns over as one batch ``(k, n)``. ``rmatvec`` is there where ``A`` has an adjoint.

    Raises
    ------
    SettingTypeError, ShapeError
        ``A`` is no ``LinearOperator``; ``like`` is not one vector of length ``n``.
    MissingProductError
        At a product that ``A`` lacks.

    Notes
    -----
    On the CPU a vector is lent to torch without a copy. A product is copied once: SciPy writes into what it is given
    (``gmres`` orthogonalizes in place), and the memory may be the map's own. A real operator is applied to the real and
    the imaginary part of a complex vector in turn.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse.linalg import eigsh
    >>> import implicitgrad as ig
    >>> import implicitgrad.scipy as igs
    >>> A = ig.VJPOperator(lambda u: np.arange(1.0, 51.0) * u, size=50, symmetric=True)
    >>> round(float(eigsh(igs.as_linear_operator(A), k=1, which="LA", return_eigenvectors=False)[0]), 6)
    50.0
    """
    if not isinstance(A, LinearOperator):
        raise SettingTypeError(
            f"as_linear_operator: got an object of type {type(A).__qualname__}, expected a LinearOperator of "
            "implicitgrad. SciPy's own objects go the other way, through from_linear_operator."
        )
    like = A.example() if like is None else like
    backend = backend_of(like, "as_linear_operator (like)")
    if tuple(like.shape) != (A.shape[1],):
        raise ShapeError(
            f"as_linear_operator: got an operator of shape {A.shape} on vectors of shape {tuple(like.shape)}, expected "
            f"({A.shape[1]},): SciPy knows no batches. Make the operator of one system, or pass like=one vector."
        )
    facts = backend.facts(like.dtype)
    if facts is None:
        raise DtypeError(f"as_linear_operator: got like of dtype {like.dtype}, expected floating point.")
    if facts.is_half:  # NumPy has no bfloat16, and SciPy computes in neither
        A = in_half_precision(A, backend, like.dtype)
        like = backend.astype(like, backend.dtype("float32"))
    forward, adjoint = _on_numpy(A.apply, like), _on_numpy(A.apply_adjoint, like)
    products: dict[str, Any] = {"matvec": lambda x: forward(x.reshape(-1)), "matmat": lambda X: forward(X.T).T}
    if A.has_adjoint:
        products |= {"rmatvec": lambda y: adjoint(y.reshape(-1)), "rmatmat": lambda Y: adjoint(Y.T).T}
    return linalg.LinearOperator(A.shape, dtype=np.dtype("float32" if facts.is_half else facts.name), **products)


def _on_numpy(product: Callable[[Array], Array], like: Array) -> Callable[[Any], Any]:
    """Return ``product`` for NumPy vectors, where its own are like ``like``."""
    backend = backend_of(like)
    is_complex = "complex" in backend.dtype_name(like.dtype)

    def apply(x: Any) -> Any:
        if np.iscomplexobj(x) and not is_complex:
            return apply(x.real) + 1j * apply(x.imag)
        if not x.flags.writeable:  # torch warns of memory that it must not write to
            x = x.copy()
        y = backend.to_numpy(product(backend.from_numpy(x, like)))
        return y if y.flags.owndata else y.copy()  # never lend SciPy the map's memory, nor its own input

    return apply


def from_linear_operator(L: Any, symmetric: bool = False) -> LinearOperator:
    """Return a SciPy operator as a ``LinearOperator``, for vectors of any library.

    Parameters
    ----------
    L : scipy.sparse.linalg.LinearOperator, sparse matrix or array, numpy.ndarray, shape (m, n)
        Whatever ``scipy.sparse.linalg.aslinearoperator`` takes.
    symmetric : bool
        Claims ``L = L^H``; then ``matvec`` serves both ways.

    Returns
    -------
    LinearOperator, shape (m, n)
        Takes vectors of ``L.dtype`` (of any floating dtype where that is an integer); a batch goes through ``matmat``.
        Vectors of other libraries travel to the host and back.

    Raises
    ------
    SettingTypeError
        SciPy does not take ``L`` for an operator.
    DtypeError, OperatorError
        At a product: it was complex for a real vector, or no number; or ``L`` changed its input in place. A wrong shape
        and the exceptions of ``L`` itself are raised as SciPy and ``L`` raise them.
    MissingProductError
        At an adjoint product where SciPy's operator has no ``rmatvec``.

    Notes
    -----
    SciPy does not tell whether an operator has an ``rmatvec``. It is tried here, once, on zeros.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import diags_array
    >>> import implicitgrad as ig
    >>> import implicitgrad.scipy as igs
    >>> J = igs.from_linear_operator(diags_array([0.5, 0.2, 0.0]))
    >>> ig.adjoint_solve(J, np.ones(3)).x.round(12)
    array([2.  , 1.25, 1.  ])
    """
    try:
        operator = linalg.aslinearoperator(L)
    except (TypeError, ValueError) as error:
        raise SettingTypeError(
            f"from_linear_operator: got an object of type {type(L).__qualname__} ({error}), expected a SciPy "
            "LinearOperator, a sparse matrix or a two-dimensional NumPy array. Use VJPOperator for a callable and "
            "DenseOperator for an array of another library."
        ) from error
    return FromScipy(operator, bool(symmetric), own=operator is not L)


class FromScipy(LinearOperator):
    """A SciPy operator as one of ours; made by ``from_linear_operator``."""

    def __init__(self, operator: Any, symmetric: bool, own: bool) -> None:
        self.shape = (int(operator.shape[0]), int(operator.shape[1]))
        known = backend_of_dtype(np.dtype(float)).facts(operator.dtype)
        self.dtype = None if known is None else operator.dtype
        self.symmetric = symmetric
        self._operator = operator
        self._adjoint = own or symmetric
        if not self._adjoint:
            try:
                operator.rmatvec(np.zeros(self.shape[0], self.dtype))
                self._adjoint = True
            except NotImplementedError:
                pass

    @property
    def has_adjoint(self) -> bool:
        """Whether SciPy's operator has an ``rmatvec``, or symmetry was claimed."""
        return self._adjoint

    def apply(self, x: Array) -> Array:
        """Return ``L x``."""
        return self._product("matvec", self._operator.matvec, self._operator.matmat, x)

    def apply_adjoint(self, y: Array) -> Array:
        """Return ``L^H y``."""
        if self.symmetric:
            return self.apply(y)
        if not self._adjoint:
            raise MissingProductError(
                "from_linear_operator: got a SciPy operator without rmatvec, expected L^H y. Give "
                "LinearOperator(..., rmatvec=...), declare symmetric=True if L = L^H, or use a solver that needs "
                "matvec only. adjoint_solve(J, g) applies J^H: to solve (I - L) z = b use tangent_solve."
            )
        return self._product("rmatvec", self._operator.rmatvec, self._operator.rmatmat, y)

    def _product(self, name: str, one: Callable[[Any], Any], many: Callable[[Any], Any], x: Array) -> Array:
        backend, host = backend_of(x), backend_of_dtype(np.dtype(float))
        values = backend.to_numpy(x)
        if 0 in values.shape[:-1]:
            return backend.zeros((*values.shape[:-1], self.shape[name == "rmatvec"]), x)
        if values.ndim == 1:
            y, intact = host.call_foreign(one, values)
        else:
            y, intact = host.call_foreign(lambda rows: many(rows.T).T, values.reshape(-1, values.shape[-1]))
        if not np.can_cast(y.dtype, values.dtype, "same_kind"):
            raise DtypeError(
                f"from_linear_operator: {name} returned {y.dtype} for a vector of {values.dtype}, expected a dtype "
                "that goes back into it. Solve a complex operator with a complex right-hand side."
            )
        if not intact:
            raise OperatorError(
                f"from_linear_operator: {name} changed its input in place, expected it to be left as it is. "
                "Write into a copy, and use x * 2 rather than x *= 2."
            )
        return backend.from_numpy(y.reshape(*values.shape[:-1], y.shape[-1]), x)


# Products with A that an iteration spends; the names are all that ScipySolver takes.
_PRODUCTS = dict.fromkeys(
    ("bicg", "bicgstab", "cg", "cgs", "gcrotmk", "gmres", "lgmres", "lsmr", "lsqr", "minres", "qmr", "tfqmr"), 1
) | {"bicgstab": 2, "cgs": 2}
_NEED_ADJOINT = ("bicg", "qmr", "lsqr", "lsmr")
_LEAST_SQUARES = ("lsqr", "lsmr")
_OURS = ("A", "b", "x0", "rtol", "atol", "btol", "maxiter", "iter_lim", "callback", "callback_type", "calc_var")

# Asked of SciPy below the bound, so that the rounding between its residual and the true one costs no second call.
_MARGIN = 0.9

# minres stops at rtol * norm(A) norm(x), which is up to cond(A) times rtol * norm(b). Over condition numbers from 3 to
# 1000, 1e-3 loses no system and spends 8 % more products than 1e-2, which does; a second call is sharper by what the
# first one missed.
_MINRES = 1e-3


@dataclass(frozen=True)
class ScipySolver(IterativeSolver):
    """``A x = b`` by an iterative solver of ``scipy.sparse.linalg``, under the rules of this package.

    Parameters
    ----------
    method : str
        ``"cg"``, ``"cgs"``, ``"bicg"``, ``"bicgstab"``, ``"gmres"``, ``"lgmres"``, ``"gcrotmk"``, ``"minres"``,
        ``"qmr"``, ``"tfqmr"``, ``"lsqr"`` or ``"lsmr"``. The last two take rectangular operators; these and ``bicg``
        and ``qmr`` need ``A^H``. ``cg`` and ``minres`` are for ``A = A^H``, ``minres`` for real numbers.
    rtol : float, optional
        ``CONVERGED`` when ``norm(b - A x) <= max(rtol * norm(b), atol)``. Default by dtype: ``sqrt(eps) / 4``.
    atol : float
        In the unit of ``b``. With ``rtol = atol = 0`` SciPy makes ``max_iters`` steps (``TRUNCATED``), or the status
        says why it stopped before.
    max_iters : int, optional
        Most iterations: one product with ``A``, two for ``cgs`` and ``bicgstab``. ``gmres`` counts its inner steps, and
        a product for each restart comes on top; ``lgmres`` and ``gcrotmk`` stop at the last whole cycle that fits.
        None: ``min(10 n, 1000)``.
    options : mapping, or pairs of name and value
        Settings of SciPy's function: ``{"restart": 50}``, ``{"M": preconditioner}``.
    final_residual : bool
        With a fixed budget, spend one product more to measure the residual.

    Raises
    ------
    SettingTypeError
        SciPy has no such solver; an option is none of its, or is set from the fields above.
    MissingProductError, DtypeError
        In ``solve``, before any product: ``A`` has no adjoint where one is needed; ``minres`` on complex numbers.

    Notes
    -----
    SciPy's ``info`` is not believed. One call of SciPy is one cycle of ``solvers/iteration.py``: the residual is
    recomputed with the operator, and SciPy is called again on that residual while calls deliver. Each call gets a
    residual scaled by a power of two, as SciPy's absolute breakdown thresholds (``eps**2``) need. ``STAGNATED`` says
    that SciPy thought itself done twice, and was not; ``BREAKDOWN``, that it gave up.

    SciPy knows no batches: the systems are solved one after the other. A batched operator takes whole batches only, so
    each vector travels in its own row of a batch of zeros, and a batch of ``B`` costs ``B`` times the calls of one.
    ``history`` repeats the residual norm measured last: SciPy does not tell its own. Vectors on a device travel to the
    host and back.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> import implicitgrad.scipy as igs
    >>> J = ig.VJPOperator(lambda u: 0.5 * u[..., ::-1], size=4)
    >>> sol = ig.adjoint_solve(J, np.array([1.0, 2.0, 3.0, 4.0]), solver=igs.ScipySolver("lgmres"))
    >>> sol.status.name, sol.x.round(9), sol.num_matvecs
    ('CONVERGED', array([4.        , 4.66666667, 5.33333333, 6.        ]), 3)
    """

    method: str
    rtol: float | None = None
    atol: float = 0.0
    max_iters: int | None = None
    options: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()
    final_residual: bool = False

    def __post_init__(self) -> None:
        if self.method not in _PRODUCTS:
            raise SettingTypeError(f"ScipySolver: got {self.method!r}, expected one of {', '.join(_PRODUCTS)}.")
        check_settings(self)
        try:
            options = tuple(dict(self.options).items())
        except (TypeError, ValueError):
            raise SettingTypeError(
                f"ScipySolver: got options={self.options!r}, expected a mapping such as {{'restart': 50}}."
            ) from None
        object.__setattr__(self, "options", options)  # a tuple, so that solvers can be compared and hashed
        known = [name for name in signature(getattr(linalg, self.method)).parameters if name not in _OURS]
        for name, _ in options:
            if name not in known:
                ours = " Tolerances, max_iters and x0 are settings of ours." if name in _OURS else ""
                raise SettingTypeError(
                    f"ScipySolver: got the option {name!r}, expected of {self.method} one of {', '.join(known)}.{ours}"
                )

    @property
    def name(self) -> str:
        """The name that reports use."""
        return f"ScipySolver({self.method!r})"

    @property
    def square(self) -> bool:  # type: ignore[override]  # a fact of the method
        """Whether the operator must be square."""
        return self.method not in _LEAST_SQUARES

    def solve(self, operator: LinearOperator, rhs: Array, x0: Array | None = None) -> Solution:
        """Solve ``A x = b``; see ``Solver.solve``. A batch is solved one system after the other."""
        check_system(f"{self.name}.solve", operator, rhs, x0, square=self.square)
        if self.method in _NEED_ADJOINT and not operator.has_adjoint:
            raise MissingProductError(
                f"{self.name}.solve: got an operator without the adjoint product, expected one that has it. Give the "
                "missing callable (jvp= for adjoint_solve), or use a method that needs matvec only, such as 'gmres'."
            )
        if self.method == "minres" and "complex" in backend_of(rhs).dtype_name(rhs.dtype):
            raise DtypeError(
                f"{self.name}.solve: got rhs of dtype {rhs.dtype}, expected real numbers: SciPy's minres leaves out "
                "the conjugate. Use ig.MINRES()."
            )
        if rhs.ndim == 1 or 0 in rhs.shape[:-1]:
            return super().solve(operator, rhs, x0)
        inner, alpha, beta = split_shift(operator)  # the shift stays outside, as for a single system
        solutions = []
        for index in np.ndindex(*rhs.shape[:-1]):
            row = shifted(alpha, beta, _Row(inner, tuple(rhs.shape[:-1]), index))
            start = None if x0 is None else x0[(*index, ...)]
            solutions.append(super().solve(row, rhs[(*index, ...)], start))
        return _stacked(solutions, rhs)

    def iterations(self, system: System, x: Array | None, r: Array) -> Iterator[tuple[Scalar, Any]]:
        """Let SciPy solve ``A d = r`` from zero; the steps that it made are reported when it is back."""
        backend = system.backend
        x, size = system.zero() if x is None else x, backend.norm(r)

        def latest() -> Array:
            return x

        yield size, latest
        budget = default_max_iters(system.operator.shape[1]) if self.max_iters is None else int(self.max_iters)
        left = budget - system.kept.setdefault("made", 0)
        system.kept["calls"] = calls = system.kept.get("calls", 0) + 1
        # SciPy's breakdown thresholds are absolute (eps**2): every call gets a residual scaled to about one.
        exponent = int(np.frexp(backend.max_abs(r))[1])
        values = backend.to_numpy(backend.times_power_of_two(r, -exponent))
        # With a fixed budget SciPy stops at a residual of zero alone: it divides by it.
        target = np.finfo(values.dtype).tiny if system.fixed_budget else np.ldexp(_MARGIN * system.threshold, -exponent)
        call = _Call(self, system, calls, left, float(target), exponent + system.exponent)
        x = x + backend.times_power_of_two(backend.from_numpy(call.run(values), r), exponent)
        system.kept["made"] += call.steps
        for _ in range(call.steps - 1):
            yield size, latest
        if call.status is not None:
            system.break_down(True, call.status)
        while True:  # the claim has x measured; where there is none, the driver runs out of budget
            yield (system.threshold if call.claim else size), latest


class _NonfiniteProduct(Exception):  # noqa: N818  # a way out of SciPy, never seen outside
    """A product held NaN or Inf, so SciPy would go on to its cap for nothing."""


@dataclass
class _Call:
    """One call of SciPy: what goes in, and how it ended."""

    solver: ScipySolver
    system: System
    calls: int  # of this solve, this one included
    left: int  # iterations that may still be made
    target: float  # residual norm that is wanted
    exponent: int  # of the power of two between the caller's scale and this one
    steps: int = 1
    claim: bool = False
    status: Status | None = None
    error: BaseException | None = None
    last_finite: Any = None
    caller_errstate: Any = field(default_factory=np.geterr)

    def run(self, r: Any) -> Any:
        """Return SciPy's answer to ``A d = r``, or the last finite iterate that it showed."""
        system, method = self.system, self.solver.method
        d, info = None, 0
        before = system.num_matvecs
        A = linalg.LinearOperator(
            system.operator.shape,
            dtype=r.dtype,
            matvec=self._guarded(_on_numpy(system.matvec, system.rhs)),
            rmatvec=self._guarded(_on_numpy(system.rmatvec, system.rhs)),
        )
        arguments, given, cycle = self._arguments(r)
        try:
            with np.errstate(all="ignore"):  # 0 / 0 in SciPy's recurrence is told by the status
                d, info, *_ = getattr(linalg, method)(A, r, **arguments)
        except _NonfiniteProduct:
            pass
        if self.error is not None:  # lgmres and gcrotmk swallow a LinAlgError, even one of the user's
            raise self.error
        self.steps = min(max(-(-(system.num_matvecs - before) // _PRODUCTS[method]), 1), self.left)
        if self.status is None and (d is None or not self._usable(d)):
            self.status = Status.BREAKDOWN
        if self.status is not None:
            return np.zeros(system.operator.shape[1], r.dtype) if self.last_finite is None else self.last_finite
        if method in _LEAST_SQUARES:
            self.claim = info in (0, 1, 4)  # the compatible stops; 2, 5: least squares, 3, 6: cond(A), 7: the limit
            ends = {2: Status.LEAST_SQUARES, 5: Status.LEAST_SQUARES, 3: Status.STAGNATED, 6: Status.STAGNATED}
            self.status = ends.get(info)
        else:
            self.claim = info == 0 or (method == "gmres" and self.steps < self.left)  # it takes a breakdown for the end
            gave_up = Status.STAGNATED if info == given else Status.BREAKDOWN  # cycles that ended early, each of them
            spent = self.left - self.steps < cycle
            self.status = None if self.claim or spent else gave_up
        return d

    def _arguments(self, r: Any) -> tuple[dict[str, Any], int, int]:
        """Return the keywords of the call, the budget in SciPy's unit, and the most products that this unit takes."""
        method, left, cycle = self.solver.method, self.left, 1
        arguments = dict(self.solver.options)
        relative = self.target / float(np.linalg.norm(r))
        if method in _LEAST_SQUARES:  # atol=0, conlim=0: stop by the residual, not by the condition number
            limit = "iter_lim" if method == "lsqr" else "maxiter"
            return {"atol": 0.0, "btol": relative, "conlim": 0.0, **arguments, limit: left}, left, cycle
        arguments["callback"] = self._seen
        if method == "minres":
            return {**arguments, "rtol": _MINRES * relative**self.calls, "maxiter": left}, left, cycle
        arguments |= {"rtol": 0.0, "atol": self.target}
        if method == "gmres":  # only with this callback does maxiter count inner steps
            arguments |= {"callback_type": "legacy", "callback": lambda _: None}
        elif method == "lgmres":
            inner = arguments["inner_m"] = min(arguments.get("inner_m", 30), left)
            cycle = inner + 1
            left = max(left // cycle, 1)
        elif method == "gcrotmk":  # a cycle takes m + k steps at first, one fewer each time, and m in the end
            m = arguments["m"] = min(arguments.get("m", 20), left)
            k = arguments["k"] = min(m if arguments.get("k") is None else arguments["k"], left - m)
            cycle = m + k + 1
            left = max(left // cycle, (left - k * (k + 1) // 2) // (m + 1), 1)
        return {**arguments, "maxiter": left}, left, cycle

    def _guarded(self, product: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return ``product``: free of charge for zero, its exceptions remembered, NaN and Inf told at once."""

        def apply(v: Any) -> Any:
            v = v.reshape(-1)
            if not v.any():  # lgmres and qmr spend a product on x = 0
                rows, columns = self.system.operator.shape
                return np.zeros(columns if len(v) == rows else rows, v.dtype)
            try:
                with np.errstate(**self.caller_errstate):
                    y = product(v)
            except BaseException as error:
                self.error = error
                raise
            if not np.isfinite(y).all():
                self.status = Status.NONFINITE_OPERATOR if np.isfinite(v).all() else Status.BREAKDOWN
                raise _NonfiniteProduct
            return y

        return apply

    def _seen(self, x: Any) -> None:
        if self._usable(x):
            self.last_finite = x.copy()

    def _usable(self, x: Any) -> bool:
        """Return whether ``x`` is finite, in the caller's scale too; on a singular system it grows until it is not."""
        with np.errstate(over="ignore"):
            largest = np.ldexp(float(np.abs(x).max(initial=0.0)), max(self.exponent, 0) + 1)
        return bool(largest < np.finfo(x.dtype).max)


class _Row(LinearOperator):
    """One system of a batched operator: its vector stands in its row of a batch of zeros."""

    def __init__(self, operator: LinearOperator, batch: tuple[int, ...], index: tuple[int, ...]) -> None:
        self.operator, self.batch, self.index = operator, batch, index
        self.shape, self.symmetric = operator.shape, operator.symmetric
        self.mask = np.zeros(batch, bool)
        self.mask[index] = True

    def apply(self, x: Array) -> Array:
        """Return ``A x``."""
        return self._through(self.operator.apply, x)

    def apply_adjoint(self, y: Array) -> Array:
        """Return ``A^H y``."""
        return self._through(self.operator.apply_adjoint, y)

    def _through(self, product: Callable[[Array], Array], x: Array) -> Array:
        backend = backend_of(x)
        rows = backend.select(self.mask, x, backend.zeros((*self.batch, x.shape[-1]), x))
        return product(rows)[(*self.index, ...)]


def _stacked(solutions: list[Solution], rhs: Array) -> Solution:
    """Return the solutions of the systems of a batch as the solution of the batch."""
    first, batch = solutions[0], tuple(rhs.shape[:-1])
    backend = backend_of(rhs)
    rows = backend.empty_rows(len(solutions), first.x)
    for i, solution in enumerate(solutions):
        rows = backend.set_row(rows, i, solution.x)
    history = np.full((max(len(s.history) for s in solutions), len(solutions)), np.nan)
    for i, solution in enumerate(solutions):
        history[: len(solution.history), i] = solution.history

    def gathered(name: str, dtype: Any = float) -> Any:
        values = np.empty(len(solutions), dtype)
        values[:] = [getattr(solution, name) for solution in solutions]
        return values.reshape(batch)

    measured = all(solution.residual_norm is not None for solution in solutions)
    return replace(
        first,
        x=rows.reshape((*batch, first.x.shape[-1])),
        status=gathered("status", object),
        residual_norm=gathered("residual_norm") if measured else None,
        rhs_norm=gathered("rhs_norm"),
        bound=gathered("bound"),
        num_iters=gathered("num_iters", int),
        num_matvecs=sum(solution.num_matvecs for solution in solutions),
        num_rmatvecs=sum(solution.num_rmatvecs for solution in solutions),
        history=history.reshape(-1, *batch),
    )
