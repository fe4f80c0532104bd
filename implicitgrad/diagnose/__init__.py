"""The report on a fixed point: is its gradient safe, which solver, how many steps, and what to do.

``diagnose(J)`` measures, a ``Diagnosis`` tells. For a torch map there is ``implicitgrad.torch.diagnose``, which knows
the fixed point too. Matplotlib is imported by ``Diagnosis.plot()`` alone.
"""

from implicitgrad.diagnose.measure import diagnose
from implicitgrad.diagnose.report import Diagnosis, NeumannError, SolverRun

__all__ = ["Diagnosis", "NeumannError", "SolverRun", "diagnose"]
