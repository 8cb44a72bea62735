"""Which kernel runs which layer, and the measured times that say why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from gracile.errors import FileError
from gracile.files import read_json, write_json

FORMAT = "gracile plan"
VERSION = 1
COMPOSED = "composed"
RUNS = (COMPOSED, "torch", "torch channels-last", "ONNX Runtime")
KERNELS = ("dense", "sparse", "block")


@final
@dataclass(frozen=True)
class Choice:
    """How one layer runs.

    Attributes:
        layer: path of its module; ``"conv@2"`` when it is used for the second time.
        kind: such as ``"conv 16-32 3x3 /2"``.
        shape: of its input, for the example.
        density: share of weights that are not zero.
        block_density: share of runs of 16 output channels in which any weight is not zero.
        kernel: ``"dense"``, ``"sparse"`` (single zeros are left out) or ``"block"`` (runs of 16).
        times_s: candidate -> median seconds; empty if none was measured.
        macs: multiply-accumulates of the dense layer, for the example.
    """

    layer: str
    kind: str
    shape: tuple[int, ...]
    density: float
    block_density: float
    kernel: str
    times_s: dict[str, float] = field(default_factory=dict)
    macs: float = 0.0

    @property
    def macs_left(self) -> float:
        """Multiply-accumulates that the kernel carries out."""
        share = {"dense": 1.0, "sparse": self.density, "block": self.block_density}[self.kernel]
        return self.macs * share


@final
@dataclass(frozen=True)
class Plan:
    """How a network runs; ``str(plan)`` is a table.

    Attributes:
        layers: in the order in which they run.
        runs: ``"composed"`` (these layers, with torch's operators between them), or the dense engine that is
            faster than that.
        times_s: of the whole network: engine -> median seconds; empty if none was measured.
        threads: that it was measured with.

    >>> choice = Choice("fc", "linear 8-16", (1, 8), 0.1, 0.5, "sparse", {"dense": 2e-6, "sparse": 1e-6})
    >>> print(Plan((choice,), "composed", {"torch": 3e-6, "composed": 2e-6}, 1))
    layer  kind         input  density  blocks  dense  sparse  block  kernel
    fc     linear 8-16  1x8      10.0%   50.0%    2.0     1.0      -  sparse
    microseconds, 1 thread; the network: torch 3.0, composed 2.0; runs composed
    """

    layers: tuple[Choice, ...]
    runs: str = COMPOSED
    times_s: dict[str, float] = field(default_factory=dict)
    threads: int = 1
    format: str = FORMAT
    version: int = VERSION

    @property
    def kernels(self) -> Mapping[str, str]:
        """Layer -> kernel."""
        return {choice.layer: choice.kernel for choice in self.layers}

    def __str__(self) -> str:
        head = ["layer", "kind", "input", "density", "blocks", *KERNELS, "kernel"]
        rows = [head, *(_row(choice) for choice in self.layers)]
        widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
        numbers = range(3, len(head) - 1)
        lines = [
            "  ".join(
                cell.rjust(width) if k in numbers else cell.ljust(width)
                for k, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        whole = ", ".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in self.times_s.items())
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        network = f"; the network: {whole}" if whole else ""
        return "\n".join([*lines, f"microseconds, {threads}{network}; runs {self.runs}"])

    def save(self, path: str | Path) -> Path:
        """Write as JSON, atomically."""
        return write_json(path, self)

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read what :meth:`save` wrote.

        Raises:
            FileError: the file is missing, damaged, or no plan.
        """
        return checked(path, read_json(path, Plan))


def checked(path: str | Path, plan: Plan) -> Plan:
    """The plan, if all in it can be.

    Raises:
        FileError: something cannot.
    """
    problem = ""
    if plan.format != FORMAT or plan.version != VERSION:
        problem = f"format {plan.format[:80]!r}, version {plan.version}"
    unknown = sorted({choice.kernel[:80] for choice in plan.layers} - set(KERNELS))
    if unknown:
        problem = f"the kernel {unknown[0]!r}"
    if plan.runs not in RUNS:
        problem = f"a network that runs in {plan.runs[:80]!r}"
    if not 1 <= plan.threads <= 4096:
        problem = f"{plan.threads} threads"
    if problem:
        raise FileError(
            f"reading '{path}'",
            got=problem,
            expected=f"a plan, version {VERSION}, of {', '.join(KERNELS)}",
            hint="the file may be damaged or written by another version",
        )
    return plan


def _row(choice: Choice) -> Sequence[str]:
    times = [f"{choice.times_s[k] * 1e6:.1f}" if k in choice.times_s else "-" for k in KERNELS]
    shape = "x".join(map(str, choice.shape))
    shares = [f"{share:.1%}" for share in (choice.density, choice.block_density)]
    return [choice.layer, choice.kind, shape, *shares, *times, choice.kernel]
