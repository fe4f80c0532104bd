"""The bounds of ``gradient_error_bound`` against the equation that attains them: ``d + sigma h + L h^2 / 2 = 0``.

At the state ``h = 0`` its residual is ``d``, its derivative ``sigma``, and the Lipschitz constant of that is ``L``. It
has a root if and only if ``2 L d <= sigma^2``, at the distance ``(sigma - root) / L`` with
``root = sqrt(sigma^2 - 2 L d)``, which is the derivative there.
"""

import math

import pytest

import implicitgrad as ig

SIGMA = 0.1
LIPSCHITZ = [0.5, 2.0, 30.0]
SHARES = [0.1, 0.9, 0.999]  # of the largest residual for which there is a root


def _bound(lipschitz, share, **more):
    residual = share * SIGMA**2 / (2 * lipschitz)
    root = math.sqrt(max(SIGMA**2 - 2 * lipschitz * residual, 0.0))
    given = {"adjoint_norm": 1.0, "jacobian_lipschitz": lipschitz, "cotangent_lipschitz": 0.0, **more}
    return ig.gradient_error_bound(SIGMA, 1e-3, forward_residual=residual, **given), root


@pytest.mark.parametrize("lipschitz", LIPSCHITZ)
@pytest.mark.parametrize("share", SHARES)
def test_the_bound_on_the_state_is_attained(lipschitz, share):
    error, root = _bound(lipschitz, share)
    assert error.state == pytest.approx((SIGMA - root) / lipschitz, rel=1e-10)
    assert error.rigorous


@pytest.mark.parametrize("lipschitz", LIPSCHITZ)
@pytest.mark.parametrize("share", SHARES)
def test_the_adjoint_is_judged_by_the_derivative_at_the_root(lipschitz, share):
    """norm(r) / sigma*, and L norm(z) norm(h - h*) / sigma*, with sigma* = root, not sigma."""
    error, root = _bound(lipschitz, share)
    assert error.adjoint_by_residual == pytest.approx(1e-3 / root, rel=1e-9)
    assert error.adjoint_by_state == pytest.approx(lipschitz * error.state / root, rel=1e-9)


@pytest.mark.parametrize("lipschitz", LIPSCHITZ)
@pytest.mark.parametrize("share", [1.001, 2.0, 50.0])
def test_where_there_need_be_no_root_nothing_is_rigorous(lipschitz, share):
    error, _ = _bound(lipschitz, share)
    assert not error.rigorous
