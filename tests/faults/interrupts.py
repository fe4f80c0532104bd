"""Ctrl-C at a chosen line of the package: every place where an interrupt can fall, one after another."""

import sys
from pathlib import Path

import implicitgrad

PACKAGE = str(Path(implicitgrad.__file__).parent)


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
            if self.lines == self.number:
                self.error = KeyboardInterrupt(f"{frame.f_code.co_filename}:{frame.f_lineno}")
                raise self.error
        return self.watch
