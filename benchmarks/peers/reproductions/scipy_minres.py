"""**SciPy, minres**: success for a system without a solution, and after one step for a large right-hand side."""

import numpy as np
import scipy.sparse.linalg as sla

A, b = np.diag([0.0, 1.0, 2.0, 3.0]), np.ones(4)
x, info = sla.minres(A, b)
print(f"singular: info = {info}, residual {np.linalg.norm(b - A @ x) / np.linalg.norm(b):.2f}")

A, b = np.diag([1.0, 2.0, 3.0]), 1e12 * np.ones(3)
x, info = sla.minres(A, b, rtol=1e-4)
print(f"b = 1e12: info = {info}, residual {np.linalg.norm(b - A @ x) / np.linalg.norm(b):.2f}")
