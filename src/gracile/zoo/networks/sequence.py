"""Recurrent classifiers: stacked LSTM layers, with or without projection, and a mean over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn

from gracile.errors import ShapeError


@final
class LSTMClassifier(nn.Module):
    """LSTM layers whose outputs are averaged over time and classified.

    With ``projections`` the layers are LSTMP, as acoustic models use them: a layer has *cells*, which
    remember, and fewer *projections* r_t = W_hr h_t, which the next step and the next layer see, so that
    it has 4 cells (inputs + projections) weights in place of 4 cells (inputs + cells). Both can be
    removed independently. Each layer is an :class:`torch.nn.LSTM` of its own, so that its sizes are.

    Args:
        features: numbers in each step of the sequence.
        classes: of the output.
        cells: of each layer.
        projections: of each layer, fewer than its cells; none by default.
        dropout: probability, after each layer.

    Raises:
        ShapeError: cells and projections do not pair, or a layer has no fewer projections than cells.

    >>> import torch
    >>> model = LSTMClassifier(24, cells=(32, 16), projections=(12, 8))
    >>> model.layers
    ModuleList(
      (0): LSTM(24, 32, proj_size=12, batch_first=True)
      (1): LSTM(12, 16, proj_size=8, batch_first=True)
    )
    >>> LSTMClassifier(8)(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        features: int,
        classes: int = 10,
        cells: Sequence[int] = (128, 128),
        projections: Sequence[int] | None = None,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        outputs = cells if projections is None else projections
        sizes = list(zip(cells, projections or (), strict=False))
        if not cells or len(cells) != len(outputs) or any(not 0 < p < c for c, p in sizes):
            raise ShapeError(
                "building an LSTM classifier",
                got=f"cells {tuple(cells)} and projections {tuple(outputs)}",
                expected="as many of both, and in each layer fewer projections than cells",
            )
        self.layers = nn.ModuleList(
            nn.LSTM(before, hidden, proj_size=after if projections else 0, batch_first=True)
            for before, hidden, after in zip((features, *outputs[:-1]), cells, outputs, strict=True)
        )
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(outputs[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, steps, features)``, or images row by row, to logits ``(batch, classes)``."""
        x = x.flatten(1, -2)
        for layer in self.layers:
            x = self.dropout(layer(x)[0])
        return self.output(x.mean(1))
