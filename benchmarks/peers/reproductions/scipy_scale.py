"""**SciPy**: the size of b decides (0 products, ``info = 0``, and x is b or 0)."""

import numpy as np
import scipy.sparse.linalg as sla

A = np.array([[1.0, 0.5], [0.0, 1.0]])
for b in (np.full(2, 1e-200), np.full(2, 1e200), np.full(2, 1e-20)):
    for solve in (sla.gmres, sla.bicgstab):
        with np.errstate(all="ignore"):
            x, info = solve(A, b)
            residual = np.linalg.norm((b - A @ x) / b[0]) / np.sqrt(2)
        print(f"b = {b[0]:.0e}, {solve.__name__}: info = {info}, residual {residual:.1e}")
