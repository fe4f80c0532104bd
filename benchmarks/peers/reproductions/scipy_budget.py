"""**SciPy**: no step allowed, and a success."""

import numpy as np
import scipy.sparse.linalg as sla

A, b = np.diag([1.0, 2.0, 3.0]), np.ones(3)
for solve in (sla.cg, sla.minres, sla.bicgstab, sla.lgmres, sla.tfqmr):
    x, info = solve(A, b, maxiter=0)
    print(f"{solve.__name__}: x = {x}, info = {info}")
