"""The user's ``StopIteration``, which a generator turns into a ``RuntimeError`` on its way out (PEP 479).

Methods are generators and products are called inside of them; what a product raises is to come out as it is. Used by
``iteration.py``.
"""

from __future__ import annotations

from typing import Any

__all__ = ["as_raised"]


def as_raised(error: RuntimeError, driver: Any) -> BaseException:
    """Return what a product raised, where ``error`` was made of it by a generator that ``driver`` runs.

    Such an error begins in the frame of ``driver``. One that the user's own generator has made begins further down, and
    is the user's own.
    """
    frames = error.__traceback__
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    made_here = frames is not None and frames.tb_frame.f_code is driver.__code__
    return error.__cause__ if made_here and isinstance(error.__cause__, StopIteration) else error
