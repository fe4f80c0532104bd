"""**Optimistix, jaxopt**: a forward pass that was stopped is in the result, its gradient is returned all the same."""

import jax
import jax.numpy as jnp
import optimistix as optx

jax.config.update("jax_enable_x64", True)


def z(b, steps):
    solver = optx.FixedPointIteration(1e-10, 1e-10)
    return optx.fixed_point(lambda z, b: jnp.tanh(0.9 * z + b), solver, jnp.array(0.0), b, max_steps=steps, throw=False)


for steps in (2, 1000):
    slope, good = jax.grad(lambda b, n=steps: z(b, n).value)(0.3), z(0.3, steps).result == optx.RESULTS.successful
    print(f"max_steps={steps}: dz/db = {slope:.3f}, successful: {bool(good)}")
