"""**lineax**: successful, with zeros: NaN in b (CG), exact zeros in b (GMRES), no step allowed (GMRES)."""

import jax.numpy as jnp
import lineax as lx

eye = lx.MatrixLinearOperator(jnp.diag(jnp.array([1.0, 2.0, 3.0])), lx.positive_semidefinite_tag)
shift = lx.MatrixLinearOperator(jnp.roll(jnp.eye(3), 1, axis=0))
for name, A, b, solver in (
    ("CG, NaN", eye, jnp.array([1.0, jnp.nan, 1.0]), lx.CG(1e-5, 0.0)),
    ("GMRES, e1", shift, jnp.eye(3)[0], lx.GMRES(1e-5, 0.0, restart=2)),
    ("GMRES, max_steps=0", eye, jnp.ones(3), lx.GMRES(1e-5, 0.0, max_steps=0)),
):
    solution = lx.linear_solve(A, b, solver, throw=False)
    print(f"{name}: x = {solution.value}, successful: {bool(solution.result == lx.RESULTS.successful)}")
