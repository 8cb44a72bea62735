"""Labels: which indices of which dimensions share one fate. Arrays only, no tensors.

A label is an integer; label 0 is pinned and lives forever. An *axis* is the labels of one dimension: None
(nothing here can go) or an int32 array of shape (n, k), where index i lives if and only if all k labels of
row i live (0 fills short rows). Labels meet in two ways: a *union* makes two the same, and a *split* puts a
row of labels in the place of one, which is what a reshape of one dimension into several needs. Both are
seen by every array that carries the labels, because arrays are read through `resolve`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Axis = Ints | None

WIDTH = 8  # most labels one index may carry; more are pinned


def _grown(array: Ints, size: int) -> Ints:
    larger = np.zeros((max(size, 2 * len(array)), *array.shape[1:]), np.int32)
    larger[: len(array)] = array
    return larger


@final
class Labels:
    """Union-find over labels that can also be split into rows of labels.

    >>> labels = Labels()
    >>> a, b = labels.fresh(3), labels.fresh(3)
    >>> _ = labels.unify(a, b)
    >>> bool((labels.resolve(a) == labels.resolve(b)).all())
    True
    >>> labels.pin(a[:1])
    >>> labels.resolve(b)[:, 0].tolist()
    [0, 2, 3]
    """

    def __init__(self) -> None:
        self.count = 1
        self.reason = 0  # recorded with every pin from here on
        self._parent = np.zeros(1024, np.int32)
        self._held = np.zeros(1024, np.int32)  # of roots: 0 is free, else reason + 1
        self._row = np.zeros(1024, np.int32)  # of roots: 0 is whole, else row of the table
        self._mark = np.zeros(1024, np.int32)  # scratch
        self._table = np.zeros((64, WIDTH), np.int32)
        self._rows = 1
        self._held[0] = 1

    def copy(self) -> Labels:
        """An independent copy."""
        other = Labels.__new__(Labels)
        other.__dict__.update(
            {
                key: value.copy() if isinstance(value, np.ndarray) else value
                for key, value in vars(self).items()
            }
        )
        return other

    def fresh(self, n: int) -> Ints:
        """(n, 1) labels that nothing else carries."""
        first, self.count = self.count, self.count + n
        if self.count > len(self._parent):
            self._parent, self._held = _grown(self._parent, self.count), _grown(self._held, self.count)
            self._row, self._mark = _grown(self._row, self.count), _grown(self._mark, self.count)
        ids = np.arange(first, self.count, dtype=np.int32)
        self._parent[first : self.count] = ids
        return ids[:, None]

    def find(self, labels: Ints) -> Ints:
        """The root of every label, with the paths shortened on the way."""
        parent = self._parent
        roots = parent[labels]
        above = parent[roots]
        if np.array_equal(above, roots):
            return roots
        while not np.array_equal(above, roots):
            roots, above = above, parent[above]
        parent[labels] = roots
        return roots

    def union(self, a: Ints, b: Ints) -> None:
        """Make label a[i] the same as b[i]; all of them whole."""
        while True:
            a, b = self.find(a), self.find(b)
            differ = a != b
            if not differ.any():
                return
            a, b = a[differ], b[differ]
            low, high = np.minimum(a, b), np.maximum(a, b)
            held = self._held[high]
            if held.any():
                self._held[low[held > 0]] = held[held > 0]
            self._parent[high] = low

    def pin(self, axis: Axis) -> None:
        """Keep every index of the axis for the current reason."""
        axis = self.resolve(axis)
        if axis is not None:
            self._held[axis[axis > 0]] = self.reason + 1

    def split(self, labels: Ints, rows: Ints) -> None:
        """Put row i of labels in the place of labels[i]: distinct, whole, free, and in no row."""
        first, self._rows = self._rows, self._rows + len(labels)
        if self._rows > len(self._table):
            self._table = _grown(self._table, self._rows)
        self._table[first : self._rows, : rows.shape[1]] = rows
        self._row[labels] = np.arange(first, self._rows, dtype=np.int32)

    def resolve(self, axis: Axis) -> Axis:
        """The axis in whole, free roots, with 0 for what is held; None when all of it is held."""
        if axis is None:
            return None
        roots = self._whole(axis)
        held = self._held[roots] > 0
        if held.any():
            roots[held] = 0
            roots = _tidy(roots)
        if roots.shape[1] > WIDTH:
            self._held[roots[roots > 0]] = self.reason + 1
            return None
        return roots if roots.shape[1] and (roots.shape[1] > 1 or roots.any()) else None

    def resolve_all(self, axes: Sequence[Ints]) -> list[Axis]:
        """`resolve` of many axes, most of them in one sweep."""
        if not axes:
            return []
        sizes = [axis.size for axis in axes]
        ends = np.cumsum(sizes, dtype=np.int64)
        starts = ends - np.array(sizes, np.int64)
        roots = self.find(np.concatenate([axis.reshape(-1) for axis in axes]))
        split = np.logical_or.reduceat(self._row[roots] > 0, starts)
        roots[self._held[roots] > 0] = 0
        free = np.logical_or.reduceat(roots > 0, starts)
        return [
            self.resolve(axis)
            if apart or axis.shape[1] > 1
            else (roots[end - size : end].reshape(axis.shape) if live else None)
            for axis, size, end, apart, live in zip(
                axes, sizes, ends.tolist(), split.tolist(), free.tolist(), strict=True
            )
        ]

    def why(self, axis: Ints) -> Ints:
        """For every index the reason it is held for, -1 where it is free."""
        rows = self._whole(axis)
        reasons = np.where(rows > 0, self._held[rows] - 1, np.iinfo(np.int32).max)
        last = np.where(rows > 0, reasons, 0).max(1)
        return np.where(reasons.min(1) < 0, -1, last).astype(np.int32)

    def _whole(self, axis: Ints) -> Ints:
        """The axis in roots that are not split, held or not."""
        roots = self.find(axis)
        while self._rows > 1 and (rows := self._row[roots]).any():
            wide = self._table[rows]  # row 0 of the table is empty
            wide[..., 0] += np.where(rows == 0, roots, 0)
            roots = _tidy(self.find(wide.reshape(len(axis), -1)))
        return roots

    def distinct(self, labels: Ints) -> bool:
        """Whether no label occurs twice."""
        order = np.arange(len(labels), dtype=np.int32)
        self._mark[labels] = order
        return bool(np.array_equal(self._mark[labels], order))

    def unify(self, a: Axis, b: Axis) -> Axis:
        """Index i of a lives exactly if index i of b lives. Returns the axis both have become."""
        if a is b:
            return a
        x, y = self.resolve(a), self.resolve(b)
        while True:
            if x is None or y is None:
                self.pin(x)
                self.pin(y)
                return None if self.resolve(a) is None else a
            held_x, held_y = ~x.any(1), ~y.any(1)
            if not held_x.any() and not held_y.any():
                break
            self.pin(x[held_y])  # an index that is held on one side holds the other side,
            self.pin(y[held_x])
            free = ~(held_x | held_y)  # and perhaps others, which are the same
            x, y = self.resolve(x[free]), self.resolve(y[free])
        if x.shape[1] == y.shape[1] == 1:
            self.union(x[:, 0], y[:, 0])
        else:
            self._unify_rows(x, y)
        return a

    def _unify_rows(self, x: Ints, y: Ints) -> None:
        left, right = list(x.T), list(y.T)
        same = [(a, b) for a in left for b in right if np.array_equal(a, b)]
        left = [a for a in left if not any(a is pair[0] for pair in same)]
        right = [b for b in right if not any(b is pair[1] for pair in same)]
        for a in list(left):
            match = next((b for b in right if _pattern_equal(a, b)), None)
            if match is not None:
                held = (a == 0) | (match == 0)
                self.union(a[~held], match[~held])
                self.pin(np.concatenate((a[held], match[held]))[:, None])
                left = [c for c in left if c is not a]
                right = [c for c in right if c is not match]
        if left and right:
            if len(left) == 1 and self._adopt(left[0], np.stack(right, 1)):
                return
            if len(right) == 1 and self._adopt(right[0], np.stack(left, 1)):
                return
            self._merge_rows(x, y)
        elif left or right:  # labels without a counterpart
            self.pin(np.stack(left or right, 1))

    def _adopt(self, narrow: Ints, wide: Ints) -> bool:
        """Split the labels of a column into the rows beside them, if every label always meets one row."""
        rows = self.resolve(wide)
        column = self.resolve(narrow[:, None])
        if rows is None or column is None or column.shape[1] > 1 or not rows.any(1).all():
            return False
        flat = column[:, 0]
        values, first, inverse = np.unique(flat, return_index=True, return_inverse=True)
        taken = rows[first]
        if values[0] == 0 or not np.array_equal(taken[inverse], rows):
            return False
        self._mark[taken.ravel()] = -1
        self._mark[values] = 1
        if (self._mark[taken] == 1).any():  # a label may not contain itself
            return False
        self.split(values, taken)
        return True

    def _merge_rows(self, x: Ints, y: Ints) -> None:
        rows = np.concatenate((x, y), 1)
        first = rows[np.arange(len(rows)), (rows > 0).argmax(1)]
        for column in rows.T:
            live = column > 0
            self.union(first[live], column[live])


def _pattern(column: Ints) -> Ints:
    """The column with every value replaced by the position of its first occurrence."""
    _, first, inverse = np.unique(column, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int32)


def _pattern_equal(a: Ints, b: Ints) -> bool:
    return np.array_equal(_pattern(a), _pattern(b))


def _tidy(rows: Ints) -> Ints:
    """Without empty columns and without columns that repeat another."""
    kept: list[Ints] = []
    for column in rows.T:
        if column.any() and not any(np.array_equal(column, other) for other in kept):
            kept.append(column)
    return np.stack(kept, 1) if kept else np.zeros((len(rows), 0), np.int32)
