"""Gradients that travel in 2 bits: a communication hook for DistributedDataParallel.

    state = TernGradState(model)
    model.register_comm_hook(state, terngrad_hook)

It pays on links that are slow beside the computing: a gigabit a second, sites apart from each other. On fast
ones it does not; ``mode="auto"`` with a measured link then leaves the gradients as they are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, final, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.futures import Future

from gracile.algebra.philox import Random
from gracile.errors import UsageError
from gracile.train.sites import Sites
from gracile.train.terngrad_bucket import Bucket, Residuals, pieces
from gracile.wire.modes import Mode, Wire, bytes_sent, choose
from gracile.wire.parts import Layer


@final
@dataclass(frozen=True)
class Traffic:
    """What averaging gradients took on this rank.

    Attributes:
        steps: optimizer steps, those without an exchange not counted.
        bytes_sent: handed to the network, without its headers; between sites where there are sites.
        communication_s: seconds until messages had been sent and received.
        compression_s: the rest of the seconds of the exchange: to scale, pack and unpack.
        not_finite: layers that were NaN or infinite on any rank, summed over steps.
    """

    steps: int = 0
    bytes_sent: float = 0.0
    communication_s: float = 0.0
    compression_s: float = 0.0
    not_finite: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(a + b for a, b in zip(_values(self), _values(other), strict=True)))


@final
class TernGradState:
    """How gradients are averaged, and where that stands: the state of :func:`terngrad_hook`.

    Every layer is rounded at random to {-s, 0, s} with one scale for all ranks, so that the average is right
    in the mean but for what the clip cuts off. All ranks get the same bits, which depend on seed, step and
    gradients, not on how they are put into buckets.

    Args:
        model: whose gradients they are; a wrapper around it will do as well.
        mode: see :mod:`gracile.wire.modes`; ``auto`` takes what suits the number of ranks and the link.
        clip: scale in root mean squares of the layer; ``None`` for its largest number.
        smallest: tensors of fewer numbers travel in single precision.
        exempt: names of parameters that do so too, or beginnings of them: ``"fc."``, often the last layer.
        feedback: add what rounding left out to the next step's gradients. Kept by each rank; of what is
            rounded a second time, only the first rounding is made up for.
        site: ranks of one site, which follow each other. Within a site single precision is sent, packed
            numbers between sites.
        link: between ranks (or sites), for ``auto``: see :mod:`gracile.cost.links`.
        seed: of the random numbers.

    Attributes:
        mode: after the first step the mode that ``auto`` chose.
        step: steps so far.
        traffic: of all steps; ``last``: of the latest whole one.

    Raises:
        UsageError: arguments that make no sense.

    Source: C4 (TernGrad), with the exceptions and the sharing of scales of the authors' code. What differs is
    in the card of the work.

    >>> state = TernGradState(nn.Linear(64, 64), mode="exact")
    >>> state.mode, state.traffic.bytes_sent
    ('exact', 0.0)
    """

    def __init__(
        self,
        model: nn.Module,
        mode: Mode | Literal["auto"] = "auto",
        *,
        clip: float | None = 2.5,
        smallest: int = 1024,
        exempt: Sequence[str] = (),
        feedback: bool = False,
        site: int = 1,
        link: Wire | None = None,
        seed: int = 0,
    ) -> None:
        modes = (*get_args(Mode), "auto")
        _require("mode", mode in modes, mode, f"one of {', '.join(modes)}")
        _require("clip", clip is None or clip > 0, clip, "a positive number or None")
        _require("smallest", smallest >= 0, smallest, "0 or more numbers")
        _require("site", site >= 1, site, "1 or more ranks")
        Random(seed)  # raises where it is none
        names = [_bare(name) for name, _ in model.named_parameters()]
        for name in exempt:
            _require("exempt", any(n.startswith(name) for n in names), name, "a name of a parameter")
        self.mode: Mode | Literal["auto"] = mode
        self.step, self.seed = 0, seed
        self.traffic = self.last = Traffic()
        self._now = Traffic()
        self._clip, self._site, self._link = clip, site, link
        self._model, self._smallest, self._exempt = model, smallest, tuple(exempt)
        self._residuals: Residuals | None = {} if feedback else None
        self._layers: dict[int, Layer] = {}
        self._buckets: dict[int, Bucket] = {}
        self._sites: Sites | None = None
        self._thread = ThreadPoolExecutor(1, "terngrad")  # one, so that ranks exchange buckets in one order

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs. Residuals differ from rank to rank: each saves its own."""
        residuals = {str(number): x.clone() for number, x in (self._residuals or {}).items()}
        return {"step": self.step, "seed": self.seed, "residuals": residuals}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        self.step, self.seed = int(state["step"]), int(state["seed"])
        if self._residuals is not None:
            self._residuals = {int(number): x.clone() for number, x in state["residuals"].items()}

    def exchange(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """The future average of a bucket; what :func:`terngrad_hook` returns."""
        if self._sites is None:
            self._start()
        if self.mode in ("fp32", "fp16"):
            return self._plain(bucket)
        buffer, last = bucket.buffer(), bucket.is_last()
        cuda = buffer.device.type == "cuda"
        future: Future[Tensor] = Future(devices=[buffer.device] if cuda else None)
        parts = pieces(buffer, bucket.gradients())
        layers = tuple(self._layer(p) for p in bucket.parameters())
        ready = torch.cuda.current_stream(buffer.device).record_event() if cuda else None
        step = self.step
        self._thread.submit(self._work, future, buffer, bucket.index(), layers, parts, step, last, ready)
        self.step += last
        return future

    def _start(self) -> None:
        """Make the groups of processes and number the layers: at the first step, when both are there."""
        numbers = 0
        for number, (name, p) in enumerate(self._model.named_parameters()):
            packed = p.numel() >= self._smallest and not _bare(name).startswith(self._exempt)
            self._layers[id(p)] = Layer(number, p.numel(), packed)
            numbers += p.numel() * p.requires_grad
        self._sites = Sites.of(self._site)
        if self.mode == "auto":
            self.mode = choose(numbers, dist.get_world_size() // self._site, self._link)

    def _layer(self, p: Tensor) -> Layer:
        found = self._layers.get(id(p))
        if found is None:
            raise UsageError(
                "averaging gradients",
                got=f"one of shape {tuple(p.shape)} that belongs to another model",
                expected="those of the model that the state was made for",
                hint="TernGradState(model), with the model that DistributedDataParallel wraps",
            )
        return found

    def _plain(self, bucket: dist.GradBucket) -> Future[Tensor]:
        mode: Mode = "fp16" if self.mode == "fp16" else "fp32"
        sent = bytes_sent(mode, bucket.buffer().numel(), dist.get_world_size())
        self._count(Traffic(bytes_sent=sent), bucket.is_last())
        self.step += bucket.is_last()
        hook = default_hooks.fp16_compress_hook if mode == "fp16" else default_hooks.allreduce_hook
        return hook(dist.group.WORLD, bucket)

    def _work(
        self,
        future: Future[Tensor],
        buffer: Tensor,
        index: int,
        layers: tuple[Layer, ...],
        parts: list[slice],
        step: int,
        last: bool,
        ready: torch.cuda.Event | None,
    ) -> None:
        """In the thread: average one bucket."""
        try:
            with _stream_after(ready, buffer):
                self._average(buffer, index, layers, parts, step, last)
                future.set_result(buffer)
        except Exception as error:  # the ranks part here; whoever waits for the gradients gets it
            future.set_exception(error)

    @torch.no_grad()
    def _average(
        self, buffer: Tensor, index: int, layers: tuple[Layer, ...], parts: list[slice], step: int, last: bool
    ) -> None:
        began = time.perf_counter()
        sites = self._sites
        assert sites is not None
        assert self.mode != "auto"
        exchange = sites.between
        before = (exchange.bytes_sent, exchange.seconds) if exchange else (0, 0.0)
        place = buffer.device if sites.site is None else "cpu"  # where gloo reduces
        flat = buffer.to(place, torch.float32)  # itself, where it is so already
        sites.gather_(flat)
        broken = 0
        if exchange:
            bucket = self._buckets.get(index)
            if bucket is None or bucket.layers != layers:  # DDP sorts its buckets anew after the first step
                bucket = self._buckets[index] = Bucket(layers, exchange, self.mode, self._clip)
            gradients = {layer: flat[part] for layer, part in zip(layers, parts, strict=True)}
            broken = bucket.average_(gradients, Random(self.seed, step=step), self._residuals)
        sites.spread_(flat)
        if flat is not buffer:
            buffer.copy_(flat)
        sent, waited = (exchange.bytes_sent, exchange.seconds) if exchange else (0, 0.0)
        waited -= before[1]
        took = time.perf_counter() - began
        self._count(Traffic(0, sent - before[0], waited, took - waited, broken), last)

    def _count(self, traffic: Traffic, last: bool) -> None:
        self._now += replace(traffic, steps=int(last))
        if last:
            self.traffic, self.last, self._now = self.traffic + self._now, self._now, Traffic()


def terngrad_hook(state: TernGradState, bucket: dist.GradBucket) -> Future[Tensor]:
    """Average gradients in few bits: ``model.register_comm_hook(state, terngrad_hook)``.

    The exchange overlaps with the backward pass: buckets go through one thread and a group of processes of
    its own, in one order on all ranks.
    """
    return state.exchange(bucket)


# DistributedDataParallel compares the annotations themselves, which are strings in this file.
terngrad_hook.__annotations__.update({"bucket": dist.GradBucket, "return": Future[Tensor]})


def _stream_after(ready: torch.cuda.Event | None, buffer: Tensor) -> AbstractContextManager[Any]:
    if ready is None:
        return nullcontext()
    stream = torch.cuda.Stream(buffer.device)
    stream.wait_event(ready)
    return torch.cuda.stream(stream)


def _bare(name: str) -> str:
    """A parameter's name without that of a wrapper."""
    return name.removeprefix("module.")


def _values(traffic: Traffic) -> tuple[Any, ...]:
    return (
        traffic.steps,
        traffic.bytes_sent,
        traffic.communication_s,
        traffic.compression_s,
        traffic.not_finite,
    )


def _require(name: str, fine: bool, got: object, expected: str) -> None:
    if not fine:
        raise UsageError("averaging gradients", got=f"{name}={got!r}", expected=expected)
