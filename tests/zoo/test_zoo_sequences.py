"""The recurrent classifier: sizes, rows of images, and both families of a projected LSTM."""

from __future__ import annotations

import pytest
import torch

from gracile.errors import ShapeError
from gracile.zoo import LSTMClassifier, build


@pytest.mark.parametrize("projections", [None, (7, 5)])
def test_parameters(projections: tuple[int, int] | None) -> None:
    model = LSTMClassifier(3, 10, cells=(12, 8), projections=projections)
    a, b = projections or (12, 8)
    first, second = 4 * 12 * (3 + a + 2), 4 * 8 * (a + b + 2)
    projected = 12 * a + 8 * b if projections else 0
    assert sum(p.numel() for p in model.parameters()) == first + second + projected + 10 * (b + 1)


def test_images_are_read_row_by_row() -> None:
    torch.manual_seed(0)
    model = LSTMClassifier(6, 4, cells=(9,)).eval()
    images = torch.randn(5, 2, 3, 6)
    rows = torch.stack([torch.cat(list(image)) for image in images])
    assert rows.shape == (5, 6, 6)
    torch.testing.assert_close(model(images), model(rows))
    states, _ = model.layers[0](rows)
    torch.testing.assert_close(model(rows), model.output(states.mean(1)))


def test_the_zoo_builds_one_with_projections() -> None:
    model = build("lstmp", (50, 24), classes=7)
    assert model(torch.zeros(2, 50, 24)).shape == (2, 7)
    assert [layer.proj_size for layer in model.layers] == [64, 64]


@pytest.mark.parametrize(
    ("cells", "projections"), [((), None), ((8, 8), (4,)), ((8,), (8,)), ((8,), (0,)), ((8,), ())]
)
def test_sizes_must_pair(cells: tuple[int, ...], projections: tuple[int, ...] | None) -> None:
    with pytest.raises(ShapeError, match="fewer projections than cells"):
        LSTMClassifier(3, 10, cells, projections)
