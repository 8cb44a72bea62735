"""Calls as the user wrote them: which argument is the size of which dimension.

Below Python a size is a plain integer. So the same forward pass is also seen one level higher, where a call
such as ``x.view(b, self.heads, -1)`` still has its traced integers and its result already has its labels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gracile.graph.labels import Axis
from gracile.graph.rules.registry import Site, operand
from gracile.graph.sizes import Apply, Book, Length, Need, Traced, traced

Reader = Callable[["SizeMode", str, tuple[Any, ...], dict[str, Any], Any], None]
READERS: dict[str, Reader] = {}


def _reads(*names: str) -> Callable[[Reader], Reader]:
    def register(reader: Reader) -> Reader:
        READERS.update(dict.fromkeys(names, reader))
        return reader

    return register


_SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]


@final
class SizeMode(TorchFunctionMode):
    """Hands out traced sizes, and writes down where sizes are used."""

    def __init__(self, book: Book, site: Site) -> None:
        super().__init__()
        self.book, self.site = book, site

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.book.inside = hasattr(func, "__code__")
        try:
            out = func(*args, **kwargs)
        finally:
            self.book.inside = False
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return self.size(args[0]) if func == _SHAPE else out
        reader = READERS.get(name)
        if reader is not None:
            if name in ("size", "__len__", "numel", "nelement"):
                return _asked(self, name, args, kwargs, out)
            reader(self, name, args, kwargs, out)
        return out

    def axes(self, x: Any) -> Sequence[Axis]:
        found = operand(x) if isinstance(x, Tensor) else None
        if found is not None:
            return found.labels
        return (None,) * x.dim() if isinstance(x, Tensor) else ()

    def length(self, axis: Axis, n: int) -> int:
        return n if axis is None else traced(n, Length(axis, n), self.book)

    def size(self, x: Tensor) -> torch.Size:
        found = operand(x)
        if found is None or all(axis is None for axis in found.labels):
            return torch.Size(x.shape)
        return torch.Size([self.length(axis, n) for axis, n in zip(found.labels, found.shape, strict=True)])

    def needs(self, name: str, given: Sequence[Any], axes: Sequence[Axis], sizes: Sequence[int]) -> None:
        if len(given) != len(axes):
            return
        for value, axis, n in zip(given, axes, sizes, strict=True):
            if isinstance(value, int) and int(value) == n != 1:
                self.book.need(name, value, axis, n)

    def part(self, name: str, given: Any, axis: Axis, n: int) -> None:
        """A number that says where a dimension is parted, from its start or, if negative, from its end."""
        if isinstance(given, int) and not isinstance(given, bool) and 0 < abs(given) < n and axis is not None:
            head = int(given) > 0
            self.book.need(
                name, given if head else -given, axis[:given] if head else axis[given:], abs(given)
            )


def _asked(mode: SizeMode, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    x = args[0]
    if name in ("numel", "nelement"):
        total: int = 1
        for n in mode.size(x):
            total = n * total
        return total
    sizes = mode.size(x)
    if name == "__len__":
        return out  # len() insists on a plain int
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    return sizes if dim is None else sizes[dim]


for _name in ("size", "__len__", "numel", "nelement"):
    READERS[_name] = lambda mode, name, args, kwargs, out: None


def _flat(values: Sequence[Any]) -> Sequence[Any]:
    return values[0] if len(values) == 1 and isinstance(values[0], (list, tuple)) else values


@_reads("view", "reshape", "expand", "broadcast_to", "zeros", "ones", "empty", "rand", "randn", "new_zeros",
        "new_ones", "new_empty", "full", "new_full", "arange")  # fmt: skip
def _shaped(mode: SizeMode, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    if args and isinstance(args[0], Tensor):
        args = args[1:]
    given = kwargs.get("size", kwargs.get("shape"))
    if given is None:
        given = args[0] if name in ("full", "new_full") else _flat(args)
    mode.needs(name, given, mode.axes(out), out.shape)


@_reads("unflatten")
def _unflatten(mode: SizeMode, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    dim = args[1] if len(args) > 1 else kwargs["dim"]
    sizes = args[2] if len(args) > 2 else kwargs["sizes"]
    dim %= args[0].dim()
    mode.needs(name, sizes, mode.axes(out)[dim : dim + len(sizes)], out.shape[dim : dim + len(sizes)])


@_reads("repeat")
def _repeat(mode: SizeMode, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    times, x = _flat(args[1:]), args[0]
    before = [1] * (out.dim() - x.dim()) + list(x.shape)
    for value, n, axis, m in zip(times, before, mode.axes(out), out.shape, strict=True):
        copies = mode.site.reshape([axis], [m], [m // n, n])[:1] if n and m > n else [None]
        mode.needs(name, [value], copies, [m // max(n, 1)])


@_reads("repeat_interleave")
def _interleave(
    mode: SizeMode, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
) -> None:
    times = args[1] if len(args) > 1 else kwargs.get("repeats")
    dim = args[2] if len(args) > 2 else kwargs.get("dim")
    if isinstance(times, int) and dim is not None and int(times) > 1:
        axes, n = mode.axes(out), out.shape[dim]
        _, repeat = mode.site.reshape([axes[dim]], [n], [n // int(times), int(times)])
        mode.needs(name, [times], [repeat], [int(times)])


@_reads("lstm")
def _lstm(mode: SizeMode, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """The kernel takes states of different widths for a projection, and of equal widths for none."""
    h, c = next(item for item in args if isinstance(item, (list, tuple)))
    if h.shape[-1] != c.shape[-1]:
        widths = (Length(mode.axes(x)[-1], x.shape[-1]) for x in (h, c))
        mode.book.needs.append(Need(Apply("==", *widths), None, 0, "comparison", *mode.book.where()))


@_reads("unfold")
def _unfold(mode: SizeMode, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    if isinstance(args[0], Tensor) and len(args) == 4:  # the windows of a tensor, not those of an image
        mode.needs(name, args[2:3], mode.axes(out)[-1:], out.shape[-1:])
        mode.needs(name, args[3:4], mode.axes(out)[-1:], out.shape[-1:])


@_reads("split", "split_with_sizes")
def _split(
    mode: SizeMode, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Sequence[Tensor]
) -> None:
    given = args[1] if len(args) > 1 else kwargs.get("split_size", kwargs.get("split_size_or_sections"))
    dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    axes, sizes = [mode.axes(y)[dim] for y in out], [y.shape[dim] for y in out]
    if isinstance(given, int):  # the last part may be shorter
        whole = [i for i, n in enumerate(sizes) if n == int(given)]
        mode.needs(name, [given] * len(whole), [axes[i] for i in whole], [sizes[i] for i in whole])
    elif given is not None:
        mode.needs(name, given, axes, sizes)


@_reads("chunk")
def _chunk(
    mode: SizeMode, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Sequence[Tensor]
) -> None:
    chunks = args[1] if len(args) > 1 else kwargs["chunks"]
    dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    axis, n = mode.axes(args[0])[dim], args[0].shape[dim]
    if axis is None:
        return
    # ceil(n / chunks) is what torch will compute again
    each = Apply("*", -1, Apply("//", Apply("*", -1, Length(axis, n)), int(chunks)))
    size = -(-n // int(chunks))
    for y in out:
        if y.shape[dim] == size:
            mode.needs(name, [traced(size, each, mode.book)], [mode.axes(y)[dim]], [size])


@_reads(
    "add", "sub", "rsub", "mul", "div", "true_divide", "floor_divide", "pow", "add_", "sub_", "mul_", "div_",
    "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__",
    "__div__", "__rdiv__", "__pow__", "__rpow__", "__iadd__", "__isub__", "__imul__", "__idiv__",
    "__itruediv__", "clamp", "full_like", "masked_fill", "tensor", "as_tensor", "scalar_tensor",
)  # fmt: skip
def _arithmetic(mode: SizeMode, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    for value in (*args, *kwargs.values()):
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, Traced):
                mode.book.used(item)


@_reads("scaled_dot_product_attention")
def _attention(mode: SizeMode, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Where it decomposes, 1 / sqrt(width) is a mere number by the time an operator sees it."""
    if kwargs.get("scale") is None:
        axis = mode.axes(args[0] if args else kwargs["query"])[-1]
        if axis is not None:
            mode.book.pin(axis, "its length scales the attention")


