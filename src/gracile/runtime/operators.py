"""Sparse kernels as operators of torch, so that networks with them are exported and compiled like others.

``torch.ops.gracile.sparse_conv2d`` and ``sparse_linear`` take the weight with its zeros, as a tensor. What
was packed for it is kept as long as the tensor lives, and packed anew once the tensor has been written to. On
other devices and for other dtypes they are the dense operators.
"""

from __future__ import annotations

import atexit
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional

from gracile.errors import UsageError
from gracile.runtime.kernels import Conv, Linear

_MOST = 8  # packings of one weight, for as many sizes of map
_library: Any = torch.library.Library  # untyped
_LIBRARY = _library("gracile", "FRAGMENT")
_weak: Any = StorageWeakRef  # untyped
_LIBRARY.define(
    "sparse_conv2d(Tensor x, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation,"
    " int groups, int block) -> Tensor"
)
_LIBRARY.define("sparse_linear(Tensor x, Tensor weight, Tensor? bias, int block) -> Tensor")

Packs = OrderedDict[Any, tuple[Any, Conv | Linear]]
_packed: dict[int, tuple[Any, Packs]] = {}
"""Address of a weight's storage -> a weak reference to it, and what it was packed to."""
atexit.register(_packed.clear)  # native objects that outlive their module are reported as leaks


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    block: int,
) -> Tensor:
    slide = (tuple(stride), tuple(padding), tuple(dilation))
    size = (int(x.shape[2]), int(x.shape[3])) if x.dim() == 4 else (0, 0)

    runs = _block(block)

    def pack() -> Conv:
        names: Any = dict(zip(("stride", "padding", "dilation"), slide, strict=True))
        return Conv(weight, bias, size=size, groups=groups, block=runs, **names)

    kernel = _kept(x, weight, bias, ("conv", size, *slide, groups, block), pack) if x.dim() == 4 else None
    if kernel is None:
        return functional.conv2d(x, weight, bias, *slide, groups).contiguous()
    return kernel(x.detach().contiguous(), threads=torch.get_num_threads())


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, block: int) -> Tensor:
    runs = _block(block)
    kernel = _kept(x, weight, bias, ("linear", block), lambda: Linear(weight, bias, block=runs))
    if kernel is None:
        return functional.linear(x, weight, bias).contiguous()
    return kernel(x.detach().contiguous(), threads=torch.get_num_threads())


def _kept(
    x: Tensor, weight: Tensor, bias: Tensor | None, kind: tuple[Any, ...], pack: Callable[[], Conv | Linear]
) -> Conv | Linear | None:
    """The packed weight; None where there is no kernel for such numbers."""
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in (x, weight)):
        return None
    given = (weight,) if bias is None else (weight, bias)
    if any(t.is_inference() for t in given):  # they do not tell when they are written to
        return _or_none(pack)
    state = tuple((t.data_ptr(), t._version, tuple(t.stride())) for t in given)
    storage = weight.untyped_storage()
    if storage._cdata not in _packed:
        for address in [a for a, (reference, _) in _packed.items() if reference.expired()]:
            del _packed[address]
        # As long as there is a reference, even a weak one, nothing else gets this address.
        _packed[storage._cdata] = (_weak(storage), OrderedDict())
    packs = _packed[storage._cdata][1]
    key = (weight.storage_offset(), tuple(weight.shape), kind)
    if key not in packs or packs[key][0] != state:
        kernel = _or_none(pack)
        if kernel is None:
            return None
        packs[key] = (state, kernel)
        if len(packs) > _MOST:
            packs.popitem(last=False)
    return packs[key][1]


def _or_none(pack: Callable[[], Conv | Linear]) -> Conv | Linear | None:
    try:
        return pack()
    except UsageError:  # numbers that are not finite
        return None


def _block(block: int) -> Any:
    if block not in (1, 16):
        raise UsageError("running a sparse layer", got=f"block={block}", expected="1 or 16")
    return block


def _conv2d_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    block: int,
) -> Tensor:
    sides = [
        (side + 2 * p - d * (k - 1) - 1) // s + 1
        for side, k, s, p, d in zip(x.shape[-2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    return x.new_empty((*x.shape[:-3], weight.shape[0], *sides))


def _linear_fake(x: Tensor, weight: Tensor, bias: Tensor | None, block: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *ctx.settings = inputs
    ctx.save_for_backward(x, weight)
    ctx.biased = bias is not None


def _conv2d_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    stride, padding, dilation, groups, _ = ctx.settings
    sizes = [weight.shape[0]] if ctx.biased else None
    wanted = [*ctx.needs_input_grad[:2], ctx.biased and ctx.needs_input_grad[2]]
    found = torch.ops.aten.convolution_backward(
        gradient, x, weight, sizes, stride, padding, dilation, False, [0, 0], groups, wanted
    )
    return (*found, None, None, None, None, None)


def _linear_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    rows = gradient.flatten(0, -2)
    wanted = ctx.needs_input_grad
    return (
        gradient @ weight if wanted[0] else None,
        rows.t() @ x.flatten(0, -2) if wanted[1] else None,
        rows.sum(0) if ctx.biased and wanted[2] else None,
        None,
    )


for _name, _function, _fake, _backward in (
    ("sparse_conv2d", _conv2d, _conv2d_fake, _conv2d_backward),
    ("sparse_linear", _linear, _linear_fake, _linear_backward),
):
    _LIBRARY.impl(_name, _function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"gracile::{_name}", _fake, lib=_LIBRARY)
    torch.library.register_autograd(f"gracile::{_name}", _backward, setup_context=_remember, lib=_LIBRARY)

sparse_conv2d = torch.ops.gracile.sparse_conv2d.default
sparse_linear = torch.ops.gracile.sparse_linear.default
