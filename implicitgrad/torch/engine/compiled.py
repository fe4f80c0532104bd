"""Where ``torch.compile`` ends: a solver runs outside of compiled regions, and differentiates original code.

Used by the entry points, which a compiled caller reaches by a graph break; by the implicit function, whose backward
pass a compiled caller may start; and wherever a graph of the user's map is needed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from typing import Any, TypeVar

import torch

__all__ = ["eager", "uncompiled"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def uncompiled(function: _Function) -> _Function:
    """Return ``function`` as one that ``torch.compile`` does not look into: a graph break, or its error if fullgraph.

    The machinery of compilation is loaded by whoever compiles (it takes seconds), not here.
    """
    disabled: Callable[..., Any] | None = None

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal disabled
        if disabled is None:
            if "torch._dynamo" not in sys.modules:  # nothing has been compiled
                return function(*args, **kwargs)
            disabled = torch.compiler.disable(function, reason="implicitgrad solves eagerly: it decides on values")
        return disabled(*args, **kwargs)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]  # a caller's compiler stops before it gets in
    return update_wrapper(call, function)  # type: ignore[return-value]


# How many of this process's threads want original code. The setting is torch's, one for all threads, and two threads
# that overlap would restore each other's: the first one sets it, the last one takes it back.
_lock = threading.Lock()
_holders: list[Any] = []


@contextmanager
def eager() -> Iterator[None]:
    """Surround calls in which compiled functions run their eager originals.

    The graph of a compiled function cannot be kept for several products (its buffers are donated) nor be differentiated
    twice, and what it captures is hidden in it. Calls without gradients use the compiled code.
    """
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with _lock:
        stance = torch.compiler.set_stance("force_eager") if not _holders else _holders[0]
        _holders.append(stance)
    try:
        yield
    finally:
        with _lock:
            _holders.pop()
            if not _holders:
                stance.__exit__(None, None, None)