@_reads("numpy", "__array__", "tolist", "__dlpack__")
def _escapes(mode: SizeMode, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    for axis in mode.axes(args[0]):
        if axis is not None:
            mode.book.pin(axis, f"its numbers leave torch through {name}")


@_reads("narrow")
def _narrow(mode: SizeMode, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    if len(args) == 4:
        x, dim, start, length = args
        axis, n = mode.axes(x)[dim], x.shape[dim]
        mode.part(name, start, axis, n)
        if isinstance(length, int) and length != n:
            mode.needs(name, [length], [mode.axes(out)[dim]], [out.shape[dim]])


@_reads("__getitem__")
def _getitem(mode: SizeMode, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    x, index = args
    items = index if isinstance(index, tuple) else (index,)
    if any(isinstance(item, (Tensor, list)) for item in items) or not isinstance(x, Tensor):
        return
    taken = sum(item is not None and item is not Ellipsis for item in items)
    axes, d = mode.axes(x), 0
    for item in items:
        if item is None:
            continue
        if item is Ellipsis:
            d += x.dim() - taken
            continue
        if isinstance(item, slice) and item.step in (None, 1):
            mode.part("slice", item.start, axes[d], x.shape[d])
            mode.part("slice", item.stop, axes[d], x.shape[d])
        d += 1


@_reads("pad")
def _pad(mode: SizeMode, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    pad = args[1] if len(args) > 1 else kwargs["pad"]
    axes, sizes = mode.axes(out), out.shape
    for back in range(1, len(pad) // 2 + 1):
        before, after = pad[2 * back - 2], pad[2 * back - 1]
        mode.part(name, before if int(before) > 0 else 0, axes[-back], sizes[-back])
        mode.part(name, -after if int(after) > 0 else 0, axes[-back], sizes[-back])


@_reads("layer_norm", "rms_norm")
def _layer_norm(
    mode: SizeMode, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
) -> None:
    shape = args[1] if len(args) > 1 else kwargs["normalized_shape"]
    mode.needs(name, shape, mode.axes(out)[out.dim() - len(shape) :], out.shape[out.dim() - len(shape) :])


def _groups(mode: SizeMode, name: str, x: Tensor, dim: int, groups: Any) -> None:
    if isinstance(groups, int) and int(groups) > 1:
        axis, n = mode.axes(x)[dim], x.shape[dim]
        mode.needs(
            name, [groups], mode.site.reshape([axis], [n], [int(groups), n // int(groups)])[:1], [int(groups)]
        )


@_reads("group_norm", "native_channel_shuffle", "channel_shuffle")
def _group_norm(
    mode: SizeMode, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
) -> None:
    _groups(
        mode, name, args[0], 1, args[1] if len(args) > 1 else kwargs.get("num_groups", kwargs.get("groups"))
    )


@_reads("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv(mode: SizeMode, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    x = args[0]
    dim = x.dim() - int(name[-2]) - 1
    _groups(mode, name, x, dim, args[6] if len(args) > 6 else kwargs.get("groups", 1))


@_reads("multi_head_attention_forward")
def _heads(mode: SizeMode, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
    query, joined = given["query"], given["out_proj_weight"]
    axis, n = mode.axes(query)[-1], query.shape[-1]
    mode.needs(name, [given["embed_dim_to_check"]], [axis], [n])
    _groups(mode, name, joined, 1, given["num_heads"])
    if axis is not None:  # as many rows as the width
        mode.book.need(name, mode.length(axis, n), mode.axes(joined)[1], n)


_ARGUMENTS = list(inspect.signature(torch.nn.functional.multi_head_attention_forward).parameters)

__all__ = ["SizeMode", "Traced"]
