"""What :class:`SparseCPU` makes of a network."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from gracile.cost import Cost, LayerCost, count
from gracile.errors import GracileError
from gracile.runtime.composed import Composed
from gracile.runtime.kernels import instruction_sets
from gracile.runtime.onnx import OnnxProgram
from gracile.runtime.plan import COMPOSED, Plan
from gracile.runtime.store import Runner, restore, save


@final
@dataclass(frozen=True)
class SparseProgram:
    """A network made ready for sparse kernels, or for the dense engine that is faster.

    Called like the network; what it returns is new each time. The model that it was made of may be changed or
    thrown away. Its calls take turns where several threads make them.

    Attributes:
        run: what carries it out.
        plan: which kernel runs which layer, and why.
        network: class of the model, for people.
        error: largest difference to the model on the example, over the largest output; nan if it was loaded.
        full: what the model costs on paper.
        bound: why the first dimension of the inputs is fixed; empty if it is not.
    """

    run: Runner
    plan: Plan
    network: str
    error: float
    full: Cost
    bound: str

    def __call__(self, *inputs: Any) -> Any:
        """The outputs, nested as the network's are.

        Raises:
            ShapeError: inputs of shapes or types that the network was not compiled for.
            UsageError: inputs that are nested in another way.
        """
        before, threads = torch.get_num_threads(), self.plan.threads
        if before == threads:
            return self.run(*inputs)
        torch.set_num_threads(threads)  # for what torch does between kernels
        try:
            return self.run(*inputs)
        finally:
            torch.set_num_threads(before)

    @property
    def nbytes(self) -> int:
        """Of weights, packed or not, and of buffers."""
        return int(self.run.nbytes) if not isinstance(self.run, OnnxProgram) else self.full.bytes

    def cost(self) -> Cost:
        """What is carried out for the example: without the zeros that kernels leave out.

        A row for each layer that has a kernel, and one, named ``""``, for all other operators.
        """
        if not isinstance(self.run, Composed):
            return self.full
        rows = []
        for layer, choice in zip(self.run.layers, self.plan.layers, strict=True):
            kernel: Any = layer.kernel
            weights = getattr(kernel, "nonzeros", None)
            if weights is None:
                weights = sum(weight.numel() for weight in layer.weights)
            biases = sum(bias.numel() for bias in layer.biases)
            rows.append(
                LayerCost(choice.layer, choice.kind, weights + biases, choice.macs_left, kernel.nbytes, 0)
            )
        others = self.full.macs - math.fsum(choice.macs for choice in self.plan.layers)
        rest = LayerCost("", self.network, 0, max(others, 0.0), 0, self.full.activations, self.full.unmodeled)
        return Cost((*rows, replace(rest, macs=others) if math.isnan(others) else rest))

    def report(self) -> dict[str, str]:
        """Where it runs, and how exact and fast it is."""
        kernels = Counter(choice.kernel for choice in self.plan.layers)
        facts = {
            "network": self.network,
            "runs in": self.plan.runs if self.plan.runs != COMPOSED else f"sparse kernels, {best_set()}",
            "threads": str(self.plan.threads),
            "layers": ", ".join(f"{number} {kernel}" for kernel, number in kernels.items()) or "none",
            "batch": f"fixed: {self.bound}" if self.bound else "any",
            "bytes": str(self.nbytes),
        }
        if not math.isnan(self.error):
            facts["relative error"] = f"{self.error:.1e}"
        dense = {name: seconds for name, seconds in self.plan.times_s.items() if name != COMPOSED}
        if dense and COMPOSED in self.plan.times_s:
            best = min(dense, key=dense.__getitem__)
            facts["speedup"] = (
                f"{dense[best] / self.plan.times_s[COMPOSED]:.2f} over {best}, the fastest dense engine"
            )
            if self.plan.runs != COMPOSED:
                facts["speedup"] += "; so it is that which runs"
        return facts

    def save(self, folder: str | Path) -> Path:
        """Write weights and plan; :func:`gracile.runtime.load` reads them. See there.

        Raises:
            FileError: the folder cannot be written; an older version in it is still whole.
            RefusedError: it has operators that files have no form for, such as those of other packages.
        """
        return save(folder, self.run, self.plan, self.network, self.full)


def load(folder: str | Path, model: nn.Module | None = None) -> SparseProgram:
    """The program that :meth:`SparseProgram.save` wrote; nothing is measured again.

    Args:
        folder: where it was saved.
        model: needed only where torch turned out faster than all kernels (``program.plan.runs``): an object
            of the class that was compiled, built with the same arguments. Its numbers do not matter, and it
            is left as it is.

    Raises:
        FileError: a file is missing or damaged, or the model is another one.
        UsageError: a model is needed.

    >>> import tempfile
    >>> from gracile.runtime.sparse_cpu import SparseCPU
    >>> x = torch.ones(1, 8)
    >>> program = SparseCPU(against=()).compile(nn.Linear(8, 16).eval(), x)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = program.save(folder)
    ...     again = load(folder)
    >>> torch.equal(again(x), program(x))
    True
    """
    found = restore(folder, model)
    return SparseProgram(found.run, found.plan, found.network, math.nan, found.full, found.bound)


def paper_cost(model: nn.Module, *example: Any) -> Cost:
    """What the model costs; one row of ``nan`` if it cannot be watched.

    >>> paper_cost(nn.Linear(3, 5).eval(), torch.zeros(2, 3)).macs
    30.0
    """
    try:
        return count(model, *example)
    except GracileError:
        stored = [*model.parameters(), *model.buffers()]
        row = LayerCost("", type(model).__name__, 0, math.nan, sum(t.nbytes for t in stored), 0)
        return Cost((replace(row, parameters=sum(p.numel() for p in model.parameters())),))


def best_set() -> str:
    """The instruction set that kernels use here."""
    return (instruction_sets() or ("torch alone: no compiled kernels",))[-1]
