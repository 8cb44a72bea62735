"""Models of another library, whose sizes live in configurations shared by many modules."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from reducible.catalog import architectures, find
from reducible.trial import attempt
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


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("deberta_v2", 0.33),  # positions looked up by distance, weights shared between queries and keys
        ("longformer", 0.31),  # windows by strides
        ("funnel", 0.33),  # pools along time
        ("t5", 0.28),  # the encoder's states are returned too
        ("bart", 0.33),  # takes one index of the width for its shape
        ("mixtral", 0.29),  # grouped products
        ("gpt_oss", 0.29),  # gates and values interleaved
        ("deepseek_v3", 0.31),  # low rank attention
        ("mamba2", 0.34),
        ("qwen3_next", 0.30),  # triangular equations
        ("swin", 0.28),
        ("detr", 0.39),
        ("wav2vec2", 0.33),  # weight norm of taps
        ("wavlm", 0.34),  # attention as a function
        ("clip", 0.33),
        ("patchtst", 0.38),
    ],
)
def test_families_are_reduced(name: str, left: float) -> None:
    trial = attempt(find(f"transformers/{name}"))
    assert trial.outcome == "ok", trial.reason
    assert trial.left is not None
    assert trial.left < left
    assert trial.own_s is not None
    assert trial.own_s < 10


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "mixtral", "mamba", "bart"])
def test_a_reduced_model_writes_the_same_with_and_without_its_memory(name: str) -> None:
    built = find(f"transformers/{name}").build(2)
    given = {key: value for key, value in built.kwargs.items() if key != "use_cache"}
    mask = torch.ones_like(given["input_ids"])
    mask[1, :3] = 0  # watched with padding, a memory of keys and values, and a loss
    answers = given.get("decoder_input_ids", given["input_ids"])
    model = remove(
        built.model, units=partial(random_units, fraction=0.5), **given, attention_mask=mask, labels=answers,
        outputs=built.outputs,
    ).model  # fmt: skip
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    written = [model.generate(given["input_ids"][:1], use_cache=kept, **settings) for kept in (True, False)]
    assert torch.equal(*written)
    assert 6 <= written[0].shape[1] <= given["input_ids"].shape[1] + 7


def test_the_catalog_names_each_architecture_once() -> None:
    catalog = architectures("transformers")
    assert len({a.name for a in catalog}) == len(catalog) >= 250
    assert len({a.family for a in catalog}) >= 10
