"""Where networks are timed against the dense one, and what was asked of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

from torch import Tensor, nn

from gracile.cost import Timing, measure, time_on_thread
from gracile.cost.measure import Timer
from gracile.errors import UsageError
from gracile.graph import Graph, watch
from gracile.reduce import make_attention_explicit_
from gracile.reduce.copies import duplicate

SLACK = 0.02  # of the asked latency: what is measured below this much above it meets it

Clock = Literal["wall", "processor"]


def require_one(latency_s: float | None, share: float | None) -> None:
    """Raise UsageError unless a latency is asked for in one of the two ways."""
    if (latency_s is None) == (share is None):
        raise UsageError(
            "fitting to a latency", got=f"latency_s={latency_s}, share={share}", expected="one of them"
        )
    if not 0 < (latency_s or share or 0) < float("inf"):
        raise UsageError(
            "fitting to a latency", got=f"{latency_s or share}", expected="a positive, finite number"
        )


def sentence(asked: float, dense: Timing, reduced: Timing, clock: Clock) -> str:
    """What was asked, as a share of the dense latency, and what was measured."""
    threads = "1 thread" if reduced.threads == 1 else f"{reduced.threads} threads"
    wanted, found = (1e3 * s for s in (asked * dense.median_s, reduced.median_s))
    return (
        f"asked {wanted:.3g} ms ({asked:.1%} of the dense network), "
        f"measured {found:.3g} ms ({1 / reduced.speedup:.1%}) by the {clock} clock; "
        f"{threads}, {reduced.device}"
    )


@final
@dataclass(frozen=True)
class Site:
    """Where networks are timed: the example, the dense network to compare with, and the threads."""

    inputs: tuple[Any, ...]
    named: dict[str, Any]
    dense: nn.Module
    threads: int

    @staticmethod
    def of(
        model: nn.Module,
        inputs: tuple[Any, ...],
        named: dict[str, Any],
        dense: nn.Module | None,
        threads: int,
    ) -> Site:
        return Site(inputs, named, duplicate(dense or model).eval(), threads)

    def run(self, network: nn.Module) -> object:
        return network(*self.inputs, **self.named)

    def timed(self, network: nn.Module, rounds: int) -> tuple[Timing, Timing, Clock]:
        """Dense and reduced in turns, by the wall clock if the machine is calm enough for it to tell."""
        network.eval()
        found = self._measured(network, rounds, None)
        busy = any(timing.disturbed > rounds // 3 for timing in found)
        if busy and self._alone:
            return *self._measured(network, rounds, time_on_thread), "processor"
        return *found, "wall"

    def ratio(self, network: nn.Module) -> float:
        """Quick latency over the dense network's; on one thread of a CPU, other programs are not in it."""
        timer = time_on_thread if self._alone else None
        return 1 / self._measured(network.eval(), 9, timer)[1].speedup

    def _measured(self, network: nn.Module, rounds: int, timer: Timer | None) -> tuple[Timing, Timing]:
        tensors = [x for x in self.inputs if isinstance(x, Tensor)]  # they tell the device
        calls = {"dense": lambda *_: self.run(self.dense), "reduced": lambda *_: self.run(network)}
        found = measure(calls, *tensors, rounds=rounds, threads=self.threads, timer=timer)
        return found["dense"], found["reduced"]

    @property
    def _alone(self) -> bool:
        """Whether the calling thread of a CPU does all the work."""
        return self.threads == 1 and not any(p.is_cuda for p in self.dense.parameters())

    def watched(self, model: nn.Module) -> tuple[Graph, nn.Module]:
        """A graph, and the copy that it is of."""
        work = duplicate(model).eval()
        make_attention_explicit_(work)
        return watch(work, *self.inputs, **self.named), work
