"""Linear maps that are known only through their products: ``LinearOperator`` and the ways to make and combine them."""

from implicitgrad.operators.algebra import identity_minus
from implicitgrad.operators.base import LinearOperator
from implicitgrad.operators.check import check_operator
from implicitgrad.operators.dense import DenseOperator
from implicitgrad.operators.vjp import VJPOperator

__all__ = ["DenseOperator", "LinearOperator", "VJPOperator", "check_operator", "identity_minus"]
