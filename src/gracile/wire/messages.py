"""What a rank sends, what an owner makes of it, what everybody reads: functions of memory, without a network.

Every way of averaging is these steps; who carries the messages does not matter. A hook sends them to other
machines, :func:`average` passes them on within one process, and the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from gracile.algebra.philox import Random
from gracile.wire.blocks import COLUMNS, sum_bits
from gracile.wire.modes import Mode
from gracile.wire.packing import (
    add_,
    base3_words,
    decode_,
    from_base3_,
    mean_,
    round_,
    scaler,
    ternarize_,
    to_base3_,
)
from gracile.wire.parts import Layer, Piece, Share, shares, whole

CPU = torch.device("cpu")
SECOND = 0xFFFFFFFF
"""The lane of the random numbers of the second rounding, which no rank has."""


@final
@dataclass
class Memory:
    """Buffers by name: the first use makes one, later ones find it, so that steps allocate nothing.

    Those on the CPU are pinned once a GPU is in use, whose copies need no detour then.
    """

    buffers: dict[tuple[object, ...], Tensor]

    @classmethod
    def new(cls) -> Memory:
        """No buffers yet."""
        return cls({})

    def __call__(
        self, size: int, *name: object, dtype: torch.dtype = torch.int32, device: torch.device = CPU
    ) -> Tensor:
        """The buffer of a name on a device; what it holds is from before."""
        found = self.buffers.get((device, *name))
        if found is None or found.numel() != size or found.dtype != dtype:
            pinned = device == CPU and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
            found = torch.empty(size, dtype=dtype, device=device, pin_memory=pinned)
            self.buffers[device, *name] = found
        return found


@final
@dataclass(frozen=True)
class Code:
    """How the shares of a bucket are written in a mode, for so many ranks.

    Args:
        mode: one that packs.
        ranks: that train together.
        clip: of the second rounding, as of the first.
    """

    mode: Mode
    ranks: int
    clip: float | None = 2.5

    @property
    def width(self) -> int:
        """Bits of a number on the way back."""
        return {"exact": sum_bits(self.ranks), "four-bit": 4}.get(self.mode, 2)

    def there(self, share: Share) -> int:
        """Words of a message to the owner of ``share``."""
        return self._packed(share, 2) + share.floats

    def back(self, share: Share) -> int:
        """Words of a message from its owner; scales come last, where the mean was rounded."""
        scales = 0 if self.mode == "exact" else len(share.packed)
        return self._packed(share, self.width) + share.floats + scales

    def _packed(self, share: Share, width: int) -> int:
        size = share.blocks * COLUMNS * width
        return base3_words(size) if self.mode == "base3" else size

    def write(
        self,
        out: Tensor,
        share: Share,
        gradients: Mapping[Layer, Tensor],
        scales: Mapping[Layer, float],
        random: Random,
        memory: Memory,
    ) -> None:
        """Write the message to the owner of ``share``; packed where the gradients are.

        Args:
            out: int32, :meth:`there` words, on the CPU.
            share: whose numbers are sent.
            gradients: of all layers, float32, flat, on one device.
            scales: of the packed layers, the same on all ranks; a layer with an infinite one sends zeros.
            random: of this rank and step.
            memory: for what lies between.
        """
        size, device = share.blocks * COLUMNS * 2, _device(gradients)
        message = out if device == CPU else memory(out.numel(), "message", share.owner, device=device)
        packed = message[:size]
        if self.mode == "base3":
            packed = memory(size, "two bits", share.owner, device=device)
        for piece in share.packed:
            scale = scales[piece.layer]
            stream = replace(random, layer=piece.layer.number)
            x = gradients[piece.layer][piece.span]
            ternarize_(packed[piece.words(2)], x, _finite(scale), stream, piece.first)
        end = self._packed(share, 2)
        if self.mode == "base3":
            to_base3_(message[:end], packed)
        for piece in share.plain:
            message[end:][piece.floats].view(torch.float32).copy_(gradients[piece.layer][piece.span])
        if message is not out:
            out.copy_(message)

    def sum(
        self,
        out: Tensor,
        share: Share,
        messages: Sequence[Tensor],
        scales: Mapping[Layer, float],
        random: Random,
        memory: Memory,
    ) -> None:
        """Write what the owner of ``share`` sends back: means of all messages to it, in order of rank."""
        end, back = self._packed(share, 2), self._packed(share, self.width)
        packed = [message[:end] for message in messages]
        if self.mode == "base3":
            size = share.blocks * COLUMNS * 2
            packed = [memory(size, "of rank", i, share.owner) for i in range(len(messages))]
            for two_bits, message in zip(packed, messages, strict=True):
                from_base3_(two_bits, message[:end])
        floats = out[back : back + share.floats].view(torch.float32)
        _mean_in_order(floats, [m[end:].view(torch.float32) for m in messages])
        if not share.blocks:
            return
        if self.mode == "exact":
            add_(out[:back], packed)
            return
        digits = memory(share.blocks * COLUMNS * self.width, "rounded", share.owner)
        for piece, scale in zip(share.packed, out[back + share.floats :].view(torch.float32), strict=True):
            span = piece.span
            mean = memory(
                span.stop - span.start, "mean", piece.layer.number, share.owner, dtype=torch.float32
            )
            mean_(mean, [m[piece.words(2)] for m in packed], _finite(scales[piece.layer]) / self.ranks)
            scale.fill_(self._round(digits[piece.words(self.width)], piece, mean, random))
        (to_base3_ if self.mode == "base3" else torch.Tensor.copy_)(out[:back], digits)

    def read(
        self,
        message: Tensor,
        share: Share,
        gradients: Mapping[Layer, Tensor],
        scales: Mapping[Layer, float],
        memory: Memory,
    ) -> None:
        """Put the means that the owner of ``share`` sent back in the place of the gradients."""
        back, device = self._packed(share, self.width), _device(gradients)
        fresh = message[back + share.floats :].view(torch.float32).tolist()
        message = _brought(message, device, memory, share.owner)
        packed = message[:back]
        if self.mode == "base3":
            packed = memory(share.blocks * COLUMNS * 2, "read", share.owner, device=device)
            from_base3_(packed, message[:back])
        for piece in share.plain:
            gradients[piece.layer][piece.span].copy_(message[back:][piece.floats].view(torch.float32))
        for i, piece in enumerate(share.packed):
            if self.mode == "exact":
                offset, factor = self.ranks, _finite(scales[piece.layer]) / self.ranks
            elif self.mode == "four-bit":
                offset, factor = 7, fresh[i] / 7
            else:
                offset, factor = 1, fresh[i]
            out = gradients[piece.layer][piece.span]
            decode_(out, packed[piece.words(self.width)], width=self.width, offset=offset, factor=factor)

    def _round(self, out: Tensor, piece: Piece, mean: Tensor, random: Random) -> float:
        stream = replace(random, layer=piece.layer.number, lane=SECOND)
        scale = scaler(mean, None if self.mode == "four-bit" else self.clip)
        (round_ if self.mode == "four-bit" else ternarize_)(out, mean, scale, stream, piece.first)
        return scale


def mean_of_all(
    messages: Sequence[Tensor],
    share: Share,
    gradients: Mapping[Layer, Tensor],
    scales: Mapping[Layer, float],
    memory: Memory,
) -> None:
    """Mode ``gather``: put the means of every rank's whole message in the place of the gradients."""
    end, device = share.blocks * COLUMNS * 2, _device(gradients)
    messages = [_brought(message, device, memory, rank) for rank, message in enumerate(messages)]
    for piece in share.packed:
        parts = [message[piece.words(2)] for message in messages]
        mean_(gradients[piece.layer], parts, _finite(scales[piece.layer]) / len(messages))
    for piece in share.plain:
        floats = [message[end:][piece.floats].view(torch.float32) for message in messages]
        _mean_in_order(gradients[piece.layer], floats)


