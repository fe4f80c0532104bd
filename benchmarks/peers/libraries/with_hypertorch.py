"""hypertorch (Grazzi et al. 2020), whose CG returns the iterate before the last: on no package index, so not run."""

from __future__ import annotations

from typing import Any

__all__ = ["methods"]


def methods(problem: Any) -> dict[str, Any]:
    """Return nothing: no restatement of an algorithm stands in for the library."""
    return {}
