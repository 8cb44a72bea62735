"""Tensors and sizes that a module holds without registering them: cut, saved and loaded like the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from gracile.graph import Cut
from gracile.graph.attributes import plain_tensors
from gracile.reduce import load, random_units, remove, save


class Plain(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 3)
        self.scale = torch.rand(12) + 0.5
        self.more = {"shift": [torch.randn(12)]}
        self.sizes = {"heads": 4, "width": 3}
        self.same = self.a.weight
        self.alias = self.b.weight.data
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = (self.a(x) * self.scale + self.more["shift"][0]).relu()
        h = h.view(len(x), self.sizes["heads"], self.sizes["width"]).tanh()
        self.last = h
        return self.b(h.flatten(1))


def test_only_what_is_nowhere_else() -> None:
    model = Plain()
    model(torch.randn(2, 6))
    assert [name for name, _ in plain_tensors(model)] == ["scale", "more.shift.0"]
    normed = nn.utils.spectral_norm(nn.Linear(3, 3))
    assert not list(plain_tensors(nn.Sequential(normed, nn.LSTM(3, 3))))


def test_cut_saved_and_loaded(masked: Callable[[nn.Module, Cut], nn.Module], tmp_path: Path) -> None:
    model, x = Plain(), torch.randn(4, 6)
    with torch.no_grad():
        model(x)  # leaves a result behind

    reduction = remove(model, x, units=partial(random_units, fraction=0.5))

    reduced = reduction.model
    assert reduced.scale.shape == reduced.more["shift"][0].shape == (6,)
    assert reduced.sizes in ({"heads": 2, "width": 3}, {"heads": 4, "width": 3})
    fresh = torch.randn(7, 6)
    with torch.no_grad():
        torch.testing.assert_close(reduced(fresh), masked(model, reduction.cut)(fresh))
        save(tmp_path, reduced, reduction.cut)
        again = load(tmp_path, Plain(seed=1))
        assert torch.equal(again(fresh), reduced(fresh))


def test_a_stated_size_that_no_call_uses_may_be_anything() -> None:
    model = Plain()
    model.sizes["depth"] = 7
    reduction = remove(model, torch.randn(4, 6), units=partial(random_units, fraction=0.5))
    assert reduction.model.sizes["depth"] == 7
    assert all(path.startswith(("a.", "b.", "sizes.")) for path in reduction.cut.attributes)