def average(
    gradients: Sequence[Mapping[Layer, Tensor]],
    mode: Mode,
    random: Random,
    *,
    clip: float | None = 2.5,
    scales: Mapping[Layer, float] | None = None,
) -> dict[Layer, Tensor]:
    """The average of the gradients of workers that live in one process: the numbers that a hook makes.

    Args:
        gradients: of every worker, by layer; float32, flat.
        mode: way of averaging.
        random: its seed and step; layers and ranks are filled in.
        clip: in root mean squares; ``None`` for the largest number.
        scales: of the packed layers; by default the largest that any worker has, layer by layer.

    >>> layer = Layer(0, 2, packed=True)
    >>> average([{layer: torch.tensor([1.0, -1.0])}] * 2, "exact", Random(0))[layer]
    tensor([ 1., -1.])
    """
    layers, ranks, memory = tuple(gradients[0]), len(gradients), Memory.new()
    if mode in ("fp32", "fp16"):
        kind = torch.float32 if mode == "fp32" else torch.float16
        return {n: torch.stack([g[n].to(kind) for g in gradients]).mean(0).float() for n in layers}
    scales = scales or {n: max(scaler(g[n], clip) for g in gradients) for n in layers if n.packed}
    lanes = [replace(random, lane=rank) for rank in range(ranks)]
    result = {n: torch.empty(n.numbers) for n in layers}
    code = Code("exact" if mode == "gather" else mode, ranks, clip)
    for share in [whole(layers)] if mode == "gather" else shares(layers, ranks):
        messages = [torch.empty(code.there(share), dtype=torch.int32) for _ in lanes]
        for message, own, lane in zip(messages, gradients, lanes, strict=True):
            code.write(message, share, own, scales, lane, memory)
        if mode == "gather":
            mean_of_all(messages, share, result, scales, memory)
        else:
            back = torch.empty(code.back(share), dtype=torch.int32)
            code.sum(back, share, messages, scales, random, memory)
            code.read(back, share, result, scales, memory)
    for layer in layers:
        if scales.get(layer) == float("inf"):
            result[layer].fill_(float("nan"))
    return result


def _device(gradients: Mapping[Layer, Tensor]) -> torch.device:
    return next(iter(gradients.values())).device


def _brought(message: Tensor, device: torch.device, memory: Memory, owner: int) -> Tensor:
    """A message where the gradients are."""
    if device == CPU:
        return message
    return memory(message.numel(), "brought", owner, device=device).copy_(message)


def _finite(scale: float) -> float:
    return 0.0 if scale == float("inf") else scale


def _mean_in_order(out: Tensor, parts: Sequence[Tensor]) -> None:
    """The mean, added up from the first to the last, so that all ranks and divisions have the same bits."""
    out.copy_(parts[0][: out.numel()])
    for part in parts[1:]:
        out.add_(part[: out.numel()])
    out.div_(out.new_full((), len(parts)))  # a GPU would multiply by the reciprocal of a plain number
