"""One rank of the step benchmark: trains a network of 25 million parameters and measures its own steps.

Started by ``network.steps`` on every node of a bed, with torch.distributed's environment. Prints JSON.

All ways of averaging share one network, one DistributedDataParallel and its buckets; a hook hands each
bucket to the way whose turn it is. So steps of all ways, and steps that average nothing, alternate in one
process, and what else the machine does disturbs them alike.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from gracile.cost import Link, probe
from gracile.train import TernGradState, terngrad_hook
from gracile.train.exchange import Exchange

SILENT = "silent"
"""A step that averages nothing."""
BATCH = 4
PART = 2 << 20
"""Bytes that every rank sends to every other, to see what sending all at once costs."""

_SENT = Path("/sys/class/net/eth0/statistics/tx_bytes")
_FEWEST, _MOST = 3, 15  # rounds

Hook = Callable[[dist.GradBucket], Future[Tensor]]


def network() -> nn.Module:
    """Convolutions, then fully connected layers with nearly all of the 25.2 million parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Linear(4096, 2048),
        nn.ReLU(),
        nn.Linear(2048, 10),
    )


@final
class Trainer:
    """A network whose steps can average in any of several ways.

    Args:
        ways: names of what steps may do.
        link: what ``auto`` chooses by.
    """

    def __init__(self, ways: list[str], link: Link) -> None:
        torch.manual_seed(0)
        # PowerSGD's hook hangs or aborts on gloo with more than one bucket (torch 2.13).
        one_bucket = {"bucket_cap_mb": 1024} if "powersgd" in ways else {}
        self._model = DistributedDataParallel(network(), **one_bucket)
        self.states = {
            way: TernGradState(self._model, mode="auto" if way == "auto" else way, link=link)  # type: ignore[arg-type]
            for way in ways
            if way not in ("fp32", "fp16", "powersgd")
        }
        self._hooks = {way: _hook(way, self.states) for way in ways}
        self._way = ways[0]
        self._model.register_comm_hook(self, _dispatch)
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=1e-4)
        rank = torch.Generator().manual_seed(dist.get_rank())
        self._inputs = torch.randn(BATCH, 3, 32, 32, generator=rank)

    def average(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """The future average of a bucket, in the way whose turn it is."""
        return self._hooks[self._way](bucket)

    def step(self, way: str) -> tuple[float, int]:
        """Take one step; seconds, and bytes that this rank has sent."""
        self._way = way
        dist.barrier()
        before, began = _sent(), time.perf_counter()
        with self._model.no_sync() if way == SILENT else nullcontext():
            self._model(self._inputs).square().mean().backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=False)
        taken = time.perf_counter() - began
        dist.barrier()
        return taken, _sent() - before

    def mode(self, way: str) -> str:
        """What a way turned out to be."""
        return self.states[way].mode if way in self.states else way


def main(ways: list[str], seconds: float) -> None:
    """Measure the link, then rounds of one step of every way, for so many seconds; print what was found."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    link = probe(limit_s=6)
    alone = {"all_to_all_s": _all_to_all(scheduled=True), "at_once_s": _all_to_all(scheduled=False)}
    trainer = Trainer(ways, link)
    for way in (*ways, *ways):  # connections, threads and memory; DDP sorts its buckets after the first step
        trainer.step(way)
    before = {way: state.traffic for way, state in trainer.states.items()}
    took: dict[str, list[float]] = {way: [] for way in (SILENT, *ways)}
    sent: dict[str, list[int]] = {way: [] for way in ways}
    began, rounds = time.perf_counter(), 0
    while _go_on(rounds, time.perf_counter() - began, seconds):
        for way in took:
            taken, out = trainer.step(way)
            took[way].append(taken)
            if way != SILENT:
                sent[way].append(out)
        rounds += 1
    print(json.dumps(_found(trainer, link, _slowest(took), sent, before) | alone), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def _all_to_all(scheduled: bool) -> float:
    """Seconds in which every rank sends a part to every other, of the slowest rank; median of some."""
    ranks = dist.get_world_size()
    exchange = Exchange(dist.group.WORLD)
    outgoing, incoming = (list(torch.zeros(ranks, PART // 4).unbind()) for _ in range(2))
    together = [torch.zeros(ranks * PART // 4) for _ in range(2)]
    times = []
    for _ in range(7):
        dist.barrier()
        began = time.perf_counter()
        if scheduled:
            exchange.all_to_all(outgoing, incoming)
        else:
            dist.all_to_all_single(*together)
        slowest = torch.tensor([time.perf_counter() - began], dtype=torch.float64)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        times.append(float(slowest))
    return median(times)


def _found(
    trainer: Trainer,
    link: Link,
    took: Mapping[str, list[float]],
    sent: Mapping[str, list[int]],
    before: Mapping[str, Any],
) -> dict[str, Any]:
    """Medians over rounds; a step's communication is its time less that of the round's silent step."""
    rounds = len(took[SILENT])
    ways: dict[str, Any] = {}
    for way, bytes_sent in sent.items():
        longer = [step - silent for step, silent in zip(took[way], took[SILENT], strict=True)]
        ways[way] = {
            "mode": trainer.mode(way),
            "step_s": median(took[way]),
            "communication_s": median(longer),
            "bytes": median(bytes_sent),
            "steps_s": took[way],
        }
        if way in trainer.states:
            then, now = before[way], trainer.states[way].traffic
            ways[way]["exchange_s"] = (now.communication_s - then.communication_s) / rounds
            ways[way]["packing_s"] = (now.compression_s - then.compression_s) / rounds
    return {
        "parameters": sum(p.numel() for p in network().parameters()),
        "latency_s": link.latency_s,
        "bytes_per_s": link.bytes_per_s,
        "packing_s": link.packing_s,
        "rounds": rounds,
        "compute_s": median(took[SILENT]),
        "ways": ways,
    }


def _hook(way: str, states: Mapping[str, TernGradState]) -> Hook:
    if way == "fp32":  # what DistributedDataParallel does without a hook
        return lambda bucket: default_hooks.allreduce_hook(dist.group.WORLD, bucket)
    if way == "fp16":
        return lambda bucket: default_hooks.fp16_compress_hook(dist.group.WORLD, bucket)
    if way == "powersgd":
        power = PowerSGDState(None, 1, start_powerSGD_iter=2)
        return lambda bucket: powerSGD_hook(power, bucket)
    return lambda bucket: terngrad_hook(states[way], bucket)


def _dispatch(trainer: Trainer, bucket: dist.GradBucket) -> Future[Tensor]:
    return trainer.average(bucket)


# DistributedDataParallel compares the annotations themselves, which are strings in this file.
_dispatch.__annotations__.update({"bucket": dist.GradBucket, "return": Future[Tensor]})


def _go_on(rounds: int, spent: float, seconds: float) -> bool:
    """Whether there is another round; the same answer on all ranks."""
    longest = torch.tensor([spent], dtype=torch.float64)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    return rounds < _FEWEST or (rounds < _MOST and float(longest) < seconds)


def _slowest(took: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Of every step the time of the rank that took longest."""
    times = torch.tensor(list(took.values()), dtype=torch.float64)
    dist.all_reduce(times, dist.ReduceOp.MAX)
    return dict(zip(took, times.tolist(), strict=True))


def _sent() -> int:
    return int(_SENT.read_text())


if __name__ == "__main__":
    main(sys.argv[1].split(","), float(sys.argv[2]))
