"""Operators that put their answer into memory that is given to them.

A writer is called with that memory and the operator's arguments, and returns the call that does the work:
what can be prepared (windows into the inputs, say) is prepared once and not at every run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gracile.runtime.fuse import scale_shift
from gracile.runtime.kernels.native import mean, pooling

aten = torch.ops.aten
Call = Callable[[], object]
Writer = Callable[..., Call]
"""``writer(out, *args, **kwargs)`` returns the call; it may raise ``NotImplementedError``."""


def writer(target: Any) -> Writer | None:
    """The writer of an operator: one of those below, or torch's own ``out`` variant if it is a real one.

    >>> out = torch.empty(2)
    >>> _ = writer(aten.add.Tensor)(out, torch.ones(2), torch.ones(2))()
    >>> out
    tensor([2., 2.])
    """
    if target in _WRITERS:
        return _WRITERS[target]
    if not isinstance(target, torch._ops.OpOverload) or len(target._schema.returns) != 1:
        return None
    mine = [(a.name, str(a.type)) for a in target._schema.arguments]
    packet = target.overloadpacket
    for overload in packet.overloads():
        candidate = getattr(packet, overload)
        # Those that were generated make their answer first and copy it then.
        if torch.Tag.generated in candidate.tags:
            continue
        outs = [a.name for a in candidate._schema.arguments if a.is_out]
        others = [(a.name, str(a.type)) for a in candidate._schema.arguments if not a.is_out]
        if len(outs) == 1 and others == mine:
            return partial(_by_torch, candidate, outs[0])
    return None


def _by_torch(operator: Any, keyword: str, out: Tensor, *args: Any, **kwargs: Any) -> Call:
    return partial(operator, *args, **kwargs, **{keyword: out})


def _relu(out: Tensor, x: Tensor) -> Call:
    return partial(torch.clamp_min, x, 0, out=out)


def _scale_shift(out: Tensor, x: Tensor, scale: Tensor, shift: Tensor) -> Call:
    return partial(torch.addcmul, shift, x, scale, out=out)


def _embedding(
    out: Tensor,
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale: bool = False,
    sparse: bool = False,
) -> Call:
    return partial(torch.index_select, weight, 0, indices.reshape(-1), out=out.view(-1, weight.shape[1]))


def _mean_pool(out: Tensor, x: Tensor, size: Sequence[int]) -> Call:
    if list(size) == [1, 1]:
        return _mean(out, x, (-2, -1), True)
    return partial(aten.adaptive_avg_pool2d.out, x, size, out=out)


def _mean(
    out: Tensor,
    x: Tensor,
    dims: Sequence[int] | None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Call:
    """By the compiled kernel where means are those of whole planes."""
    planes = dims is not None and sorted(dim % x.dim() for dim in dims) == [x.dim() - 2, x.dim() - 1]
    if planes and _plain(x) and _plain(out) and x.numel():
        call = mean(x, out)
        if call:
            return call
    return partial(torch.mean, x, dims, keepdim=keepdim, dtype=dtype, out=out)


def _pad(
    out: Tensor, x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Call:
    if mode != "constant" or min(pad) < 0:
        raise NotImplementedError
    inner = out
    for at, before in enumerate(pad[::2]):
        dim = x.dim() - 1 - at
        inner = inner.narrow(dim, before, x.shape[dim])

    def call() -> None:
        out.fill_(value) if value else out.zero_()
        inner.copy_(x)

    return call


def _max_pool(
    out: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> Call:
    """By the compiled kernel, or else the largest of shifted pictures, one for each place in the window."""
    kernel, padding, dilation = (_both(value) for value in (kernel, padding, dilation))
    stride = _both(stride or kernel)
    if _plain(x) and _plain(out) and dilation == (1, 1) and out.numel():
        pool = pooling(_both(x.shape[-2:]), kernel, stride, padding, _both(out.shape[-2:]))
        if pool:
            planes = out.numel() // (out.shape[-2] * out.shape[-1])
            return partial(_pool, pool, x, out, planes)
    centered = all(2 * p <= k - 1 for p, k in zip(padding, kernel, strict=True))
    if ceil_mode or dilation != (1, 1) or not centered:
        raise NotImplementedError
    # The place `padding` sees every output; it comes first, and the others are compared with it.
    places = [(i, j) for i in range(kernel[0]) for j in range(kernel[1]) if (i, j) != padding]
    shifted = []
    for place in places:
        target, source = out, x
        for dim, (at, s, p) in enumerate(zip(place, stride, padding, strict=True), x.dim() - 2):
            first = max(0, -((at - p) // s)) if at < p else 0
            last = min(out.shape[dim] - 1, (x.shape[dim] - 1 - at + p) // s)
            target = target.narrow(dim, first, last + 1 - first)
            source = _every(source, dim, first * s + at - p, s, last + 1 - first)
        shifted.append((target, source))
    center = x
    for dim, s in enumerate(stride, x.dim() - 2):
        center = _every(center, dim, 0, s, out.shape[dim])

    def call() -> None:
        first, rest = center, shifted
        if whole:  # two pictures in one pass instead of a copy and a pass
            torch.maximum(center, shifted[0][1], out=out)
            rest = shifted[1:]
        else:
            out.copy_(first)
        for target, source in rest:
            torch.maximum(target, source, out=target)

    whole = bool(shifted) and shifted[0][0].shape == out.shape
    return call


def _plain(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.is_contiguous() and x.device.type == "cpu"


def _pool(pool: Any, x: Tensor, out: Tensor, planes: int) -> None:
    pool.run(x.data_ptr(), out.data_ptr(), planes, torch.get_num_threads())


def _every(x: Tensor, dim: int, start: int, step: int, count: int) -> Tensor:
    return x.narrow(dim, start, (count - 1) * step + 1)[(*[slice(None)] * dim, slice(None, None, step))]


def _both(value: Sequence[int]) -> tuple[int, int]:
    return (value[0], value[-1])


_WRITERS: dict[Any, Writer] = {
    scale_shift: _scale_shift,
    aten.relu.default: _relu,
    aten.embedding.default: _embedding,
    aten.adaptive_avg_pool2d.default: _mean_pool,
    aten.mean.dim: _mean,
    aten.pad.default: _pad,
    aten.max_pool2d.default: _max_pool,
}
