"""Element by element: equal positions share their fate, sizes of 1 broadcast."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gracile.graph.rules.registry import Axes, Site, nothing, rule, tensors_of


@rule(
    "copy",
    "_prelu_kernel",
    "leaky_relu",  # torch 2.11 has it without the tag
    "hardswish",
    "masked_fill",
    "zero",
    "fill",
    "floor_divide",
    "dropout",
    "feature_dropout",
    "alpha_dropout",
    "where",
    "lerp",
    "complex",
    "polar",
    "clamp",
)
def pointwise(at: Site, out: Tensor, *args: Any, **kwargs: Any) -> Axes:
    """Everything tagged element-wise comes here too."""
    return at.broadcast(out.shape, *tensors_of((*args, *kwargs.values())))


@rule(
    "clone", "_to_copy", "alias", "detach", "lift_fresh", "lift_fresh_copy", "contiguous", "positive",
    "resolve_conj", "zeros_like", "ones_like", "full_like", "empty_like", "_conj",
)  # fmt: skip
def same(at: Site, out: Tensor, x: Tensor, *_: Any, **__: Any) -> Axes:
    return at.axes(x)


@rule("native_dropout")
def native_dropout(at: Site, out: Any, x: Tensor, *_: Any, **__: Any) -> tuple[Axes, ...]:
    return at.axes(x), at.axes(x)


@rule("log_sigmoid_forward")
def log_sigmoid(at: Site, out: tuple[Tensor, Tensor], x: Tensor) -> tuple[Axes, ...]:
    return at.axes(x), at.axes(x) if out[1].shape == x.shape else nothing(out[1].dim())


@rule("glu")
def glu(at: Site, out: Tensor, x: Tensor, dim: int = -1) -> Axes:
    axes = at.axes(x)
    axis = axes[dim]
    if axis is not None:
        half = len(axis) // 2
        axes[dim] = at.unify(axis[:half], axis[half:])
    return axes


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "empty_strided",
      "new_empty_strided")  # fmt: skip
def uniform(at: Site, out: Tensor, *_: Any, **__: Any) -> Axes:
    return [at.fresh(n) for n in out.shape]


@rule(
    "arange", "linspace", "logspace", "eye", "rand", "randn", "randint", "randperm", "scalar_tensor",
    "tril_indices", "triu_indices", "rand_like", "randn_like", "randint_like",
)  # fmt: skip
def constant(at: Site, out: Tensor, *_: Any, **__: Any) -> Axes:
    return nothing(out.dim())


@rule(
    "_local_scalar_dense", "item", "equal", "is_nonzero", "is_same_size", "_assert_async",
    "_assert_tensor_metadata", "sym_size", "size", "stride", "numel",
)  # fmt: skip
def scalar(at: Site, out: Any, *_: Any, **__: Any) -> tuple[Axes, ...]:
    return ()
