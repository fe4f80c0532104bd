"""diagnose: numbers of the dense matrix, words that follow from them, a page, a dictionary and a picture."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad.diagnose import diagnose
from implicitgrad.diagnose.advice import useful_damping


def matrix(seed=0, n=40, scale=0.6):
    return np.random.default_rng(seed).standard_normal((n, n)) * scale / n**0.5


def symmetric(values, seed=0):
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values),) * 2))[0]
    return (Q * values) @ Q.T


# -- numbers -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scale", [0.3, 0.9, 1.6])
def test_the_numbers_are_those_of_the_dense_matrix(scale):
    J = matrix(scale=scale)
    d = diagnose(ig.DenseOperator(J))
    sigma = np.linalg.svd(np.eye(40) - J, compute_uv=False)[-1]
    norm = np.linalg.norm(J, 2)
    assert d.radius == pytest.approx(np.abs(np.linalg.eigvals(J)).max(), rel=1e-4)
    assert d.norm == pytest.approx(norm, rel=1e-3)
    assert d.sigma_min == pytest.approx(sigma, rel=1e-3)
    low, high = d.sigma_min_interval
    assert low <= sigma <= high
    assert d.contraction is bool(norm < 1)
    largest = np.linalg.eigvalsh(J.T @ J - J @ J.T)[-1] / norm**2
    assert d.departure == pytest.approx(largest, rel=0.1)


def test_the_neumann_errors_are_measured_and_within_proposition_2():
    J, g = matrix(scale=0.4), np.random.default_rng(1).standard_normal(40)
    d = diagnose(ig.DenseOperator(J), g, steps=(0, 1, 5, 20))
    exact = np.linalg.solve((np.eye(40) - J).T, g)
    for row in d.neumann:
        z = sum(np.linalg.matrix_power(J.T, t) @ g for t in range(row.products + 1))
        true = np.linalg.norm(z - exact) / np.linalg.norm(exact)
        assert row.error == pytest.approx(true, rel=1e-3, abs=2e-8)
        assert row.error <= row.bound * (1 + 1e-6) + 2e-8
        # From an upper bound on the norm: what was found of it lies below, and would bound nothing.
        norm, power = np.linalg.norm(J, 2), row.products + 1
        assert norm**power * (1 - 1e-12) <= row.bound <= (1.05 * norm) ** power
    assert [row.products for row in d.neumann] == [0, 1, 5, 20]


def test_each_solver_is_run_and_the_cheapest_that_converged_is_recommended():
    d = diagnose(ig.DenseOperator(matrix(scale=0.6)))
    runs = {run.name: run for run in d.solvers}
    assert set(runs) == {"Neumann", "GMRES", "BiCGSTAB", "NormalEquations(CG)", "LSMR"}
    assert all(run.relative_residual <= 1e-4 for run in runs.values())
    assert runs[d.recommended].products == min(run.products for run in runs.values())
    for run in runs.values():
        assert run.course[-1][0] == run.products
        assert run.course[-1][1] < run.course[0][1]


def test_a_symmetric_jacobian_is_tried_with_the_solvers_for_it():
    d = diagnose(ig.DenseOperator(symmetric(np.linspace(-0.5, 0.8, 30)), symmetric=True))
    assert {"CG", "MINRES"} <= {run.name for run in d.solvers}
    assert d.departure < 1e-10


def test_a_nilpotent_shift_is_as_far_from_normal_as_can_be():
    d = diagnose(ig.DenseOperator(np.diag(np.full(19, 0.9), 1)))
    assert d.departure == pytest.approx(1.0, rel=0.05)
    assert any("far from normal" in sentence for sentence in d.advice)


def test_without_a_jvp_it_says_what_it_cannot_know():
    J = matrix()
    d = diagnose(ig.VJPOperator(lambda u: u @ J, size=40))
    assert d.sigma_min is d.norm is d.contraction is d.departure is None
    assert d.radius == pytest.approx(np.abs(np.linalg.eigvals(J)).max(), rel=1e-4)
    assert "Give the operator a JVP" in str(d)
    assert "sigma_min(I - J)" not in str(d)


def test_a_batch_is_reported_by_its_worst_systems():
    J = np.stack([matrix(0, scale=0.3), matrix(1, scale=0.8)])
    d = diagnose(ig.DenseOperator(J))
    assert d.systems == 2
    assert d.radius == pytest.approx(max(np.abs(np.linalg.eigvals(m)).max() for m in J), rel=1e-4)
    assert d.sigma_min == pytest.approx(min(np.linalg.svd(np.eye(40) - m, compute_uv=False)[-1] for m in J), rel=1e-3)
    assert "the worst of 2 systems" in str(d)


def test_the_kind_of_the_cotangent_decides():
    d = diagnose(ig.DenseOperator(matrix().astype(np.float32)))
    assert d.dtype == "float32"
    c = matrix() + 1j * matrix(1)
    d = diagnose(ig.DenseOperator(c * 0.5))
    assert d.dtype == "complex128"
    assert d.radius == pytest.approx(np.abs(np.linalg.eigvals(c * 0.5)).max(), rel=1e-4)


# -- words -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("J", "verdict", "sentence"),
    [
        (matrix(scale=0.4), "healthy", "is right to 1%"),
        (
            symmetric(np.linspace(-0.5, 0.98, 40)),
            "slow: plain iteration takes hundreds",
            "A Neumann series takes about K",
        ),
        (symmetric(np.linspace(-2.0, 0.5, 40)), "slow: plain iteration diverges", "Damp: Picard"),
        (symmetric(np.linspace(0.2, 2.0, 40)), "slow: plain iteration diverges", "damping cannot help"),
        (symmetric(np.linspace(-0.5, 0.9999, 40)), "sick: I - J is nearly singular", "igt.lambda_min_penalty"),
        (symmetric(np.linspace(-0.5, 1.0, 40)), "sick: I - J is singular to rounding", "igt.lambda_min_penalty"),
        (2.0 * symmetric(np.where(np.arange(40) % 2, 0.1, 0.3)), "healthy", "GMRES"),
        (np.full((4, 4), np.nan), "sick: J holds NaN or Inf", "Look at the map"),
    ],
)
def test_the_verdict_and_the_advice_follow_from_the_spectrum(J, verdict, sentence):
    d = diagnose(ig.DenseOperator(J))
    assert d.verdict.startswith(verdict), d
    assert any(sentence in line for line in d.advice), d


def test_a_state_that_is_not_fixed_comes_first():
    d = diagnose(ig.DenseOperator(matrix(scale=0.4)), fixed_point_residual=1e-3)
    assert d.verdict == "sick: this is no fixed point"
    assert d.advice[0].startswith("Solve the forward problem better first")
    assert diagnose(ig.DenseOperator(matrix(scale=0.4)), fixed_point_residual=1e-12).verdict == "healthy"


@pytest.mark.parametrize("seed", range(8))
def test_the_damping_that_is_advised_contracts_and_is_none_where_none_does(seed):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(6) * 2 + 1j * rng.standard_normal(6)
    left = np.where(values.real < 1, values, 2 - values.real + 1j * values.imag - 1e-3)
    damping = useful_damping(left)
    assert 0 <= damping < 1
    assert np.abs((1 - damping) * left + damping).max() < 1
    assert useful_damping(np.append(left, 1.5)) is None


def test_rows_that_mix_are_found_without_a_jvp_too():
    """A tenth of the mean, and no adjoint identity to fail; the radius is that of all 120 numbers as one system."""
    mixed = lambda u: u @ matrix(scale=0.4) + 0.1 * u.mean(axis=0)
    d = diagnose(ig.VJPOperator(mixed, 40), np.zeros((3, 40)) + np.arange(40))
    assert d.verdict == "sick: the 3 rows are one system (COUPLED)"
    dense = np.stack([mixed(row.reshape(3, 40)).reshape(-1) for row in np.eye(120)])
    assert d.size == 120
    assert d.radius == pytest.approx(np.abs(np.linalg.eigvals(dense)).max(), rel=1e-4)


def _random_products(**settings):
    rng = np.random.default_rng(0)
    J = matrix()
    drop = lambda v: v * (rng.uniform(size=v.shape) < 0.9)
    return ig.VJPOperator(lambda u: drop(u) @ J, 40, jvp=lambda v: drop(v) @ J.T, **settings)


NO_MATRIX = {
    "a jvp that is the vjp": ig.VJPOperator(lambda u: u @ matrix(), 40, jvp=lambda v: v @ matrix()),
    "symmetry claimed": ig.VJPOperator(lambda u: u @ matrix(), 40, symmetric=True),
    "a batch": ig.VJPOperator(lambda u: u @ matrix(), 40, jvp=lambda v: v @ matrix(), like=np.zeros((3, 40))),
    "random": _random_products(),
    "a random batch": _random_products(like=np.zeros((3, 40))),
}


@pytest.mark.parametrize("kind", NO_MATRIX)
def test_products_that_are_of_no_matrix_are_never_healthy_and_nothing_is_built_on_them(kind):
    d = diagnose(NO_MATRIX[kind], fixed_point_residual=1e-12)
    assert d.verdict == "sick: the products with J contradict each other"
    assert len(d.advice) == 1
    assert d.advice[0].startswith("Do not rely on these numbers: ")
    assert "ig.check_operator(J)" in d.advice[0]
    assert ("two identical products differ" in d.advice[0]) == ("random" in kind)
    assert ("batch_ndim=0" in d.advice[0]) == ("batch" in kind)
    assert "may be off" not in str(replace(d, fixed_point_residual=1e-3))


def _mismatched(d):
    return tuple(replace(run, status="ADJOINT_MISMATCH") if run.name == "LSMR" else run for run in d.solvers)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda d: {"departure": 7.7}, "sick: the products with J contradict"),
        (lambda d: {"departure": 7.7, "norm_converged": False}, "unsure: the search for norm(J)"),
        (lambda d: {"norm": 0.8 * d.radius, "norm_upper": 0.9 * d.radius}, "sick: the products with J contradict"),
        (lambda d: {"norm": 0.8 * d.radius}, "unsure: the search for norm(J)"),
        (lambda d: {"solvers": _mismatched(d)}, "sick: the products with J contradict"),
        (lambda d: {"matched": False}, "sick: the products with J contradict"),
        (lambda d: {"norm": 0.9995 * d.radius, "departure": 1.0005}, "healthy"),  # by rounding
    ],
)
def test_what_no_matrix_has_is_never_healthy(change, verdict):
    """rho(J) <= norm(J), departure <= 1, <u, J v> = <J^T u, v>: a report that breaks one of them is no good news."""
    d = diagnose(ig.DenseOperator(matrix(scale=0.4)))
    assert d.verdict == "healthy"
    assert replace(d, **change(d)).verdict.startswith(verdict)


def test_a_search_that_did_not_end_is_told_with_what_is_known_in_its_place():
    d = diagnose(ig.DenseOperator(matrix(scale=0.4)))
    assert d.contraction
    d = replace(d, radius_converged=False)
    assert d.verdict == "healthy"
    assert "iteration converges, since norm(J) < 1; the search did not converge" in str(d)
    d = replace(d, norm=1.2, norm_upper=1.3)
    assert d.verdict == "healthy"
    assert "iteration converges, as Neumann did; the search did not converge" in str(d)
    d = replace(d, solvers=tuple(run for run in d.solvers if run.name != "Neumann"))
    assert d.verdict == "unsure: the search for rho(J) did not converge"
    assert "iteration perhaps converges; the search did not converge" in str(d)
    assert d.advice[0].startswith("Raise max_iters")
    d = replace(d, radius_converged=True, sigma_min_converged=False)
    assert d.verdict == "healthy", "the lower end of the interval is far from zero"
    assert replace(d, sigma_min_interval=(0.0, d.sigma_min)).verdict.startswith("unsure: the search for sigma_min")


def test_the_row_of_the_bounds_names_the_number_that_is_raised_to_a_power():
    """What was found of the norm lies below it, so the bound is a power of the upper bound, which the page tells."""
    d = diagnose(ig.DenseOperator(matrix(scale=0.9)))
    assert d.norm < d.norm_upper
    assert f"no contraction; at most {d.norm_upper:.4g}" in str(d)
    (row,) = (line for line in str(d).splitlines() if f"at most {d.norm_upper:.4g}^(K+1)" in line)
    assert row.split()[-4:] == [f"{d.norm_upper ** (k + 1):.1e}" for k in (1, 5, 10, 20)]
    (row,) = (line for line in str(diagnose(NO_MATRIX["a jvp that is the vjp"])).splitlines() if "^(K+1)" in line)
    assert row.split()[-4:] == ["unknown"] * 4, "without an upper bound nothing is bounded, nor does anything diverge"


# -- page, dictionary, picture -----------------------------------------------------------------------------------------
REPORTS = {
    "healthy": ig.DenseOperator(matrix()),
    "singular": ig.DenseOperator(np.eye(5)),
    "zero": ig.DenseOperator(np.zeros((5, 5))),
    "diverges": ig.DenseOperator(-40 * np.eye(5) + matrix(n=5)),
    "one number": ig.DenseOperator(np.array([[0.5]])),
    "batch": ig.DenseOperator(np.stack([matrix(n=8), matrix(1, n=8)])),
    "no jvp": ig.VJPOperator(lambda u: 0.5 * u, size=6),
    "not finite": ig.DenseOperator(np.full((4, 4), np.nan)),
}


@pytest.mark.parametrize("kind", REPORTS)
def test_every_report_can_be_read_stored_and_drawn(kind, tmp_path):
    """A page of lines that fit a terminal, JSON without Infinity, a picture; for extreme operators too."""
    d = diagnose(REPORTS[kind])
    page = str(d)
    assert len(page.splitlines()) < 45
    assert max(map(len, page.splitlines())) <= 110
    stored = json.loads(json.dumps(d.to_dict(), allow_nan=False))
    assert stored["verdict"] == d.verdict
    assert stored["size"] == d.size
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "report.png" if kind in ("healthy", "not finite") else None  # a file takes two seconds
    figure = d.plot(path)
    assert path is None or path.read_bytes().startswith(b"\x89PNG")
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Eigenvalues of J",
        "Course of the adjoint solve",
        "Singular values of I - J",
    ]


@pytest.mark.parametrize("values", [np.linspace(-0.5, 0.996, 40), np.array([0.0, 0.0, 0.3])])
def test_the_picture_shows_every_end_and_the_eigenvalue_at_one(values):
    """A solver's course ends at the residual that was recomputed, within the axes; nothing covers an eigenvalue."""
    pytest.importorskip("matplotlib")
    d = diagnose(ig.DenseOperator(symmetric(values)))
    left, middle, _ = d.plot().axes
    ends = {tuple(line.get_xydata()[0]) for line in middle.lines if line.get_marker() == "o"}
    converged = [run for run in d.solvers if run.status == "CONVERGED"]
    assert converged
    low, high = middle.get_ylim()
    for run in converged:
        assert (run.products, max(run.relative_residual, d.eps)) in ends
        assert low < max(run.relative_residual, d.eps) < high
    (one,) = (line for line in left.lines if line.get_marker() == "+")
    assert all(dots.get_zorder() > one.get_zorder() for dots in left.collections)


def test_the_report_does_not_load_matplotlib_until_a_picture_is_wanted():
    code = "import sys, implicitgrad.diagnose; assert 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_same_seed_gives_the_same_report():
    a, b = (diagnose(ig.DenseOperator(matrix()), seed=3) for _ in range(2))
    assert str(a) == str(b)


def test_mistakes_are_refused_in_words():
    J = ig.DenseOperator(matrix())
    with pytest.raises(ig.SettingTypeError, match="expected a LinearOperator"):
        diagnose(matrix())
    with pytest.raises(ig.ShapeError, match="expected a square Jacobian"):
        diagnose(ig.DenseOperator(np.ones((3, 2))))
    for settings in ({"rtol": 0.0}, {"rtol": 2.0}, {"steps": (1.5,)}, {"max_iters": 0}):
        with pytest.raises(ig.SettingError, match=next(iter(settings))):
            diagnose(J, **settings)
