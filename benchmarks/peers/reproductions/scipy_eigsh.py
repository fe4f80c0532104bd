"""**SciPy, eigsh and svds**: an eigenvalue of a matrix that is not symmetric, a singular value that is not there."""

import numpy as np
import scipy.sparse.linalg as sla

A = np.random.default_rng(0).standard_normal((30, 30))
value = sla.eigsh(A, k=1, which="SA", v0=np.ones(30), return_eigenvectors=False)[0]
print(f"eigsh {value:.3f}; the leftmost eigenvalue {np.linalg.eigvals(A).real.min():.3f}")

rng = np.random.default_rng(2)
left, right = (np.linalg.qr(rng.standard_normal((200, 200)))[0] for _ in range(2))
A = (left * np.concatenate([[1e-3], np.linspace(0.1, 1, 199)])) @ right
for solver in ("arpack", "propack"):
    value = sla.svds(A, k=1, which="SM", solver=solver, return_singular_vectors=False, rng=np.random.default_rng(0))[0]
    print(f"svds {solver} {value:.2e}; the smallest singular value is 1.00e-03")
