"""Of the iterates on the way the best comes back, wherever a method is cut short; who has ended stands still."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import implicitgrad as ig
from implicitgrad.testing import make_problem


def _oscillating(solver, seed):
    """Residuals that rise and fall: CG on a stretched spectrum, BiCGSTAB far from normal."""
    if isinstance(solver, ig.CG):
        rng = np.random.default_rng(seed)
        q = np.linalg.qr(rng.standard_normal((25, 25)))[0]
        return (q * np.geomspace(1e-3, 1.0, 25)) @ q.T, rng.standard_normal(25)
    problem = make_problem("indefinite", 25, seed)
    return problem.dense, problem.rhs


@pytest.mark.parametrize("cap", [5, 9, 14])
@pytest.mark.parametrize("make", [ig.CG, ig.BiCGSTAB])
def test_no_iterate_on_the_way_was_better_than_the_one_returned(make, cap):
    """residual_norm <= min(history), where the last entry is not the smallest; alone and in a batch."""
    solver = make(max_iters=cap)
    matrices, sides = zip(*(_oscillating(solver, seed) for seed in range(8)), strict=True)
    together = solver.solve(ig.DenseOperator(np.stack(matrices)), np.stack(sides))
    rises = 0
    for i, (matrix, b) in enumerate(zip(matrices, sides, strict=True)):
        alone = solver.solve(ig.DenseOperator(matrix), b)
        rises += alone.history[-1] > 1.1 * alone.history.min()
        assert alone.residual_norm <= 1.0001 * alone.history.min()
        assert together.residual_norm[i] <= 1.0001 * np.nanmin(together.history[:, i])
    assert rises  # or there was nothing to choose between


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(0, 12), st.sampled_from([0.0, 0.4]), st.booleans())
def test_a_stationary_method_hands_back_its_best_iterate(seed, size, cap, damping, warm):
    """Its residuals are known a product late: a guess of them handed back another iterate, up to 400 times worse."""
    rng = np.random.default_rng(seed)
    matrices = np.eye(size) - rng.uniform(0.5, 2.5, (6, 1, 1)) * rng.standard_normal((6, size, size)) / size**0.5
    sides, step = rng.standard_normal((6, size)), 1 - damping
    starts = rng.standard_normal((6, size)) if warm else None
    for solver in (
        ig.Neumann(max_iters=max(cap, 1), rtol=1e-9, damping=damping),
        ig.Richardson(max_iters=cap, rtol=1e-9, damping=damping),
    ):
        together = solver.solve(ig.DenseOperator(matrices), sides, starts)
        for i, (A, b) in enumerate(zip(matrices, sides, strict=True)):
            start = None if starts is None else starts[i]
            alone = solver.solve(ig.DenseOperator(A), b, start)
            for solution in (alone, together):
                status, x = (solution.status, solution.x) if solution is alone else (together.status[i], together.x[i])
                count = solution.num_iters if solution is alone else together.num_iters[i]
                z = np.zeros(size) if start is None else start
                iterates = [] if isinstance(solver, ig.Neumann) and start is None else [z]
                for _ in range(count + isinstance(solver, ig.Neumann)):
                    z = z + step * (b - A @ z)
                    iterates.append(z)
                residuals = [np.linalg.norm(b - A @ z) for z in iterates]
                mine = np.linalg.norm(b - A @ x)
                noise = 1e-12 * np.linalg.norm(A) * max(map(np.linalg.norm, iterates))
                assert status is ig.Status.CONVERGED or mine <= (1 + 1e-9) * min(residuals) + noise
                told = solution.residual_norm if solution is alone else together.residual_norm[i]
                assert abs(told - mine) <= 1e-9 * mine + noise


class Rows(ig.LinearOperator):
    """One matrix a system; remembers in which products a system took part."""

    def __init__(self, matrices):
        self.inner = ig.DenseOperator(matrices)
        self.shape, self.dtype, self.symmetric = self.inner.shape, self.inner.dtype, True
        self.taking_part = []

    def apply(self, x):
        self.taking_part.append(np.any(x != 0, axis=-1))
        return self.inner.apply(x)


@pytest.mark.parametrize("solver", [ig.Neumann(), ig.Richardson(), ig.CG(), ig.MINRES(), ig.GMRES()], ids=repr)
def test_a_system_that_has_ended_takes_no_further_part_in_products(solver):
    """Its vector is zero from then on, but for the check at the end: whatever made it end is gone from the products."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((16, 16)))[0]
    easy, slow = ((q * np.linspace(1 - width, 1 + width, 16)) @ q.T for width in (0.02, 0.9))
    operator = Rows(np.stack([easy, slow]))
    solution = solver.solve(operator, rng.standard_normal((2, 16)))
    assert solution.converged.all()
    quick, slower = solution.num_iters
    assert slower > quick + 4
    parts = np.array(operator.taking_part)
    assert parts[:, 0].sum() <= quick + 1
    assert parts[:, 1].sum() >= slower
