"""The cases, in the order of the table."""

from benchmarks.peers.cases.case import Case
from benchmarks.peers.cases.gradients import GRADIENT_CASES
from benchmarks.peers.cases.linear import LINEAR_CASES
from benchmarks.peers.cases.operators import OPERATOR_CASES
from benchmarks.peers.cases.spectrum import SPECTRUM_CASES

__all__ = ["CASES", "Case"]

CASES: dict[str, Case] = {
    case.name: case for case in (*LINEAR_CASES, *OPERATOR_CASES, *GRADIENT_CASES, *SPECTRUM_CASES)
}
