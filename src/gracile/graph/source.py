"""Whose line is this: the innermost frame of the user's own code."""

from __future__ import annotations

import os
import sys
from types import CodeType, FrameType
from typing import Final

import torch

import gracile

_OURS: Final = os.path.dirname(str(gracile.__file__))  # noqa: PTH120
# What watches and what is swapped in; the networks of gracile.zoo are written like anybody's.
_LIBRARIES: Final = (
    os.path.dirname(str(torch.__file__)) + os.sep,  # noqa: PTH120
    *(os.path.join(_OURS, folder) + os.sep for folder in ("graph", "reduce")),  # noqa: PTH118
)


class Source:
    """Finds the line of the model that is running; frames outside the watched call are not the model's."""

    def __init__(self) -> None:
        self.top: FrameType | None = None
        self._foreign: dict[CodeType, bool] = {}

    def line(self) -> str:
        """``"file.py:12"`` of the innermost frame that is neither torch's nor ours.

        A model made of torch's own modules alone has no such frame: then the innermost ``forward`` counts.
        """
        frame: FrameType | None = sys._getframe(2)
        inner = ""
        while frame is not None and frame is not self.top:
            code = frame.f_code
            foreign = self._foreign.get(code)
            if foreign is None:
                name = code.co_filename
                foreign = self._foreign[code] = name.startswith((*_LIBRARIES, "<"))
            if not foreign:
                return f"{os.path.basename(code.co_filename)}:{frame.f_lineno}"  # noqa: PTH119
            if not inner and code.co_name == "forward":
                inner = f"{os.path.basename(code.co_filename)}:{frame.f_lineno}"  # noqa: PTH119
            frame = frame.f_back
        return inner
