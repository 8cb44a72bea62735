"""gracile's own kernels as one row among engines."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gracile.errors import RefusedError
from gracile.runtime import SparseKernels, compare, engines


def test_sparse_kernels_take_turns_with_dense_engines_and_are_no_baseline():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 8)).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight *= torch.rand_like(layer.weight) < 0.02
    found = compare(
        {"sparse": model}, torch.randn(1, 512), engines=engines(["torch", "gracile"]).present, rounds=5
    )
    assert {row.engine for row in found.rows} == {"torch", "gracile"}
    assert found.baseline == ("sparse", "torch")
    assert found.fastest("sparse").engine == "gracile"


def test_it_is_left_out_unless_asked_for():
    assert "ask for it by name" in engines().missing["gracile"]


class Undecided(nn.Module):
    """Branches on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_network_that_cannot_be_traced_is_refused_with_the_reason():
    with pytest.raises(RefusedError, match="for gracile"):
        SparseKernels().prepare(Undecided().eval(), torch.ones(2, 3))
