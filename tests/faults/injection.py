"""Products that go wrong at their k-th call: what a user's callable can do to a solve, and how the solve must end.

A ``Fault`` is an act, ``act(product, u)``, put in the place of a sound ``product(u)``. ``Injected.around`` wraps the
callables of an operator so that the act happens in their common call ``k`` alone, or from call ``k`` on.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import implicitgrad as ig

RIGHT = "the same bits"  # nothing is wrong with the numbers, only with how they come about
HONEST = "an honest status"  # the numbers are wrong: CONVERGED only where the residual is what it is said to be


class Foreign(BaseException):
    """An exception of the user's own, which no ``except Exception`` sees."""


@dataclass(frozen=True)
class Fault:
    """What happens, and how the solve ends: ``RIGHT``, ``HONEST``, or by an exception of that type.

    ``noise`` bounds what one wrong product of ``u`` is off by, in units of ``norm(u)``: as much may be hidden by a
    residual that was measured with such a product.
    """

    name: str
    act: Callable[[Callable[[Any], Any], Any], Any]
    ends: Any
    noise: float = 0.0

    @property
    def raises(self):
        return isinstance(self.ends, type)


class Injected:
    """A fault in the ``k``-th call of some callables, counted together, and in all later calls too unless ``once``."""

    def __init__(self, fault, k=1, once=False):
        self.fault, self.k, self.once = fault, k, once
        self.calls, self.hits, self.raised = 0, 0, None

    def around(self, product):
        """Return ``product`` with the fault in it."""

        def call(u):
            self.calls += 1
            if self.calls < self.k or (self.calls > self.k and self.once):
                return product(u)
            self.hits += 1
            try:
                return self.fault.act(product, u)
            except BaseException as error:
                self.raised = error
                raise

        return call


def raising(error):
    def act(product, u):
        raise error("mine")

    return act


def in_place(product, u):
    y = product(u)
    u[...] = np.where(u == 0, 1, -u)
    return y


def filled(value, product, u):
    y = np.array(product(u))
    y[..., 0] = value
    return y


def noisy(size, product, u):
    """Return ``J u`` off by ``size``, relative to ``u``, in another direction for every vector."""
    spot = np.cos(1e3 * np.abs(u) / (np.abs(u).max() or 1.0) + np.arange(u.shape[-1]))
    spot = spot / np.linalg.norm(spot, axis=-1, keepdims=True)
    return (product(u) + size * np.linalg.norm(u, axis=-1, keepdims=True) * spot).astype(u.dtype)


def slept(product, u):
    time.sleep(2e-4)
    return product(u)


def solving(solver):
    """Solve another system first, with a failure that the user catches where the solver is not made for it."""

    def act(product, u):
        J = ig.VJPOperator(lambda w: 3 * w, u.shape[-1])
        try:
            ig.adjoint_solve(J, u, solver=solver)
        except ig.NotConvergedError:
            assert isinstance(solver, ig.CG)  # I - J = -2 I is not positive definite
        return product(u)

    return act


def in_a_buffer(product, u, buffers={}):  # noqa: B006 - one buffer for all calls is the point
    buffer = buffers.setdefault((u.shape, u.dtype), np.empty_like(u))
    buffer[...] = product(u)
    return buffer


def spoiling(product, u, kept=[]):  # noqa: B006 - as above
    """Spoil what was lent to the call before, and what that one returned."""
    for array in kept:
        array[...] = np.nan
    y = np.array(product(u))
    kept[:] = [u, y]
    return y


RAISED = [ValueError, ZeroDivisionError, MemoryError, StopIteration, KeyboardInterrupt, SystemExit, GeneratorExit]
RAISED += [Foreign, ig.NotConvergedError, ig.ShapeError]
FAULTS = [
    Fault("returns None", lambda product, u: None, ig.BackendError),
    Fault("returns a list", lambda product, u: product(u).tolist(), ig.BackendError),
    Fault("returns a column", lambda product, u: product(u)[..., None], ig.ShapeError),
    Fault("returns an item less", lambda product, u: product(u)[..., 1:], ig.ShapeError),
    Fault(
        "returns another precision",
        lambda product, u: product(u).astype(np.result_type(u, np.longdouble)),
        ig.DtypeError,
    ),
    Fault("returns integers", lambda product, u: product(u).real.astype(int), ig.DtypeError),
    Fault("writes into its argument", in_place, ig.OperatorError),
    *(Fault(f"raises {error.__name__}", raising(error), error) for error in RAISED),
    Fault("returns its argument", lambda product, u: u, HONEST),
    Fault("returns zeros", lambda product, u: np.zeros_like(u), HONEST),
    Fault("has the wrong sign", lambda product, u: -product(u), HONEST),
    Fault("returns NaN", partial(filled, np.nan), HONEST),
    Fault("returns Inf", partial(filled, np.inf), HONEST),
    Fault("returns huge numbers", lambda product, u: product(u) * u.dtype.type(1e30), HONEST),
    Fault("adds a constant", lambda product, u: product(u) + u.dtype.type(1), HONEST),
    Fault("adds the cube", lambda product, u: product(u) + u**3, HONEST),
    Fault("is off by 1e-2", partial(noisy, 1e-2), HONEST, noise=1e-2),
    Fault("is off by 1e-7", partial(noisy, 1e-7), HONEST, noise=1e-7),
    Fault("answers in one buffer", in_a_buffer, RIGHT),
    Fault("spoils what was lent before", spoiling, RIGHT),
    Fault("sleeps", slept, RIGHT),
    Fault("solves another system", solving(ig.GMRES()), RIGHT),
    Fault("fails in another system", solving(ig.CG()), RIGHT),
]
