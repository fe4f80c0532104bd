"""The state of the world that a solve has no business with, and a guard that compares it before and after."""

import contextlib
import gc
import os
import random
import signal
import sys
import threading
import warnings

import numpy as np


def _torch_state():
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_rng_state"):
        return {}
    return {
        "torch's grad mode": torch.is_grad_enabled(),
        "torch's inference mode": torch.is_inference_mode_enabled(),
        "torch's generator": torch.get_rng_state().numpy().tobytes(),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "torch's autocast cache": torch.is_autocast_cache_enabled(),
        "torch's anomaly mode": torch.is_anomaly_enabled(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "torch's threads": torch.get_num_threads(),
        "torch's function modes": torch.overrides._get_current_function_mode_stack(),
        "torch's dispatch modes": torch.utils._python_dispatch._get_current_dispatch_mode_stack(),
    }


def state():
    """Return everything that is looked at, by name; what is equal is unchanged."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the legacy generator is the global one
    return {
        "NumPy's error state": (np.geterr(), np.geterrcall(), np.getbufsize()),
        "NumPy's print options": np.get_printoptions(),
        "NumPy's global generator": (name, keys.tobytes(), *rest),
        "Python's global generator": random.getstate(),
        "the warnings filters": (list(warnings.filters), warnings.showwarning),
        "the environment": dict(os.environ),
        "the signal handlers": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)},
        "the recursion limit": sys.getrecursionlimit(),
        "the collector": (gc.isenabled(), gc.get_threshold()),
        "the profiler": sys.getprofile(),
        "the exception hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook),
        "the number of threads": threading.active_count(),
        **_torch_state(),
    }


def bits(value):
    """Return what must stay the same of an array (bytes and layout), or of an object's attributes (identity)."""
    if hasattr(value, "detach"):
        value = value.detach().numpy()
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype, value.strides, value.tobytes()
    return {name: id(attribute) for name, attribute in vars(value).items()}


@contextlib.contextmanager
def undisturbed(*values):
    """Assert at the end, however the block ends, that the world and the given arrays and objects are as before."""
    before, held = state(), [bits(value) for value in values]
    try:
        yield
    finally:
        after = state()
        changed = [name for name, value in before.items() if value != after[name]]
        assert not changed, f"changed: {', '.join(changed)}"
        for value, was in zip(values, held, strict=True):
            assert bits(value) == was, f"{type(value).__name__} has changed"
