"""The pickles of Planetoid, read without running anything that they name.

A pickle is a program: its ``GLOBAL`` fetches any function of any module and its ``REDUCE`` calls it. What Planetoid
published are three programs that Python 2 wrote: NumPy arrays, SciPy CSR matrices, and a ``defaultdict`` of lists. So

1. the opcodes are looked at first: only those that such a program needs, memo slots in sequence (a pickle of 10 bytes
   can otherwise make the reader take gigabytes), and nothing shared that could be nested;
2. ``find_class`` admits the names in ``_STAND_INS`` and no others, and hands out stand-ins: a stand-in for an array
   keeps its shape, dtype and bytes, and no code of NumPy or SciPy runs on what the file says;
3. what comes out is checked and only then made into arrays.

The checksum has been compared before (``files.read_published``): this is the second lock.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import reprlib
from typing import Any

import numpy as np

from .errors import DataError

# What protocol 2 writes for numbers, strings, tuples, lists, dicts and objects. Absent: PERSID, INST, OBJ, EXT, frames.
_OPCODES = frozenset(
    {
        *("PROTO", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "MARK", "STOP"),
        *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("SHORT_BINSTRING", "BINSTRING", "BINUNICODE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS"),
        *("EMPTY_DICT", "SETITEM", "SETITEMS"),
    }
)
# A memo gives back names, what they made, and strings. Shared tuples and lists would let a small file stand for a huge
# object, and CPython hashes a nest of tuples by recursion without a limit.
_SHARED = frozenset({"GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "SHORT_BINSTRING", "BINSTRING", "BINUNICODE"})
_TUPLES = 100  # a CSR matrix takes about 20
_NOT_PUBLISHED = (
    "expected only arrays, matrices and a dictionary of lists. It is not the published file; do not open it elsewhere."
)
_DTYPES = frozenset({"i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8", "b1"})


class _StandIn:
    """Base of the stand-ins. It defines ``__setstate__``: without one, BUILD could set attributes of a class."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise DataError(f"unpickled: got a state for {type(self).__name__}, which has none.")


class Name(_StandIn):
    """Stand-in for a name that is only passed on: ``numpy.ndarray``, ``list``."""

    __slots__ = ()


class Dtype(_StandIn):
    """Stand-in for ``numpy.dtype``: ``dtype("f4", 0, 1)`` and its byte order."""

    __slots__ = ("dtype",)

    def __init__(self, text: str, *flags: int) -> None:
        if text not in _DTYPES:
            raise DataError(
                f"unpickled: got an array of dtype {reprlib.repr(text)}, expected one of {sorted(_DTYPES)}."
            )
        self.dtype = np.dtype(text)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise DataError(f"unpickled: got the byte order {reprlib.repr(state[1])}, expected '<', '>' or '|'.")
        self.dtype = self.dtype.newbyteorder(state[1])


class Array(_StandIn):
    """Stand-in for ``numpy.core.multiarray._reconstruct``: made empty, filled by its state."""

    __slots__ = ("values",)

    def __init__(self, *placeholder: Any) -> None:
        self.values: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran_order, content = state
        raw = content.encode("latin1") if isinstance(content, str) else b""
        lengths = shape if type(shape) is tuple and len(shape) in (1, 2) else (None,)
        if not isinstance(dtype, Dtype) or any(type(length) is not int or length < 0 for length in lengths):
            raise DataError(f"unpickled: got an array of shape {reprlib.repr(shape)}, expected (n,) or (n, d).")
        if math.prod(shape) * dtype.dtype.itemsize != len(raw):
            raise DataError(f"unpickled: got {len(raw)} bytes for an array {dtype.dtype}{shape}.")
        values = np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if fortran_order else "C")
        self.values = values.astype(dtype.dtype.newbyteorder("="))


class Sparse(_StandIn):
    """Stand-in for ``scipy.sparse.csr_matrix``: the attributes that its state names."""

    __slots__ = ("attributes",)

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = dict(state)


class Neighbours(dict[Any, Any]):
    """Stand-in for ``collections.defaultdict``: a dictionary that makes nothing up."""

    __slots__ = ()

    def __init__(self, factory: Any = None) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        raise DataError("unpickled: got a state for a dictionary, which has none.")


# The names as Python 2, NumPy 1 and SciPy before 1.8 wrote them, and as their successors do.
_STAND_INS: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): Array,
    ("numpy._core.multiarray", "_reconstruct"): Array,
    ("numpy", "ndarray"): Name,
    ("numpy", "dtype"): Dtype,
    ("scipy.sparse.csr", "csr_matrix"): Sparse,
    ("scipy.sparse._csr", "csr_matrix"): Sparse,
    ("collections", "defaultdict"): Neighbours,
    ("__builtin__", "list"): Name,
    ("builtins", "list"): Name,
}


class _StandInUnpickler(pickle.Unpickler):
    """The one place where this project unpickles."""

    def __init__(self, source: str, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")  # strings of Python 2 are bytes
        self._source = source

    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _STAND_INS:
            raise DataError(f"unpickled: got {self._source}, which wants the global {module}.{name}; {_NOT_PUBLISHED}")
        return _STAND_INS[module, name]


def unpickled(source: str, content: bytes) -> Any:
    """Return what the pickle holds, arrays and matrices as ``Array`` and ``Sparse``.

    Raises DataError, with the name of the file, for whatever is no pickle of that kind.
    """
    try:
        _check_opcodes(source, content)
        return _StandInUnpickler(source, content).load()
    except DataError:
        raise
    except Exception as error:  # a damaged program can fail in any way; none of them is ours
        raise DataError(
            f"unpickled: got {source}, which is no readable pickle ({type(error).__name__}: {error}). Fetch it again."
        ) from error


def _check_opcodes(source: str, content: bytes) -> None:
    """Walk through the program without running it."""
    refused = f"unpickled: got {source}"
    made_by: dict[int, str] = {}  # the opcode that made what lies in a memo slot
    tuples, last, end = 0, "", 0
    for opcode, argument, position in pickletools.genops(content):
        tuples += opcode.name.startswith("TUPLE")
        if opcode.name not in _OPCODES:
            raise DataError(f"{refused} with the opcode {opcode.name} at byte {position}; {_NOT_PUBLISHED}")
        if tuples > _TUPLES:
            raise DataError(
                f"{refused} with more than {_TUPLES} tuples, of which a nest could be made; {_NOT_PUBLISHED}"
            )
        if opcode.name in {"BINPUT", "LONG_BINPUT"}:
            if argument > len(made_by) + 1:
                raise DataError(f"{refused}, which wants memo slot {argument} after {len(made_by)}; {_NOT_PUBLISHED}")
            made_by[argument] = last
        if opcode.name in {"BINGET", "LONG_BINGET"} and made_by.get(argument) not in _SHARED:
            raise DataError(f"{refused}, which repeats what {made_by.get(argument)} made; {_NOT_PUBLISHED}")
        last, end = opcode.name, position + 1
    if end != len(content):
        raise DataError(f"{refused} with {len(content) - end} bytes behind its end. Fetch it again.")
