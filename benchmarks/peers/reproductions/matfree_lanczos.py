"""**matfree**: Lanczos goes on where the Krylov space has ended."""

import jax
import jax.numpy as jnp
from matfree import decomp, eig

jax.config.update("jax_enable_x64", True)
lanczos = eig.eigh_partial(decomp.tridiag_sym(6))
print("identity:", lanczos(lambda v: v, jnp.arange(1.0, 10.0))[0])
values = lanczos(lambda v: jnp.arange(1.0, 21.0) * v, jnp.eye(20)[0] + jnp.eye(20)[1])[0]
print(f"diag(1, ..., 20) from e1 + e2: {values.min():.2f} to {values.max():.2f}")
start = jnp.arange(1.0, 7.0)
print("d lambda_min(t I) / dt at 1:", jax.grad(lambda t: lanczos(lambda v, t: t * v, start, t)[0].min())(1.0))
