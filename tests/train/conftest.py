from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from gracile.train import Splits


def make_splits(samples: int = 600) -> Splits:
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:samples]
    x = torch.tensor(images, dtype=torch.float32)[order] / 16
    y = torch.tensor(labels)[order]
    parts = torch.arange(samples).split([samples * 6 // 10, samples * 2 // 10, samples * 2 // 10])
    return Splits(*(TensorDataset(x[i], y[i]) for i in parts))


@pytest.fixture(scope="session")
def digits() -> Splits:
    return make_splits()


@pytest.fixture
def mlp():
    """A network with dropout and batch norm, the same at every call."""

    def make(dropout: float = 0.3) -> nn.Module:
        torch.manual_seed(42)
        return nn.Sequential(
            nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 10)
        )

    return make


@pytest.fixture
def same():
    """Assert that two modules hold the same bits."""

    def check(a: nn.Module, b: nn.Module) -> None:
        left, right = a.state_dict(), b.state_dict()
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert value.dtype == right[name].dtype, name
            # view as bytes: 0.0 and -0.0 differ, NaN equals itself
            assert value.contiguous().numpy().tobytes() == right[name].contiguous().numpy().tobytes(), name

    return check
