"""**SciPy, cg**: success at a residual thousands of times the bound; the residual is that of the recurrence."""

import numpy as np
import scipy.sparse.linalg as sla

rng = np.random.default_rng(0)
q = np.linalg.qr(rng.standard_normal((300, 300)))[0]
A = ((q * np.geomspace(1e-5, 1, 300)) @ q.T).astype(np.float32)
b = rng.standard_normal(300).astype(np.float32)
x, info = sla.cg(A, b, rtol=1e-6)
residual = np.linalg.norm(b - A.astype(float) @ x) / np.linalg.norm(b)
print(f"info = {info}, residual {residual:.1e}, asked for 1e-06")
