"""Errors that tell the user what happened, with what, and what to do about it."""

from __future__ import annotations


class GracileError(Exception):
    """Base of every error that gracile raises on purpose.

    The message is ``operation: got ...; expected ... Hint: ...``, so that it can be
    read without a traceback; the command line prints it and nothing else.

    Args:
        operation: what was being done, e.g. ``"pattern 'out in'"``.
        got: what was found, with name and shape where there is one.
        expected: what would have been right.
        hint: one thing the user can do.

    >>> print(ShapeError("filter grouping", got="'fc.bias' of shape (10,)", expected="2 or more axes"))
    filter grouping: got 'fc.bias' of shape (10,); expected 2 or more axes.
    """

    def __init__(self, operation: str, *, got: str, expected: str, hint: str = "") -> None:
        self.operation, self.got, self.expected, self.hint = operation, got, expected, hint
        message = f"{operation}: got {got}; expected {expected}."
        super().__init__(f"{message} Hint: {hint}" if hint else message)


class ShapeError(GracileError):
    """A tensor's shape or dtype does not fit the operation."""


class PatternError(GracileError):
    """A pattern of named axes cannot be read or does not fit its tensor."""


class GraphError(GracileError):
    """A network cannot be watched."""


class RefusedError(GracileError):
    """A cut that cannot be proven right is refused: the message names unit, operator and source line."""


class FileError(GracileError):
    """A file is missing, damaged, truncated, or not what it claims to be."""


class UsageError(GracileError):
    """Arguments contradict each other or name something that does not exist."""
