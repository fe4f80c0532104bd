"""The usual wrong gradients, to be compared with one that is wrong, so that the mistake gets a name.

A wrong gradient of a fixed point is mostly ``(df/dw)^T u`` with the wrong adjoint ``u``: that of the one-step gradient,
of a series cut short, of the matrix without its transpose. Each is formed and compared; the closest one is named.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from implicitgrad.adjoint import tangent_solve
from implicitgrad.errors import MissingProductError
from implicitgrad.solvers import GMRES
from implicitgrad.testing.layers.linearization import Linearization
from implicitgrad.testing.layers.subject import Host, Subject
from implicitgrad.torch.operators import jacobian_of

__all__ = ["Suspects"]

_TERMS = 50  # products of a series cut short that are tried
_ALIKE = 1e-3  # a suspect within this part of the wrong gradient is it, or 1/30 of how wrong it is, if that is less


class Suspects:
    """Candidates for the gradient of one cotangent.

    Parameters
    ----------
    at : Linearization
        The map at its fixed point.
    g : tensor, shape (n,)
        The cotangent.
    right : list of ndarray
        The right gradient of every tensor.
    """

    def __init__(self, at: Linearization, g: torch.Tensor, right: list[Host]) -> None:
        self.right = right
        self._found = [(sentence, at.parameter_vjp(u)) for sentence, u in _adjoints(at, g)]

    def explain(self, index: int, wrong: Host) -> tuple[str, float]:
        """Return a sentence on what the wrong gradient of tensor ``index`` is, and how far it is from that."""
        right = self.right[index]
        size = float(np.linalg.norm(wrong))
        if size == 0.0:
            return "no gradient at all. Look for detach(), no_grad() or .data on its way", 0.0
        off = float(np.linalg.norm(wrong - right)) / size
        alike = min(_ALIKE, off / 30)
        best, sentence = alike, ""
        for said, gradients in self._found:
            distance = float(np.linalg.norm(wrong - gradients[index])) / size
            if distance < best * (1 - 1e-9):
                best, sentence = distance, said
        if sentence:
            return sentence, best
        # Up to a factor: the mean in place of the sum, a damped step, the other sign.
        candidates = [("the right gradient", right), *((said, g[index]) for said, g in self._found)]
        for said, candidate in candidates:
            length = float(candidate @ candidate)
            factor = float(candidate @ wrong) / length if length > 0 else 0.0
            distance = float(np.linalg.norm(wrong - factor * candidate)) / size
            if distance < alike:
                return f"{factor:.4g} times {said}", distance
        return (
            "none of the usual mistakes (one step, a series cut short, a missing transpose, a factor). A backward "
            "solve that stopped early looks like this: tighten it, or say with rtol= how exact it is meant to be"
        ), np.nan


def _adjoints(at: Linearization, g: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield sentences and wrong adjoints."""
    yield "the one-step gradient, adjoint u = g (JFB): the backward solve is missing", g
    term = total = g
    for count in range(1, _TERMS + 1):
        term = at.vjp(term)
        total = total + term
        if not bool(torch.linalg.vector_norm(term) > 1e-9 * torch.linalg.vector_norm(total)):
            break
        yield f"the Neumann series cut after K = {count} product{'s' * (count > 1)}", total
    right = at.adjoint(g)
    yield "the gradient with J^T u in the place of u: one product too many, or the term g is lost", at.vjp(right)
    yield from _untransposed(at, g)
    if at.point.is_complex():
        yield (
            "the gradient of the unconjugated system, (I - J)^T in the place of (I - J)^H: a conjugate is missing",
            at.adjoint(g.conj().resolve_conj()).conj().resolve_conj(),
        )
    if at.dense and len(at.subject.layout.shapes) > 1:
        matrix = np.eye(len(at.transposed)) - _block_diagonal(at.subject, at.transposed)
        if np.linalg.cond(matrix) < 1 / at.subject.eps:
            yield (
                "the gradient of a Jacobian without its off-diagonal blocks: the tensors of the state are taken for "
                "independent of each other",
                at.solved(matrix, g),
            )


def _untransposed(at: Linearization, g: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    sentence = "the gradient with (I - J)^-1 in the place of its transpose: the adjoint is solved with J, not with J^T"
    if at.dense:
        yield sentence, at.solved(np.eye(len(at.transposed)) - at.transposed.T, g)
        return
    try:
        J = jacobian_of(at.image, at.point)
        yield sentence, tangent_solve(J, g, solver=GMRES(max_iters=500), on_failure="return").x
    except MissingProductError:
        return


def _block_diagonal(subject: Subject, matrix: Host) -> Host:
    """Return the matrix with zeros where two different tensors of the state meet."""
    width = 2 if subject.layout.dtype.is_complex else 1
    owner = np.repeat(np.arange(len(subject.layout.shapes)), [width * shape.numel() for shape in subject.layout.shapes])
    return np.where(owner[:, None] == owner[None, :], matrix, 0.0)
