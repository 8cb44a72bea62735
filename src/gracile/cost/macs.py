"""How many multiply-accumulates (MACs) one operator does.

Contractions are counted by formula. Everything element-wise, data-moving, pooling, reducing or
normalizing counts 0, which is the convention of published MAC figures. An operator that is
neither known to contract nor known to be free has an unknown count: ``nan``, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from math import prod

import torch

from gracile.graph import Step


def macs(step: Step) -> float:
    """MACs of one step; ``nan`` where no formula is known.

    >>> from gracile.graph import Operand
    >>> def operand(*shape):
    ...     return Operand(shape, torch.float32, (None,) * len(shape))
    >>> macs(Step("aten.mm.default", "fc", "", (operand(2, 3), operand(3, 5)), {}, (operand(2, 5),)))
    30.0
    """
    name = _name(step.op)
    if name in CONTRACTIONS:
        return float(CONTRACTIONS[name](step))
    return 0.0 if not step.inputs or name in FREE or _is_marked_free(step.op) else math.nan


def is_view(op: str) -> bool:
    """Whether the operator's result shares its input's memory, so that nothing is written.

    >>> is_view("aten.transpose.int"), is_view("aten.relu_.default"), is_view("aten.clone.default")
    (True, False, False)
    """
    if _name(op) in {"_unsafe_view", "_reshape_alias"}:
        return True
    overload = _overload(op)
    if overload is None or torch.Tag.inplace_view in overload.tags:
        return overload is not None
    aliases = [result.alias_info for result in overload._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def _convolution(step: Step) -> int:
    # Each value of the result (of the input, if transposed) meets one filter: all weight axes but the first.
    image, weight = step.args[0].shape, step.args[1].shape
    transposed = len(step.args) > 6 and step.args[6] is True
    return prod(image if transposed else step.outputs[0].shape) * prod(weight[1:])


def _contraction(left: int) -> Callable[[Step], int]:
    # The result's values times the length of the left factor's last axis.
    return lambda step: prod(step.outputs[0].shape) * step.args[left].shape[-1]


def _attention(step: Step) -> int:
    query, key, value = (step.args[i].shape for i in range(3))
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


CONTRACTIONS: dict[str, Callable[[Step], int]] = {
    **dict.fromkeys(
        ("convolution", "_convolution", "convolution_overrideable", "cudnn_convolution"), _convolution
    ),
    **dict.fromkeys(("mm", "bmm", "linear", "mv", "dot", "vdot", "_int_mm", "_scaled_mm"), _contraction(0)),
    **dict.fromkeys(("addmm", "_addmm_activation", "baddbmm", "addmv"), _contraction(1)),
    **dict.fromkeys(
        (
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_fused_attention_overrideable",
        ),
        _attention,
    ),
}
"""ATen operator -> MACs of a step that calls it."""

_FREE = """
_adaptive_avg_pool2d _adaptive_avg_pool3d _assert_async _chunk_cat _embedding_bag
_embedding_bag_forward_only _fused_rms_norm _index_put_impl _lazy_clone _local_scalar_dense
_log_softmax _masked_softmax _native_batch_norm_legit _native_batch_norm_legit_functional
_native_batch_norm_legit_no_training _pack_padded_sequence _prelu_kernel _reshape_alias
_safe_softmax _softmax _stack _thnn_fused_gru_cell _thnn_fused_lstm_cell _to_copy _unique _unique2
_unsafe_index _unsafe_index_put _unsafe_masked_index _unsafe_view _upsample_nearest_exact1d
_upsample_nearest_exact2d _upsample_nearest_exact3d adaptive_max_pool2d adaptive_max_pool3d all amax
amin aminmax any argmax argmin argsort as_strided as_strided_scatter avg_pool2d avg_pool3d
batch_norm_elemt batch_norm_stats bernoulli binary_cross_entropy binary_cross_entropy_with_logits
bincount block_diag bucketize cat channel_shuffle col2im constant_pad_nd copy count_nonzero
cudnn_batch_norm cummax cummin cumprod cumsum detach diag_embed diagonal_scatter embedding
embedding_bag embedding_renorm empty_like empty_strided equal exponential fill flip
fractional_max_pool2d fractional_max_pool3d full_like gather glu histc huber_loss im2col index
index_add index_copy index_fill index_put index_reduce index_select isin kthvalue leaky_relu
linalg_vector_norm
log_sigmoid_forward logcumsumexp logsumexp masked_fill masked_scatter masked_select max
max_pool2d_with_indices max_pool3d_with_indices max_unpool2d max_unpool3d mean median min
miopen_batch_norm mode mse_loss multinomial nanmedian nansum native_batch_norm
native_channel_shuffle native_dropout native_group_norm native_layer_norm new_empty
new_empty_strided new_full new_ones new_zeros nll_loss2d_forward nll_loss_forward nonzero norm
normal ones_like pixel_shuffle pixel_unshuffle prod put rand_like randint_like randn_like random
reflection_pad1d reflection_pad2d reflection_pad3d renorm repeat repeat_interleave replication_pad1d
replication_pad2d replication_pad3d resize roll rot90 scatter scatter_add scatter_reduce
searchsorted select_scatter set slice_scatter smooth_l1_loss sort stack std std_mean sum take topk
trace tril tril_indices triu uniform unique_consecutive unsafe_split unsafe_split_with_sizes
upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
upsample_nearest3d upsample_trilinear3d var var_mean zero zeros_like
"""

FREE = frozenset(_FREE.split())
"""ATen operators that contract nothing, beside the element-wise ones and views, which torch marks itself."""


def _name(op: str) -> str:
    return op.split(".")[1].rstrip("_") if op.startswith("aten.") else op


def _overload(op: str) -> torch._ops.OpOverload | None:
    namespace, name, overload = op.split(".") if op.count(".") == 2 else ("", "", "")
    packet = getattr(getattr(torch.ops, namespace, None), name, None)
    return getattr(packet, overload, None)


def _is_marked_free(op: str) -> bool:
    # Torch does not mark every in-place twin (abs_, mish_), so the operator without "_" speaks for both.
    packet = getattr(torch.ops.aten, _name(op), None) if op.startswith("aten.") else None
    twins = [getattr(packet, overload) for overload in packet.overloads()] if packet else []
    marks = {tag for twin in (*twins, _overload(op)) if twin is not None for tag in twin.tags}
    return is_view(op) or not marks.isdisjoint((torch.Tag.pointwise, torch.Tag.view_copy))
