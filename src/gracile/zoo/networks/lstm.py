"""A recurrent language model: embedding, stacked LSTM layers, a decoder to the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn

from gracile.errors import ShapeError

State = Sequence[tuple[Tensor, Tensor]]
"""The memory of each layer: hidden and cell state, both ``(1, batch, width)``."""


@final
class LSTMLanguageModel(nn.Module):
    """The two-layer LSTM of Zaremba et al. (2014), with widths that may differ from layer to layer.

    Each layer is an :class:`torch.nn.LSTM` of its own, because one module of two layers has a
    single ``hidden_size`` and its layers could only be narrowed together.

    Args:
        vocabulary: number of tokens.
        widths: hidden units of each layer.
        embedding: width of the token vectors; the first layer's width by default.
        dropout: probability, before each layer and before the decoder.
        tied: whether decoder and embedding are one matrix; the last width must then equal ``embedding``.

    Raises:
        ShapeError: ``tied`` with different widths.

    >>> import torch
    >>> model = LSTMLanguageModel(100, widths=(16, 12))
    >>> tokens = torch.zeros(4, 7, dtype=torch.long)
    >>> model(tokens).shape
    torch.Size([4, 7, 100])
    >>> logits, state = model(tokens, model.initial_state(4))
    >>> [tuple(cell.shape) for hidden, cell in state]
    [(1, 4, 16), (1, 4, 12)]
    """

    def __init__(
        self,
        vocabulary: int,
        widths: Sequence[int] = (200, 200),
        embedding: int | None = None,
        dropout: float = 0.2,
        tied: bool = False,
    ) -> None:
        super().__init__()
        embedding = widths[0] if embedding is None else embedding
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            nn.LSTM(inputs, outputs, batch_first=True)
            for inputs, outputs in zip((embedding, *widths[:-1]), widths, strict=True)
        )
        self.decoder = nn.Linear(widths[-1], vocabulary)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        if tied:
            if widths[-1] != embedding:
                raise ShapeError(
                    "tying decoder and embedding",
                    got=f"a last layer of {widths[-1]} units and an embedding of {embedding}",
                    expected="equal widths",
                )
            self.decoder.weight = self.embedding.weight

    def initial_state(self, batch: int) -> State:
        """Return the empty memory for ``batch`` streams."""
        like = self.decoder.weight
        return [
            (like.new_zeros(1, batch, layer.hidden_size), like.new_zeros(1, batch, layer.hidden_size))
            for layer in self.layers
        ]

    def forward(self, tokens: Tensor, state: State | None = None) -> Tensor | tuple[Tensor, State]:
        """Map tokens ``(batch, steps)`` to logits ``(batch, steps, vocabulary)``.

        Given a ``state``, the streams are continued from there and the new state is returned too
        (detach it before the next window: truncated back-propagation). Without one, every stream
        starts empty and the logits come alone, so that the state is no output of the network and
        its units stay free to be removed.
        """
        x = self.embedding(tokens)
        before: Sequence[tuple[Tensor, Tensor] | None] = [None] * len(self.layers) if state is None else state
        after = []
        for layer, memory in zip(self.layers, before, strict=True):
            x, memory = layer(self.dropout(x), memory)
            after.append(memory)
        logits = self.decoder(self.dropout(x))
        return logits if state is None else (logits, after)
