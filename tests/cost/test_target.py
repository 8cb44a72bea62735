"""The one call for every machine: what it asks of a model, and that asking for it costs nothing."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import gracile
from gracile.errors import UsageError


class Recording:
    """A target that notes what it was given."""

    def compile(self, model: nn.Module, *example: Any) -> Any:
        self.given = (model, *example)
        return model


def test_the_target_gets_model_and_example() -> None:
    model, x, target = nn.Linear(2, 2).eval(), torch.zeros(1, 2), Recording()
    assert gracile.compile(model, x, target=target) is model
    assert target.given == (model, x)
    state = {"h": (torch.zeros(1), torch.zeros(1))}
    gracile.compile(model, 3, state, target=target)
    assert target.given == (model, 3, state)


@pytest.mark.parametrize(
    ("model", "example", "says"),
    [
        (nn.Linear(2, 2), (torch.zeros(1, 2),), "a model in training mode"),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval(), (), "one tensor or more"),
        (nn.Linear(2, 2).eval(), (3,), r"\(3,\)"),
    ],
)
def test_what_cannot_be_compiled(model: nn.Module, example: tuple[Any, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        gracile.compile(model, *example, target=Recording())


def test_a_layer_that_still_trains_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()
    model[1].train()
    with pytest.raises(UsageError, match="'1' in training mode"):
        gracile.compile(model, torch.zeros(1, 2), target=Recording())


def test_importing_gracile_is_cheap() -> None:
    code = "import gracile, sys; assert 'torch' not in sys.modules; assert gracile.compile.__module__"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        gracile.nothing  # noqa: B018
