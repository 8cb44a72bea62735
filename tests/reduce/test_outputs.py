"""Only the part of a model's answer that matters keeps its size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gracile.errors import UsageError
from gracile.graph import watch
from gracile.reduce import random_units, remove

halves = partial(random_units, fraction=0.5)


class EncoderDecoder(nn.Module):
    """Answers with logits and, beside them, what is within."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        states = self.encoder(x).tanh()
        return {"logits": self.decoder(states), "states": (states, states * 2), "name": "answer"}


def test_all_outputs_matter_unless_selected() -> None:
    torch.manual_seed(0)
    model, x = EncoderDecoder().double(), torch.randn(4, 5).double()
    assert len(watch(model, x).units) == 0
    reduction = remove(model, x, units=halves, outputs=lambda out: out["logits"])
    small = reduction.model(x)
    assert [tuple(y.shape) for y in (small["logits"], *small["states"])] == [(4, 3), (4, 4), (4, 4)]
    masked = EncoderDecoder().double()
    masked.load_state_dict(model.state_dict())
    kept = reduction.cut.tensors["encoder.weight"][0]
    gone = [i for i in range(8) if i not in kept]
    with torch.no_grad():
        masked.decoder.weight[:, gone] = 0
    torch.testing.assert_close(small["logits"], masked(x)["logits"], rtol=0, atol=1e-12)
    torch.testing.assert_close(small["states"][1], masked(x)["states"][1][:, kept], rtol=0, atol=1e-12)


def test_a_selection_may_compute() -> None:
    torch.manual_seed(0)
    model = EncoderDecoder().double()
    reduction = remove(
        model, torch.randn(4, 5).double(), units=halves, outputs=lambda out: out["logits"].softmax(-1)[:, :2]
    )
    assert reduction.model.encoder.out_features == 4
    assert reduction.verdict.error < 1e-12


def test_narrower_states_that_dead_units_reach_are_no_refusal() -> None:
    torch.manual_seed(0)
    model = EncoderDecoder().double()
    with torch.no_grad():
        model.encoder.weight[2:5] = 0
    reduction = remove(model, torch.randn(4, 5).double(), outputs=lambda out: out["logits"])
    assert reduction.model.encoder.out_features == 5
    x = torch.randn(6, 5).double()
    torch.testing.assert_close(reduction.model(x)["logits"], model(x)["logits"], rtol=0, atol=1e-12)


def test_pinning_keeps_the_selection() -> None:
    graph = watch(EncoderDecoder(), torch.randn(4, 5), outputs=lambda out: out["logits"])
    assert len(graph.pin([0], "for a test").units) == 7
    assert graph.pin([0], "for a test").outputs is graph.outputs


@pytest.mark.parametrize(
    ("select", "message"),
    [(lambda out: out["logit"], "KeyError"), (lambda out: out["name"], "a str without tensors")],
)
def test_a_selection_that_finds_nothing(select: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        remove(EncoderDecoder(), torch.randn(4, 5), units=halves, outputs=select)
    assert "it returns a dict" in str(caught.value)
