"""Sparse networks on a CPU: the fastest kernel for every layer, and the fastest engine for the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import nn

from gracile.cost import measure, time_on_thread
from gracile.errors import GracileError, RefusedError, UsageError
from gracile.reduce.copies import undisturbed
from gracile.reduce.probes import copied, leaves
from gracile.reduce.verify import difference
from gracile.runtime.choose import Search, choose
from gracile.runtime.composed import Composed
from gracile.runtime.fuse import fuse
from gracile.runtime.onnx import OnnxRuntime
from gracile.runtime.plan import COMPOSED, RUNS, Plan
from gracile.runtime.program import SparseProgram, paper_cost
from gracile.runtime.roster import OTHERS, select, short
from gracile.runtime.sizes import sizes_for
from gracile.runtime.store import Runner
from gracile.runtime.trace import Traced, trace
from gracile.runtime.whole import Whole


@final
@dataclass(frozen=True)
class SparseCPU:
    """This machine's processor, leaving out zeros where that is measurably faster.

    Every convolution, linear layer and LSTM is measured with each kernel that it can have, on inputs of the
    example's size; then the network made of the fastest ones against dense engines. If one of these wins, it
    is what the program runs: a program is not slower than they are.

    Args:
        threads: that a program may use.
        force: layer, or pattern such as ``"layer1.*"`` -> ``"dense"``, ``"sparse"`` or ``"block"``; what is
            named is not measured, and the program runs these layers whatever dense engines can do.
        plan: of an earlier program; nothing that it decided is measured again.
        against: dense engines to be measured: of ``"torch"``, ``"torch channels-last"`` and
            ``"ONNX Runtime"``; those not installed are left out. Empty: only layers are measured.
        rounds: samples of each candidate.
        tolerance: a program is made only if max |y - y'| <= tolerance max |y| on the example.
        instruction_set: of :func:`gracile.runtime.kernels.instruction_sets`; the best by default.

    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU()).eval()
    >>> program = SparseCPU(force={"*": "sparse"}).compile(model, torch.ones(1, 8))
    >>> torch.allclose(program(torch.ones(5, 8)), model(torch.ones(5, 8)), atol=1e-5)
    True
    """

    threads: int = 1
    force: Mapping[str, str] = field(default_factory=dict)
    plan: Plan | None = None
    against: tuple[str, ...] = RUNS[1:]
    rounds: int = 7
    tolerance: float = 1e-4
    instruction_set: str | None = None

    def compile(self, model: nn.Module, *example: Any) -> SparseProgram:
        """Trace, choose, pack, prove equal on the example, and compare with dense engines.

        Args:
            model: left as it is; evaluation mode is what is compiled.
            example: inputs on the CPU; times are measured for its batch, other batches run too.

        Raises:
            GraphError: the model cannot be traced; the message says why.
            RefusedError: the program computes something else than the model.
            UsageError: ``force`` or ``plan`` name layers that do not exist, or settings are out of range.
        """
        self._check()
        full = paper_cost(model, *example)
        network = type(model).__name__
        if self.plan is not None and self.plan.runs != COMPOSED:
            run, bound = _dense(self.plan.runs, model, example, self.threads)
            return SparseProgram(run, self.plan, network, _error(model, run, example), full, bound)
        traced = trace(model, *example)
        composed, plan = self._composed(traced)
        error = _error(model, composed, example)
        if not error <= self.tolerance:
            raise RefusedError(
                f"compiling {network} for sparse kernels",
                got=f"a relative error of {error:.1e}",
                expected=f"at most {self.tolerance:.0e}",
                hint="if the network itself is that sensitive, allow a larger tolerance",
            )
        program = SparseProgram(composed, plan, network, error, full, traced.bound)
        if self.plan is not None or self.force or not self.against:
            return program
        times = self._times(program, model, example)
        runs = min(times, key=times.__getitem__)
        plan = replace(plan, runs=runs, times_s=times)
        if runs == COMPOSED:
            return replace(program, plan=plan)
        run, bound = _dense(runs, model, example, self.threads)
        return SparseProgram(run, plan, network, _error(model, run, example), full, bound)

    def _composed(self, traced: Traced) -> tuple[Composed, Plan]:
        nodes = fuse(traced)
        force = {**(self.plan.kernels if self.plan else {}), **self.force}
        search = Search(self.threads, self.rounds, self.instruction_set, force)
        with torch.inference_mode(False), torch.no_grad():
            choices = choose(nodes, sizes_for(traced), search)
        plan = replace(self.plan, threads=self.threads) if self.plan else Plan((), threads=self.threads)
        return Composed(traced, self.threads), replace(plan, layers=choices)

    def _times(self, program: SparseProgram, model: nn.Module, example: tuple[Any, ...]) -> dict[str, float]:
        """Median seconds of the program and of every dense engine that can run the model."""
        calls: dict[str, Any] = {COMPOSED: program}
        training = model.training
        model.eval()  # an engine that runs it as it stands takes no other
        try:
            for engine in select(self.against, OTHERS).present:
                try:
                    calls[engine.name] = engine.prepare(model, *example, threads=self.threads)
                except GracileError:  # one rival less
                    continue
            # What else the machine does is not in a thread's own time.
            timer = time_on_thread if self.threads == 1 else None
            found = measure(calls, *example, rounds=self.rounds, threads=self.threads, timer=timer)
        finally:
            model.train(training)
        return {name: timing.median_s for name, timing in found.items()}

    def _check(self) -> None:
        unknown = sorted(set(map(short, self.against)) - set(map(short, RUNS[1:])))
        if self.threads < 1 or self.rounds < 5 or unknown:
            raise UsageError(
                "compiling for sparse kernels",
                got=f"threads={self.threads}, rounds={self.rounds}, against={', '.join(self.against)}",
                expected=f"1 thread and 5 rounds or more, and only {', '.join(RUNS[1:])}",
            )


def _dense(runs: str, model: nn.Module, example: tuple[Any, ...], threads: int) -> tuple[Runner, str]:
    """The model under a dense engine, and why its batch is fixed if it is."""
    if runs == "ONNX Runtime":
        program = OnnxRuntime(threads, tolerance=1e-4).compile(model, *example)
        return program, program.report()["batch"].partition("fixed: ")[2]
    return Whole(model, channels_last=runs == "torch channels-last"), ""


def _error(model: nn.Module, run: Runner, example: tuple[Any, ...]) -> float:
    with undisturbed(model):
        want = [x.detach() for x in leaves(model(*copied((example, {}))[0]))]
    return difference(want, [x.detach() for x in leaves(run(*example))])
