"""gracile's own sparse kernels as an engine, to be measured beside others."""

from __future__ import annotations

from typing import Any, final

from torch import nn

from gracile.errors import GracileError, RefusedError
from gracile.runtime.engines import Call, Engine, limited
from gracile.runtime.sparse_cpu import SparseCPU


@final
class SparseKernels(Engine):
    """The fastest kernel for every layer, whether or not a dense engine would be faster for the whole."""

    name = "gracile"
    package = "gracile"
    dense = False
    patient = True  # every layer is measured

    def start(self, model: nn.Module, example: tuple[Any, ...], threads: int) -> Call:
        try:
            program = SparseCPU(threads=threads, against=()).compile(model, *example)
        except GracileError as error:
            raise RefusedError(
                f"preparing {type(model).__name__} for {self.name}",
                got=error.got,
                expected=error.expected,
                hint=error.hint,
            ) from error
        return limited(program, threads)
