"""The memory on which this thread's signal handlers run."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Stack(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Put back this thread's signal stack afterwards, if it was exchanged.

    OpenVINO leaves one of its own in place (seen in 2026.4.1), and gives its memory back when it likes: the
    next signal that Python handles, such as SIGCHLD after a ``DataLoader`` with workers, ends the process.

    >>> with signal_stack_kept():
    ...     pass
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    before = signal_stack()
    try:
        yield
    finally:
        if (own := signal_stack()) and before and bytes(own) != bytes(before):
            ctypes.CDLL(None).sigaltstack(ctypes.byref(before), None)


def signal_stack() -> Any:
    """As the system has it: start, flags and size; None if it does not say."""
    found = _Stack()
    return None if ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found)) else found
