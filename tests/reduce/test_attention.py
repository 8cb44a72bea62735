"""Attention computes what nn.MultiheadAttention computes, with the same parameters."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from gracile.errors import ShapeError, UsageError
from gracile.graph.cut import Cut
from gracile.reduce import Attention, apply_, make_attention_explicit_

OPTIONS = [
    {},
    {"bias": False},
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"add_bias_kv": True, "add_zero_attn": True, "kdim": 5, "vdim": 3},
    {"kdim": 5},
    {"batch_first": True, "vdim": 3, "bias": False},
    {"batch_first": True},
]


def inputs(options: dict[str, object], batched: bool = True) -> tuple[torch.Tensor, ...]:
    q, k, v = (
        torch.randn(n, 2, d, dtype=torch.float64)
        for n, d in ((4, 8), (6, options.get("kdim", 8)), (6, options.get("vdim", 8)))
    )
    if not batched:
        return q[:, 0], k[:, 0], v[:, 0]
    return tuple(x.transpose(0, 1) for x in (q, k, v)) if options.get("batch_first") else (q, k, v)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("batched", [True, False])
def test_equals_the_original(options: dict[str, object], batched: bool) -> None:
    torch.manual_seed(0)
    original = nn.MultiheadAttention(8, 2, dtype=torch.float64, **options).eval()
    for p in original.parameters():
        nn.init.normal_(p)
    explicit = Attention(original).eval()
    assert {n: id(p) for n, p in explicit.named_parameters()} == {
        n: id(p) for n, p in original.named_parameters()
    }
    assert explicit.state_dict().keys() == original.state_dict().keys()
    q, k, v = inputs(options, batched)
    heads = 2 * 2 if batched else 2
    padding = torch.tensor([[False] * 5 + [True], [False] * 4 + [True] * 2])
    masks = [
        None,
        torch.randn(4, 6, dtype=torch.float64),
        torch.ones(4, 6).triu(3).bool(),
        torch.randn(heads, 4, 6, dtype=torch.float64),
    ]
    paddings = [None, padding if batched else padding[0]]
    for mask, pad, need, average in itertools.product(masks, paddings, (True, False), (True, False)):
        if mask is not None and mask.is_floating_point() and pad is not None:
            pad = torch.zeros(pad.shape, dtype=torch.float64).masked_fill(pad, float("-inf"))
        kwargs = {
            "attn_mask": mask,
            "key_padding_mask": pad,
            "need_weights": need,
            "average_attn_weights": average,
        }
        want, got = original(q, k, v, **kwargs), explicit(q, k, v, **kwargs)
        torch.testing.assert_close(got[0], want[0], rtol=1e-10, atol=1e-12)
        assert (got[1] is None) == (want[1] is None)
        if want[1] is not None:
            torch.testing.assert_close(got[1], want[1], rtol=1e-10, atol=1e-12)


def test_causal_needs_its_mask() -> None:
    explicit = Attention(nn.MultiheadAttention(8, 2))
    x = torch.randn(4, 2, 8)
    with pytest.raises(UsageError, match="attn_mask"):
        explicit(x, x, x, is_causal=True)
    with pytest.raises(ShapeError, match="one mask a head"):
        explicit(x, x, x, attn_mask=torch.zeros(3, 4, 4))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # torch itself, on building norm_first
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_transformer_with_explicit_attention(norm_first: bool, training: bool) -> None:
    """Encoder and decoder stacks keep working, and never take the fused path with the wrong sizes."""
    torch.manual_seed(0)
    model = nn.Transformer(
        8, 2, 2, 1, 16, dropout=0.0, batch_first=True, norm_first=norm_first, dtype=torch.float64
    ).train(training)
    twin = copy.deepcopy(model)
    paths = make_attention_explicit_(twin)
    assert len(paths) == 2 + 2
    assert not any(type(m) is nn.MultiheadAttention for m in twin.modules())
    assert twin.training == training
    src, tgt = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 4, 8, dtype=torch.float64)
    with torch.no_grad():
        mask = nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64)
        torch.testing.assert_close(twin(src, tgt, tgt_mask=mask), model(src, tgt, tgt_mask=mask))
        padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
        want = model.encoder(src, src_key_padding_mask=padding)
        torch.testing.assert_close(twin.encoder(src, src_key_padding_mask=padding)[0], want[0])
        torch.testing.assert_close(twin.encoder(src, src_key_padding_mask=padding)[1, :3], want[1, :3])
        # a head less and other head sizes: the stack must run
        heads, rows = [4, 5, 6, 7], [4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23]
        for path in paths:
            apply_(
                twin,
                Cut(
                    {
                        f"{path}.in_proj_weight": {0: rows},
                        f"{path}.in_proj_bias": {0: rows},
                        f"{path}.out_proj.weight": {1: heads},
                    },
                    {f"{path}.num_heads": 1, f"{path}.parts": [4, 4, 4]},
                ),
            )
        for path in paths:
            module = model.get_submodule(path)
            module.out_proj.weight[:, :4] = 0  # the masked original
        torch.testing.assert_close(twin(src, tgt, tgt_mask=mask), model(src, tgt, tgt_mask=mask))


def test_shared_module_stays_shared() -> None:
    attention = nn.MultiheadAttention(8, 2)
    model = nn.ModuleDict({"a": attention, "b": attention})
    assert make_attention_explicit_(model) == ["a", "b"]
    assert model["a"] is model["b"]
    with pytest.raises(UsageError, match="inside the model"):
        make_attention_explicit_(attention)
