"""**SciPy, lsmr** (as LSMR is defined; matfree and lineax alike): a backward error of 1e-6, a residual of 1e-2."""

import numpy as np
import scipy.sparse.linalg as sla

rng = np.random.default_rng(5)
left, right = (np.linalg.qr(rng.standard_normal((40, 40)))[0] for _ in range(2))
A = (left * np.geomspace(1e-4, 1, 40)) @ right
b = left[:, :6] @ rng.standard_normal(6)
x, istop, *_ = sla.lsmr(A, b, atol=1e-6, btol=1e-6, maxiter=2000)
print(f"istop = {istop}, residual {np.linalg.norm(b - A @ x) / np.linalg.norm(b):.1e}")
