"""**jaxopt**: the default adjoint solve has no flag; here for a cotangent of 1e-25 in float32, and for A = 0."""

import jax.numpy as jnp
from jaxopt.linear_solve import solve_normal_cg

A = jnp.array([[1.0, 0.5], [0.0, 1.0]])
print(
    "b = 1e-25:",
    solve_normal_cg(lambda u: A @ u, jnp.full(2, 1e-25)),
    "exact",
    jnp.linalg.solve(A, jnp.ones(2)) * 1e-25,
)
print("A = 0, b = 1:", solve_normal_cg(lambda u: 0.0 * u, jnp.ones(2)))
