"""Gradients through fixed points, roots and minima: against finite differences, BPTT's limit and a dense solve."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad as ig
import implicitgrad.torch as igt

DOUBLE = torch.float64
grad = torch.autograd.grad


def loss_of(leaves):
    """A loss with all derivatives, real for complex leaves."""
    return sum((z.abs().square() * (1 + 0.3 * z.abs().square())).sum() for z in leaves)


def assert_equal(ours, expected, rtol=1e-6):
    """To ``rtol`` of the largest entry of each tensor."""
    for a, b in zip(ours, expected, strict=True):
        assert b.abs().max() > 1e-4, "a gradient of zero proves nothing"
        assert (a - b).abs().max() <= rtol * b.abs().max()


def second(leaves, args):
    """The gradient of the squared norm of the gradient: a mixed second derivative times the first."""
    first = grad(loss_of(leaves), args, create_graph=True)
    return grad(sum(g.abs().square().sum() for g in first), args)


class TestFixedPoint:
    def test_first_order_agrees_with_finite_differences_in_both_modes(self, problem):
        assert torch.autograd.gradcheck(
            problem.layer(), problem.args, nondet_tol=0.0, check_undefined_grad=True, check_forward_ad=True
        )

    def test_second_order_agrees_with_finite_differences(self, problem):
        assert torch.autograd.gradgradcheck(
            problem.layer(), problem.args, gen_non_contig_grad_outputs=True, nondet_tol=0.0
        )

    def test_first_and_second_order_are_the_limit_of_bptt(self, problem):
        ours, unrolled = problem.layer(), problem.unrolled
        assert_equal(
            grad(loss_of(ours(*problem.args)), problem.args), grad(loss_of(unrolled(*problem.args)), problem.args)
        )
        assert_equal(second(ours(*problem.args), problem.args), second(unrolled(*problem.args), problem.args))

    @pytest.mark.parametrize(
        "adjoint",
        [
            ig.Neumann(rtol=1e-12),
            ig.Richardson(rtol=1e-12),
            ig.NormalEquations(ig.CG(rtol=1e-12)),
            ig.GMRES(rtol=1e-12),
            ig.BiCGSTAB(rtol=1e-12),
            ig.LSMR(rtol=1e-12),
            ig.Dense(),
            ig.Auto(rtol=1e-12),
        ],
        ids=lambda s: s.name,
    )
    def test_every_adjoint_solver_agrees_with_bptt(self, problem, adjoint):
        report = igt.Report()
        ours = problem.layer(adjoint=adjoint, report=report)(*problem.args)
        assert_equal(grad(loss_of(ours), problem.args), grad(loss_of(problem.unrolled(*problem.args)), problem.args))
        assert report.status is ig.Status.CONVERGED

    @pytest.mark.parametrize(
        "adjoint", [ig.NormalEquations(ig.CG(rtol=1e-13)), ig.LSMR(rtol=1e-13), ig.Dense(), ig.Neumann(rtol=1e-13)]
    )
    def test_second_order_does_not_depend_on_the_solver(self, maps, adjoint):
        problem = maps["attention"]()
        ours = second(problem.layer(adjoint=adjoint)(*problem.args), problem.args)
        assert_equal(ours, second(problem.unrolled(*problem.args), problem.args))

    @pytest.mark.parametrize("adjoint", [ig.CG(rtol=1e-13), ig.MINRES(rtol=1e-13)], ids=lambda s: s.name)
    def test_solvers_of_symmetric_systems_on_a_symmetric_map(self, adjoint):
        """A Hopfield network in its potentials: ``z = S tanh(z) + x`` has no symmetric J, ``z = grad E(z)`` has."""
        S, x = torch.randn(4, 4, dtype=DOUBLE), torch.randn(4, dtype=DOUBLE, requires_grad=True)
        S = (0.08 * (S + S.T)).requires_grad_()
        f = lambda z, S, x: S.T @ torch.tanh(S @ z) + x
        z = igt.fixed_point(
            f, torch.zeros_like(x), S, x, solver=igt.Picard(rtol=1e-15), adjoint=adjoint, on_failure="return"
        )
        with torch.no_grad():
            J = torch.func.jacrev(f)(z, S, x)
            assert torch.equal(J, J.T) or (J - J.T).abs().max() < 1e-14
        g = torch.randn(4, dtype=DOUBLE)
        u = torch.linalg.solve((torch.eye(4, dtype=DOUBLE) - J).T, g)
        expected = torch.func.vjp(lambda S, x: f(z.detach(), S, x), S, x)[1](u)
        assert_equal(grad(z, (S, x), g), expected, rtol=1e-10)

    def test_a_dense_solve_gives_the_same_gradient(self, maps):
        """``(dF/dw)^T (I - J)^-T g`` with matrices."""
        problem = maps["attention"]()
        (z,) = problem.layer()(*problem.args)
        n, fixed = z.numel(), z.detach()
        J = torch.func.jacrev(problem.f)(fixed, *problem.args).reshape(n, n)
        g = torch.randn_like(z)
        u = torch.linalg.solve((torch.eye(n, dtype=DOUBLE) - J).mT, g.reshape(n)).reshape(z.shape)
        expected = torch.func.vjp(lambda *args: problem.f(fixed, *args), *problem.args)[1](u)
        assert_equal(grad(z, problem.args, g), expected, rtol=1e-10)

    @pytest.mark.parametrize("name", ["scalar", "tanh"])
    def test_third_order_is_the_limit_of_bptt(self, maps, name):
        problem = maps[name]()

        def third(leaves):
            first = grad(loss_of(leaves), problem.args, create_graph=True)
            again = grad(sum(g.pow(3).sum() for g in first), problem.args, create_graph=True)
            return grad(sum(g.pow(2).sum() for g in again), problem.args)

        assert_equal(third(problem.layer()(*problem.args)), third(problem.unrolled(*problem.args)))

    def test_integer_and_sparse_arguments_stand_aside(self, tight):
        """A graph network: edges as indices and as a sparse matrix, to second order."""
        edges, x = torch.tensor([[0, 1, 2, 0], [1, 2, 0, 2]]), torch.randn(3, 1, dtype=DOUBLE, requires_grad=True)
        A = torch.zeros(3, 3, dtype=DOUBLE).index_put((edges[1], edges[0]), torch.ones((), dtype=DOUBLE))
        by_index = lambda z, x, edges: torch.tanh(0.3 * torch.zeros_like(z).index_add(0, edges[1], z[edges[0]]) + x)
        by_matrix = lambda z, x, A: torch.tanh(0.3 * torch.sparse.mm(A, z) + x)
        z0, derivatives = torch.zeros(3, 1, dtype=DOUBLE), []
        for f, graph in ((by_index, edges), (by_matrix, A.to_sparse())):
            derivatives.append(second((igt.fixed_point(f, z0, x, graph, **tight),), (x,)))
        z = z0
        for _ in range(150):
            z = torch.tanh(0.3 * A @ z + x)
        expected = second((z,), (x,))
        for ours in derivatives:
            assert_equal(ours, expected)


class TestRoot:
    """``r(z) = A z + z^3 / 10 - b``."""

    @pytest.fixture
    def problem(self):
        A = torch.randn(3, 3, dtype=DOUBLE)
        return (A @ A.T + torch.eye(3, dtype=DOUBLE)).requires_grad_(), torch.randn(3, dtype=DOUBLE, requires_grad=True)

    def solve(self, A, b):
        r = lambda z, A, b: A @ z + 0.1 * z**3 - b
        settings = {"solver": igt.NewtonKrylov(rtol=1e-14), "adjoint": ig.GMRES(rtol=1e-13), "on_failure": "return"}
        return igt.root(r, torch.zeros(3, dtype=DOUBLE), A, b, **settings)

    def newton(self, A, b):
        """Dense Newton's method, unrolled: its last steps carry the derivatives."""
        z = torch.zeros(3, dtype=DOUBLE)
        for _ in range(12):
            z = z - torch.linalg.solve(A + torch.diag(0.3 * z**2), A @ z + 0.1 * z**3 - b)
        return z

    def test_first_and_second_order_agree_with_finite_differences(self, problem):
        assert torch.autograd.gradcheck(self.solve, problem, nondet_tol=0.0, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(self.solve, problem, gen_non_contig_grad_outputs=True)

    def test_mixed_second_derivatives_equal_those_of_dense_newton(self, problem):
        assert_equal(second((self.solve(*problem),), problem), second((self.newton(*problem),), problem))


class TestArgmin:
    """Ridge regression in closed form, with the penalty and the data as outer parameters; and a quartic."""

    @pytest.fixture
    def problem(self):
        X, y = torch.randn(5, 3, dtype=DOUBLE, requires_grad=True), torch.randn(5, dtype=DOUBLE, requires_grad=True)
        return X, y, torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)

    def solve(self, X, y, penalty):
        loss = lambda w, X, y, penalty: (X @ w - y).square().sum() + penalty * w.square().sum()
        settings = {"solver": igt.NewtonKrylov(inner=ig.CG(), rtol=1e-14), "adjoint": ig.CG(rtol=1e-14)}
        return igt.argmin(loss, torch.zeros(3, dtype=DOUBLE), X, y, penalty, on_failure="return", **settings)

    def closed(self, X, y, penalty):
        return torch.linalg.solve(X.T @ X + penalty * torch.eye(3, dtype=DOUBLE), X.T @ y)

    def test_first_and_second_order_agree_with_finite_differences(self, problem):
        assert torch.autograd.gradcheck(self.solve, problem, nondet_tol=0.0, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(self.solve, problem, gen_non_contig_grad_outputs=True)

    def test_mixed_second_derivatives_equal_those_of_the_closed_form(self, problem):
        assert_equal([self.solve(*problem)], [self.closed(*problem)], rtol=1e-10)
        assert_equal(second((self.solve(*problem),), problem), second((self.closed(*problem),), problem))

    def test_captured_parameters_of_the_loss_to_second_order(self, problem):
        X, y, penalty = problem
        loss = lambda w: (X @ w - y).square().sum() + penalty.exp() * w.pow(4).sum()
        settings = {"solver": igt.NewtonKrylov(inner=ig.CG(), rtol=1e-14), "adjoint": ig.CG(rtol=1e-14)}
        w = igt.argmin(loss, torch.zeros(3, dtype=DOUBLE), on_failure="return", **settings)
        v = w.detach()
        for _ in range(4):  # Newton's method from the minimum: each step is one more exact derivative
            gradient = 2 * X.T @ (X @ v - y) + 4 * penalty.exp() * v**3
            v = v - torch.linalg.solve(2 * X.T @ X + torch.diag(12 * penalty.exp() * v**2), gradient)
        assert_equal(second((w,), problem), second((v,), problem))
