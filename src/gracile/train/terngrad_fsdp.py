"""Few bits for networks divided over ranks: FSDP2 sends gradients once, to the owner of a part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor

from gracile.algebra.philox import Random
from gracile.errors import UsageError
from gracile.train.exchange import Exchange
from gracile.wire import BLOCK, mean_, scaler, ternarize_, words
from gracile.wire.messages import CPU, Memory


@final
class TernGradReduceScatter:
    """A reduce-scatter in 2 bits: 1/16 of the bytes of single precision, whatever the number of ranks.

        reduce = TernGradReduceScatter()
        for layer in layers:
            fully_shard(layer)
            layer.set_custom_reduce_scatter(reduce)

    Every call of ``fully_shard`` has one scale for all of its parameters, the largest that any rank has: call
    it for each layer. The sums themselves are exact, as there is no way back on which to round them.

    Args:
        clip: scale in root mean squares; ``None`` for the largest number.
        seed: of the random numbers.
        group: the same ranks on gloo, where FSDP itself is not; by default FSDP's own.

    Attributes:
        calls: reductions so far, which the random numbers depend on; set it when a run is resumed.
        bytes_sent: by this rank so far.

    Raises:
        UsageError: numbers that make no sense, or a reduction other than a sum or a mean.

    Source: C4 (TernGrad), with sharded gradients; there is no counterpart in the publication.
    """

    def __init__(
        self, clip: float | None = 2.5, seed: int = 0, group: dist.ProcessGroup | None = None
    ) -> None:
        if clip is not None and not clip > 0:
            raise UsageError("reducing gradients", got=f"clip={clip}", expected="a positive number or None")
        Random(seed)  # raises where it is none
        self.clip, self.seed, self.calls = clip, seed, 0
        self._group = group
        self._exchange: Exchange | None = None
        self._memory = Memory.new()

    @property
    def bytes_sent(self) -> int:
        return self._exchange.bytes_sent if self._exchange else 0

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for the gradients; called by FSDP."""
        return torch.empty(*size, dtype=dtype, device=device)

    @torch.no_grad()
    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        """Fill ``output_tensor`` with this rank's part of the sum or mean over ranks; called by FSDP."""
        if op not in (dist.ReduceOp.SUM, dist.ReduceOp.AVG):
            raise UsageError("reducing gradients", got=f"{op}", expected="a sum or a mean")
        if self._exchange is None:
            self._exchange = Exchange(self._group or group)
        exchange, x = self._exchange, input_tensor.float().flatten()
        scale = self._scale(x, exchange)
        size = output_tensor.numel()
        outgoing = [self._memory(words(size), size, "to", rank) for rank in range(exchange.ranks)]
        random = Random(self.seed, step=self.calls % 2**32, lane=exchange.rank)
        for rank, message in enumerate(outgoing):
            first = rank * -(-size // BLOCK)
            part = x[rank * size : (rank + 1) * size]
            packed = (
                message if x.device == CPU else self._memory(words(size), size, "packed", device=x.device)
            )
            ternarize_(packed, part, 0.0 if scale == float("inf") else scale, random, first)
            message.copy_(packed)
        incoming = [self._memory(words(size), size, "from", rank) for rank in range(exchange.ranks)]
        incoming[exchange.rank] = outgoing[exchange.rank]
        exchange.all_to_all(outgoing, incoming)
        self.calls += 1
        found = self._memory(size, size, "mean", dtype=torch.float32)
        if scale == float("inf"):
            found.fill_(float("nan"))
        else:
            mean_(found, incoming, scale / exchange.ranks if op == dist.ReduceOp.AVG else scale)
        output_tensor.copy_(found.view_as(output_tensor))

    def _scale(self, x: Tensor, exchange: Exchange) -> float:
        scales = [self._memory(1, "scale", rank, dtype=torch.float32) for rank in range(exchange.ranks)]
        scales[exchange.rank].fill_(scaler(x, self.clip))
        exchange.all_gather(scales[exchange.rank], scales)
        return float(torch.stack(scales).max())
