"""vjp_operator: the Jacobian of a torch map, from one linearization."""

import warnings

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad as ig
import implicitgrad.torch as igt


def maps():
    W = torch.randn(6, 6, dtype=torch.float64) * 0.4
    conv = torch.nn.Conv2d(2, 2, 3, padding=1).double()
    norm = torch.nn.GroupNorm(1, 2).double()
    cell = torch.nn.GRUCell(4, 4).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    return {
        "tanh": (lambda z: torch.tanh(z @ W.T + 0.1), torch.randn(6, dtype=torch.float64)),
        "conv": (lambda z: norm(torch.tanh(conv(z))), torch.randn(1, 2, 5, 5, dtype=torch.float64)),
        "gru": (lambda z: cell(x, z), torch.randn(3, 4, dtype=torch.float64)),
        "scalar": (lambda z: torch.cos(z), torch.tensor(0.3, dtype=torch.float64)),
        "constant": (lambda z: torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)),
    }


@pytest.mark.parametrize("name", ["tanh", "conv", "gru", "scalar", "constant"])
def test_products_are_those_of_the_jacobian(name):
    """J v and J^T u equal the products of the matrix that torch.func.jacrev forms."""
    torch.manual_seed(0)
    f, z = maps()[name]
    dense = torch.func.jacrev(f)(z).reshape(z.numel(), z.numel())
    J = igt.vjp_operator(f, z)
    u, v = torch.randn(2, z.numel(), dtype=torch.float64)
    torch.testing.assert_close(J.rmatvec(u), dense.T @ u)
    torch.testing.assert_close(J.matvec(v), dense @ v)
    assert ig.check_operator(J).ok


def test_forward_mode_gives_the_same_jvp():
    W = torch.randn(5, 5, dtype=torch.float64)
    z, v = torch.randn(2, 5, dtype=torch.float64)
    f = lambda z: torch.tanh(W @ z)
    reverse, forward = igt.vjp_operator(f, z), igt.vjp_operator(f, z, forward_mode=True)
    torch.testing.assert_close(forward.matvec(v), reverse.matvec(v))


def test_a_nested_state_is_one_vector():
    """Blocks couple: the Jacobian of a state of three tensors equals that of the flattened map."""

    def f(state):
        a, (b, c) = state["a"], state["bc"]
        return {"a": torch.tanh(b.sum() + a), "bc": (torch.sin(a[:2]) * c, c * 0.1 + a.mean())}

    state = {
        "a": torch.randn(3, dtype=torch.float64),
        "bc": (torch.randn(2, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)),
    }

    def flat_map(flat):
        out = f({"a": flat[:3], "bc": (flat[3:5], flat[5])})
        return torch.cat([out["a"], out["bc"][0], out["bc"][1].reshape(1)])

    flat = torch.cat([state["a"], state["bc"][0], state["bc"][1].reshape(1)])
    dense = torch.func.jacrev(flat_map)(flat)
    J = igt.vjp_operator(f, state)
    assert J.shape == (6, 6)
    columns = torch.stack([J.matvec(e) for e in torch.eye(6, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(columns, dense)


def test_samples_of_a_batch_are_systems():
    """With batch_ndim=1 each sample is solved with its own Jacobian."""
    W = torch.randn(4, 4, dtype=torch.float64) * 0.3
    z, g = torch.randn(2, 5, 4, dtype=torch.float64)
    J = igt.vjp_operator(lambda z: torch.tanh(z @ W.T), z, batch_ndim=1)
    sol = ig.adjoint_solve(J, g, solver=ig.GMRES(rtol=1e-12))
    slopes = 1 - torch.tanh(z @ W.T) ** 2
    for i in range(5):
        dense = slopes[i][:, None] * W
        expected = torch.linalg.solve((torch.eye(4, dtype=torch.float64) - dense).T, g[i])
        torch.testing.assert_close(sol.x[i], expected)
    with pytest.raises(ig.ShapeError, match="graph belongs to that batch"):
        J.rmatvec(torch.randn(4, dtype=torch.float64))


def test_complex_products_are_conjugate_transposes():
    """torch's VJP of a holomorphic map is J^H u."""
    M = torch.randn(4, 4, dtype=torch.complex128)
    J = igt.vjp_operator(lambda z: M @ z, torch.randn(4, dtype=torch.complex128))
    u = torch.randn(4, dtype=torch.complex128)
    torch.testing.assert_close(J.rmatvec(u), M.conj().T @ u)
    torch.testing.assert_close(J.matvec(u), M @ u)
    assert ig.check_operator(J).ok


def test_products_agree_with_numpy_solves_on_every_solver():
    W = torch.randn(12, 12, dtype=torch.float64) * 0.15
    h = torch.randn(12, dtype=torch.float64)
    dense = (1 - torch.tanh(W @ h) ** 2)[:, None] * W
    g = torch.randn(12, dtype=torch.float64)
    expected = torch.linalg.solve((torch.eye(12, dtype=torch.float64) - dense).T, g)
    J = igt.vjp_operator(lambda z: torch.tanh(W @ z), h)
    for solver in (
        ig.Neumann(),
        ig.Richardson(),
        ig.NormalEquations(),
        ig.GMRES(),
        ig.BiCGSTAB(),
        ig.LSMR(),
        ig.Dense(),
    ):
        sol = ig.adjoint_solve(J, g, solver=solver)
        torch.testing.assert_close(sol.x, expected, rtol=1e-6, atol=1e-6)
        assert sol.x.dtype == g.dtype


@pytest.mark.parametrize(
    ("z", "error", "words"),
    [
        (torch.zeros(3, dtype=torch.int64), ig.DtypeError, "int64"),
        ([1.0, 2.0], ig.BackendError, "leaf of type float"),
        ((), ig.BackendError, "without tensors"),
        ((torch.zeros(2), torch.zeros(2, dtype=torch.float64)), ig.DtypeError, "one dtype"),
    ],
)
def test_what_is_no_state_is_refused(z, error, words):
    with pytest.raises(error, match=words):
        igt.vjp_operator(lambda z: z, z)


def test_a_map_that_changes_shape_is_refused():
    with pytest.raises(ig.ShapeError, match=r"f returned shape \(2, 3\)"):
        igt.vjp_operator(lambda z: z + torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ig.DtypeError, match="same dtype"):
        igt.vjp_operator(lambda z: z.double(), torch.zeros(3))
    with pytest.raises(ig.BackendError, match="structure"):
        igt.vjp_operator(lambda z: (z, z), torch.zeros(3))


def test_a_check_of_a_batch_says_nothing_to_the_user():
    """The mask of its first system is a broadcast view of NumPy's, of which torch warns: once, unless it is told to."""
    J = igt.vjp_operator(lambda z: 0.5 * torch.sin(z), torch.ones(4, 3, dtype=torch.float64), batch_ndim=1)
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert ig.check_operator(J).ok
    finally:
        torch.set_warn_always(always)
