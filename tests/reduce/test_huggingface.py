"""Models of another library, whose sizes live in configurations shared by many modules."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gracile.reduce import load, random_units, remove, save

transformers = pytest.importorskip("transformers", reason="an optional extra")


def llama() -> nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 99}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    return transformers.LlamaForCausalLM(config).double().eval()


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return transformers.GPT2LMHeadModel(config).double().eval()


@pytest.mark.parametrize("norms", ["renormalize", "keep"])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_reduce_save_load(make: Any, norms: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, tokens = make(), torch.randint(99, (2, 9))
    reduction = remove(model, tokens, units=partial(random_units, fraction=0.5), norms=norms, use_cache=False)
    assert reduction.verdict.error < 1e-12
    size = sum(p.numel() for p in reduction.model.parameters()) / sum(p.numel() for p in model.parameters())
    assert size < (0.4 if norms == "renormalize" else 0.7)
    save(tmp_path, reduction.model, reduction.cut)
    again = load(tmp_path, make())
    other = torch.randint(99, (3, 6))
    with torch.no_grad():
        want = reduction.model(other, use_cache=False).logits
        assert want.shape == (3, 6, 99)
        assert torch.equal(again(other, use_cache=False).logits, want)
