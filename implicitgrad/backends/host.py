"""Arithmetic of decisions: host values, one a system, as plain Python for one system and as NumPy arrays for a batch.

A solve of one system makes about eighty small decisions beside its products. On 0-d NumPy arrays they took 120 us,
more than a product at n = 1000; on Python's own numbers and booleans a tenth of that. These few functions have both
forms, so that the logic is written once.
"""

from __future__ import annotations

import math
from operator import mul
from typing import Any

import numpy as np

__all__ = ["all_true", "any_true", "dot", "finite", "ldexp", "negate", "pick", "quotient", "square", "squared_norm"]


def all_true(condition: Any) -> bool:
    """Return whether a condition holds for every system."""
    return condition if condition.__class__ is bool else bool(condition.all())


def any_true(condition: Any) -> bool:
    """Return whether a condition holds for any system."""
    return condition if condition.__class__ is bool else bool(condition.any())


def negate(condition: Any) -> Any:
    """Return where a condition does not hold, as ``~True``, which is -2, would not."""
    return not condition if condition.__class__ is bool or condition.ndim == 0 else ~condition


def pick(condition: Any, then: Any, otherwise: Any) -> Any:
    """Return ``then`` for the systems where the condition holds, ``otherwise`` for the rest."""
    if condition.__class__ is bool or condition.ndim == 0:
        return then if condition else otherwise
    return np.where(condition, then, otherwise)


def dot(x: Any, y: Any) -> Any:
    """Return ``sum x_i y_i``, without conjugation, of two lists; of two arrays ``(..., k)``, one for each system."""
    return sum(map(mul, x, y)) if x.__class__ is list else (x * y).sum(axis=-1)


def squared_norm(x: Any) -> Any:
    """Return ``sum |x_i|^2`` of a list; of an array ``(..., k)``, one for each system."""
    if x.__class__ is list:
        return sum([(v * v.conjugate()).real for v in x])
    return (x.real**2 + x.imag**2).sum(axis=-1) if np.iscomplexobj(x) else (x * x).sum(axis=-1)


def square(value: Any) -> Any:
    """Return ``|x|^2``, infinite where that overflows: Python's own ``x ** 2`` and ``abs`` raise there."""
    real, imaginary = value.real, value.imag
    return real * real + imaginary * imaginary


def finite(values: Any) -> Any:
    """Return where values are neither NaN nor infinite."""
    return abs(values) < math.inf


def quotient(numerator: Any, denominator: Any) -> Any:
    """Return the quotient of real host values, 0 where the denominator is 0."""
    if denominator.__class__ is float:
        return numerator / denominator if denominator else 0.0
    with np.errstate(all="ignore"):  # a system with NaN or Inf has a status for it, and needs no warning
        return np.divide(numerator, denominator, out=np.zeros_like(denominator), where=denominator != 0)


def ldexp(values: Any, exponent: Any) -> Any:
    """Return ``values * 2**exponent``, exact; infinite where that overflows."""
    if values.__class__ is not float:
        return np.ldexp(values, exponent)
    try:
        return math.ldexp(values, exponent)
    except OverflowError:
        return math.copysign(math.inf, values)
