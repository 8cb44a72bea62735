"""Multi-head attention in which no size follows from another.

:class:`torch.nn.MultiheadAttention` insists on ``embed_dim == num_heads * head_dim`` and takes the scale
from ``head_dim``, so neither heads nor their dimensions nor the embedding can shrink alone.
:class:`Attention` computes the same from the same Parameter objects, with every size and the scale its own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from gracile.errors import ShapeError, UsageError


@final
class Attention(nn.Module):
    """Drop-in for :class:`torch.nn.MultiheadAttention`, whose parameters it takes over.

    softmax(s Q Kᵀ + mask) V for each head, the heads joined and projected; the scale s stays
    1/sqrt(head_dim) of the original however many dimensions are removed later. Parameter names are those of
    the original, so its ``state_dict`` fits. Nested tensors are not supported.

    Args:
        original: the module to take over.

    >>> original = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    >>> x = torch.randn(3, 5, 8)
    >>> torch.allclose(Attention(original).eval()(x, x, x)[0], original(x, x, x)[0], atol=1e-6)
    True
    """

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = original.num_heads
        self.head_dim = original.head_dim  # of queries and keys
        self.value_dim = original.head_dim
        self.scale = float(original.head_dim) ** -0.5
        # Rows of a fused in_proj_weight that make queries, keys, values.
        self.parts = [original.embed_dim] * 3
        self.dropout = original.dropout
        self.batch_first = original.batch_first
        self.add_zero_attn = original.add_zero_attn
        # nn.TransformerEncoder(Layer) reads this one to see that its fused kernel does not apply.
        self._qkv_same_embed_dim = False
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"):
            self.register_parameter(name, getattr(original, name))
        self.register_parameter("bias_k", original.bias_k)
        self.register_parameter("bias_v", original.bias_v)
        self.out_proj = original.out_proj
        self.train(original.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Arguments, shapes and results as :meth:`torch.nn.MultiheadAttention.forward`."""
        batched = query.dim() == 3
        if is_causal and attn_mask is None:
            raise UsageError("attention", got="is_causal without attn_mask", expected="both, or neither")
        if not batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q, k, v = self._project(query, key, value)
        mask = self._mask(attn_mask, key_padding_mask, q, k)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(k.shape[0], -1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.expand(v.shape[0], -1, -1)], dim=1)
        q = q.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        k = k.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        v = v.unflatten(-1, (self.num_heads, self.value_dim)).transpose(1, 2)
        if self.add_zero_attn:
            k, v = functional.pad(k, (0, 0, 0, 1)), functional.pad(v, (0, 0, 0, 1))
        if mask is not None and k.shape[2] > mask.shape[-1]:
            mask = functional.pad(
                mask, (0, k.shape[2] - mask.shape[-1])
            )  # the added positions are open to all
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.scale) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = functional.dropout(weights, dropout)
            heads = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            heads = functional.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale)
        output = self.out_proj(heads.transpose(1, 2).flatten(2))
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.split(self.parts)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.split(self.parts)
        q, k, v = (
            functional.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        return q, k, v

    def _mask(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, k: Tensor
    ) -> Tensor | None:
        """Both masks as numbers to add to scores of shape (batch, heads, queries, keys)."""
        batch, queries, keys = q.shape[0], q.shape[1], k.shape[1]
        masks = []
        if attn_mask is not None:
            if attn_mask.dim() == 3:
                if attn_mask.shape[0] != batch * self.num_heads:
                    raise ShapeError(
                        "attention",
                        got=f"attn_mask of shape {tuple(attn_mask.shape)}",
                        expected=f"({batch * self.num_heads}, {queries}, {keys}): one mask a head",
                        hint="after heads were removed, drop their masks too",
                    )
                attn_mask = attn_mask.unflatten(0, (batch, self.num_heads))
            masks.append(_additive(attn_mask, q.dtype))
        if key_padding_mask is not None:
            masks.append(_additive(key_padding_mask, q.dtype)[:, None, None, :])
        return sum(masks[1:], masks[0]) if masks else None


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))


def make_attention_explicit_(model: nn.Module, places: Collection[str] | None = None) -> list[str]:
    """Put an :class:`Attention` in the place of ``nn.MultiheadAttention``, in place; return the paths.

    A module reached by several paths stays one module. Subclasses are left alone: they may compute
    something else. A surrounding ``nn.TransformerEncoder`` is told not to use nested tensors.

    Args:
        model: contains the modules.
        places: paths of the modules to swap; all of them by default.

    Raises:
        UsageError: ``model`` itself is an ``nn.MultiheadAttention``, which has no place to be swapped in, or
            one of ``places`` holds neither an ``nn.MultiheadAttention`` nor an :class:`Attention`.

    >>> layer = nn.TransformerEncoderLayer(8, 2)
    >>> make_attention_explicit_(layer)
    ['self_attn']
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if places is None:
        places = [path for path, module in modules.items() if type(module) is nn.MultiheadAttention]
    for path in places:
        if not path or type(modules.get(path)) not in (nn.MultiheadAttention, Attention):
            raise UsageError(
                "making attention explicit",
                got=f"{type(modules.get(path)).__name__} at {path[:200]!r}",
                expected="an nn.MultiheadAttention inside the model",
                hint="a lone module can be wrapped as gracile.reduce.Attention(module)",
            )
    made: dict[int, Attention] = {}
    for path in places:
        parent, _, name = path.rpartition(".")
        found = modules[path]
        if type(found) is nn.MultiheadAttention:
            modules[parent]._modules[name] = made.setdefault(id(found), Attention(found))
    for module in modules.values():
        if isinstance(module, nn.TransformerEncoder) and any(
            isinstance(m, Attention) for m in module.modules()
        ):
            module.use_nested_tensor = False
    return list(places)
