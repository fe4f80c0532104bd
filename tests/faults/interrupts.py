"""Ctrl-C at a chosen line of the package: every place where an interrupt can fall, one after another.

But for cleaning up: Python itself skips what is left of a ``finally`` block in which an interrupt falls, and the
``__exit__`` of a ``with`` whose last line it hits. There the interrupt waits for the next line that is none of that.
"""

import ast
import sys
from functools import cache
from pathlib import Path

import implicitgrad

PACKAGE = str(Path(implicitgrad.__file__).parent)


@cache
def cleaning(filename):
    """Return the lines of a file that are headers of ``with``, or in a ``finally`` or ``except`` block."""
    lines = set()
    for node in ast.walk(ast.parse(Path(filename).read_text(encoding="utf-8"))):
        if isinstance(node, ast.With):
            lines.update(range(node.lineno, node.body[0].lineno))
        elif isinstance(node, ast.Try):
            for block in (node.finalbody, *(handler.body for handler in node.handlers)):
                lines.update(n for statement in block for n in range(statement.lineno, statement.end_lineno + 1))
    return frozenset(lines)


def cleans_up(frame):
    """Return whether a frame, or one that has called it, is at such a line."""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE) and frame.f_lineno in cleaning(name):
            return True
        frame = frame.f_back
    return False


class InterruptAt:
    """Raise ``KeyboardInterrupt`` at the ``number``-th line of the package that a block runs; None only counts them."""

    def __init__(self, number=None):
        self.number, self.lines, self.before, self.error = number, 0, None, None

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.watch)
        return self

    def __exit__(self, *raised):
        sys.settrace(self.before)

    def watch(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.lines += 1
            due = self.number is not None and self.error is None and self.lines >= self.number
            if due and not cleans_up(frame):
                self.error = KeyboardInterrupt(f"{frame.f_code.co_filename}:{frame.f_lineno}")
                raise self.error
        return self.watch


def spread(lines, count):
    """Return that many line numbers, evenly spread; the last few lines are left for an interrupt that has to wait."""
    return [1 + i * (lines - 20) // count for i in range(count)]
