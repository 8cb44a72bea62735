"""How a transformers architecture is put down: a configuration, a class, sizes and inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from reducible.architecture import Architecture, Built

Inputs = Callable[[int], dict[str, Any]]
Answer = Callable[[Any], Any]

PLAIN: Mapping[str, int] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}


def tokens(length: int = 9, count: int = 99, **more: Any) -> Inputs:
    """Word numbers from 4 up, past the special ones; ``more`` is passed to the model as it is."""
    return lambda batch: {"input_ids": torch.randint(4, count, (batch, length)), **more}


def both(length: int = 9, answers: int = 6, count: int = 99, **more: Any) -> Inputs:
    """Word numbers for an encoder and for a decoder."""
    return lambda batch: {
        "input_ids": torch.randint(4, count, (batch, length)),
        "decoder_input_ids": torch.randint(4, count, (batch, answers)),
        **more,
    }


def pixels(*size: int, **more: Any) -> Inputs:
    """Images, or clips where the first size is a number of frames."""
    return lambda batch: {"pixel_values": torch.randn(batch, *size), **more}


def sound(samples: int, **more: Any) -> Inputs:
    """A wave."""
    return lambda batch: {"input_values": torch.randn(batch, samples), **more}


def features(*size: int, name: str = "input_features", **more: Any) -> Inputs:
    """A spectrogram, or whatever the named argument takes in real numbers."""
    return lambda batch: {name: torch.randn(batch, *size), **more}


def joined(*parts: Inputs) -> Inputs:
    """The inputs of all parts together."""
    return lambda batch: {key: value for part in parts for key, value in part(batch).items()}


def named(*names: str) -> Answer:
    """These fields of a model's output; of one name the field itself."""

    def answer(output: Any) -> Any:
        found = tuple(output[name] for name in names)
        return found[0] if len(found) == 1 else found

    return answer


logits, last = named("logits"), named("last_hidden_state")


def pretrained(
    name: str, family: str, prefix: str, head: str, inputs: Inputs, answer: Answer | None, **sizes: Any
) -> Architecture:
    """``<prefix><head>(<prefix>Config(**sizes))``; weights and inputs come from seed 0."""

    def build(batch: int) -> Built:
        import transformers  # takes seconds, and the names alone can be listed without

        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        try:
            config = getattr(transformers, f"{prefix}Config")(**sizes)
            model: nn.Module = getattr(transformers, f"{prefix}{head}")(config).eval()
            given = inputs(batch)
        finally:
            torch.random.set_rng_state(state)
        return Built(model, (), given, answer)

    return Architecture(name, "transformers", family, build)
