"""The oracles under one name: problems with a known answer, their builders, and operators that count."""

from implicitgrad.testing.counting import Counted, counted
from implicitgrad.testing.problem import Problem, eps_of, operator_of, scaled_norm
from implicitgrad.testing.systems import make_problem, problem_of

__all__ = ["Counted", "Problem", "counted", "eps_of", "make_problem", "operator_of", "problem_of", "scaled_norm"]
