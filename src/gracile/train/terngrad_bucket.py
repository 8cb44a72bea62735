"""A bucket of gradients on its way: scaled, packed, exchanged, averaged, in memory that is used again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from gracile.algebra.philox import Random
from gracile.train.exchange import Exchange, Expected
from gracile.wire import decode_, scaler, ternarize_, words
from gracile.wire.messages import Code, Memory, mean_of_all
from gracile.wire.modes import Mode
from gracile.wire.parts import Layer, Share, shares, whole

Gradients = Mapping[Layer, Tensor]
Residuals = dict[int, Tensor]
"""What rounding left out so far, by the number of the layer."""


@final
@dataclass(frozen=True)
class Bucket:
    """Layers that travel together.

    Args:
        layers: in the order of the bucket.
        exchange: with the other ranks.
        mode: one that packs.
        clip: of the scales, in root mean squares.
    """

    layers: tuple[Layer, ...]
    exchange: Exchange
    mode: Mode
    clip: float | None
    memory: Memory = field(default_factory=Memory.new)
    shares: tuple[Share, ...] = field(init=False)

    def __post_init__(self) -> None:
        everything = (whole(self.layers),)
        found = everything if self.mode == "gather" else shares(self.layers, self.exchange.ranks)
        object.__setattr__(self, "shares", found)

    def average_(self, gradients: Gradients, random: Random, residuals: Residuals | None) -> int:
        """Put the average over all ranks in the place of the gradients.

        A layer in which any rank has a number that is not finite becomes NaN on all ranks.

        Args:
            gradients: of this rank: float32, flat, on one device. Messages go by the CPU.
            random: its seed and step.
            residuals: what was left out before and now, if that is to be made up for.

        Returns:
            How many layers had numbers that are not finite.
        """
        coming = self._expect()
        for layer in self.layers if residuals is not None else ():
            if layer.packed and layer.number in residuals:
                gradients[layer].add_(residuals[layer.number].to(gradients[layer].device))
        scales = self._scales(gradients, coming[0])
        own = replace(random, lane=self.exchange.rank)
        if residuals is not None:
            self._keep(gradients, scales, own, residuals)
        if self.mode == "gather":
            self._gather(gradients, scales, own, coming[1])
        else:
            self._two_phases(gradients, scales, own, coming[1])
        broken = [layer for layer, scale in scales.items() if scale == float("inf")]
        for layer in broken:
            gradients[layer].fill_(float("nan"))
        plain = [gradients[n] for n in self.layers if not n.packed]
        return len(broken) + sum(not bool(x.isfinite().all()) for x in plain)

    def _expect(self) -> list[Expected]:
        """Announce what comes first, so that nobody waits until this rank gets to it.

        Not the means: who is ahead would send them into the others' first messages, and queues overflow.
        """
        first = self._messages() if self.mode == "gather" else self._incoming()
        return [self.exchange.expect(phase) for phase in (self._all_scales(), first)]

    def _scales(self, gradients: Gradients, coming: Expected) -> dict[Layer, float]:
        """The largest scale that any rank has, layer by layer."""
        all_of = self._all_scales()
        own = all_of[self.exchange.rank]
        for i, layer in enumerate(self._packed):
            own[i] = scaler(gradients[layer], self.clip)
        self.exchange.send([own] * self.exchange.ranks, coming)
        return dict(zip(self._packed, torch.stack(all_of).amax(0).tolist(), strict=True))

    def _gather(
        self, gradients: Gradients, scales: Mapping[Layer, float], own: Random, coming: Expected
    ) -> None:
        messages, share = self._messages(), self.shares[0]
        message = messages[self.exchange.rank]
        self._code.write(message, share, gradients, scales, own, self.memory)
        self.exchange.send([message] * self.exchange.ranks, coming)
        mean_of_all(messages, share, gradients, scales, self.memory)

    def _two_phases(
        self,
        gradients: Gradients,
        scales: Mapping[Layer, float],
        own: Random,
        coming: Expected,
    ) -> None:
        code, me, shares = self._code, self.exchange.rank, self.shares
        outgoing = [self.memory(code.there(share), "to", share.owner) for share in shares]
        incoming, means = self._incoming(), self._means()
        incoming[me] = outgoing[me]

        def write(rank: int) -> None:
            code.write(outgoing[rank], shares[rank], gradients, scales, own, self.memory)

        def read(rank: int) -> None:
            code.read(means[rank], shares[rank], gradients, scales, self.memory)

        self.exchange.send(outgoing, coming, write)
        coming_back = self.exchange.expect(means)
        write(me)
        code.sum(means[me], shares[me], incoming, scales, own, self.memory)
        self.exchange.send([means[me]] * self.exchange.ranks, coming_back, read=read)
        read(me)

    @property
    def _packed(self) -> list[Layer]:
        return [layer for layer in self.layers if layer.packed]

    @property
    def _code(self) -> Code:
        if self.mode == "gather":
            return Code("exact", 1)
        return Code(self.mode, self.exchange.ranks, self.clip)

    def _all_scales(self) -> list[Tensor]:
        size = len(self._packed)
        return [self.memory(size, "scales", i, dtype=torch.float32) for i in range(self.exchange.ranks)]

    def _messages(self) -> list[Tensor]:
        size = self._code.there(self.shares[0])
        return [self.memory(size, "message", rank) for rank in range(self.exchange.ranks)]

    def _incoming(self) -> list[Tensor]:
        size = self._code.there(self.shares[self.exchange.rank])
        return [self.memory(size, "from", rank) for rank in range(self.exchange.ranks)]

    def _means(self) -> list[Tensor]:
        return [self.memory(self._code.back(share), "mean of", share.owner) for share in self.shares]

    def _keep(
        self, gradients: Gradients, scales: Mapping[Layer, float], own: Random, residuals: Residuals
    ) -> None:
        """Residual = what was to be sent less what will be: the same random numbers give the same bits."""
        for layer, scale in scales.items():
            if scale == float("inf"):
                continue
            x = gradients[layer]
            packed = self.memory(words(layer.numbers), "sent", layer.number, device=x.device)
            kept = residuals.get(layer.number)
            if kept is None or kept.device != x.device:  # resumed from a file
                kept = residuals[layer.number] = torch.empty_like(x)
            ternarize_(packed, x, scale, replace(own, layer=layer.number))
            decode_(kept, packed, width=2, offset=1, factor=scale)
            torch.sub(x, kept, out=kept)


def pieces(buffer: Tensor, gradients: Sequence[Tensor]) -> list[slice]:
    """Where in a bucket's buffer its gradients lie."""
    size = buffer.element_size()
    starts = [(g.data_ptr() - buffer.data_ptr()) // size for g in gradients]
    return [slice(start, start + g.numel()) for start, g in zip(starts, gradients, strict=True)]
