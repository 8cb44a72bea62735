"""Recurrent networks: torch's own layers, cells in loops, and gates written by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import rnn

from reducible.architecture import Architecture
from reducible.hand import Net, case, normal, parameter, tokens


def _read(m: Any, x: Tensor) -> Tensor:
    return m.b(m.r(x)[0])


def _last_state(m: Any, x: Tensor) -> Tensor:
    _, (h, c) = m.r(x)
    return m.b(h[-1] + c[-1])


def _both_ends(m: Any, x: Tensor) -> Tensor:
    h = m.r(x)[1]
    return m.b(torch.cat([h[-2], h[-1]], -1))


def _learned_start(m: Any, x: Tensor) -> Tensor:
    n = x.shape[1]
    start = m.h.expand(-1, n, -1).contiguous(), m.c.expand(-1, n, -1).contiguous()
    return m.b(m.r(x, start)[0])


def _packed(m: Any, x: Tensor) -> Tensor:
    lengths = torch.arange(x.shape[1], 0, -1).clamp(max=x.shape[0])
    packed = rnn.pack_padded_sequence(m.a(x), lengths)
    return m.b(rnn.pad_packed_sequence(m.r(packed)[0])[0])


def _lstm_cells(m: Any, x: Tensor) -> Tensor:
    h = c = x.new_zeros(x.shape[1], m.cell.hidden_size)
    outputs = []
    for step in x:
        h, c = m.cell(step, (h, c))
        outputs.append(h)
    return m.b(torch.stack(outputs))


def _gru_cells(m: Any, x: Tensor) -> Tensor:
    lower = upper = torch.zeros(x.shape[1], m.width, dtype=x.dtype)
    for step in x:
        lower = m.lower(step, lower)
        upper = m.upper(functional.dropout(lower, 0.2, m.training), upper)
    return m.b(upper)


class LanguageModel(nn.Module):
    """Embedding and output layer are one matrix, and the LSTM's width is theirs."""

    def __init__(self, words: int = 31, width: int = 12) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, width, 2, batch_first=True, dropout=0.1)
        self.decode = nn.Linear(width, words)
        self.decode.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        output, _ = self.lstm(self.embed(words))
        return self.decode(output.reshape(-1, self.width)).view(*words.shape, -1)


class Translator(nn.Module):
    """A bidirectional encoder, additive attention, a decoder cell fed with its context."""

    def __init__(self, words: int = 23, width: int = 12, hidden: int = 16) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(words, width), nn.Embedding(words, width)
        self.encoder = nn.GRU(width, hidden, bidirectional=True, batch_first=True)
        self.bridge = nn.Linear(2 * hidden, hidden)
        self.keys, self.query = nn.Linear(2 * hidden, hidden, bias=False), nn.Linear(hidden, hidden)
        self.energy = nn.Linear(hidden, 1, bias=False)
        self.cell = nn.GRUCell(width + 2 * hidden, hidden)
        self.out = nn.Linear(hidden, words)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, last = self.encoder(self.source(source))
        state = torch.tanh(self.bridge(torch.cat([last[0], last[1]], 1)))
        keys, outputs = self.keys(memory), []
        for word in self.target(target).unbind(1):
            scores = self.energy(torch.tanh(keys + self.query(state).unsqueeze(1))).squeeze(-1)
            context = torch.bmm(scores.softmax(-1).unsqueeze(1), memory).squeeze(1)
            state = self.cell(torch.cat([word, context], 1), state)
            outputs.append(self.out(state))
        return torch.stack(outputs, 1)


class GatesByHand(nn.Module):
    """An LSTM with one matrix for all gates, its width read off an attribute."""

    def __init__(self, inputs: int = 6, hidden: int = 12) -> None:
        super().__init__()
        self.hidden_size = hidden
        self.gates = nn.Linear(inputs + hidden, 4 * hidden)
        self.out = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), self.hidden_size, dtype=x.dtype)
        c = torch.zeros_like(h)
        for t in range(x.size(1)):
            i, f, g, o = self.gates(torch.cat([x[:, t], h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.out(h)


class NormalizedGates(nn.Module):
    """Layer norm on the sums of an LSTM cell, split by width."""

    def __init__(self, inputs: int = 6, hidden: int = 12) -> None:
        super().__init__()
        self.hidden = hidden
        self.x2h, self.h2h = nn.Linear(inputs, 4 * hidden), nn.Linear(hidden, 4 * hidden, bias=False)
        self.norm, self.cell_norm = nn.LayerNorm(4 * hidden), nn.LayerNorm(hidden)
        self.out = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), self.hidden)
        for step in x.unbind(1):
            i, f, g, o = torch.split(self.norm(self.x2h(step) + self.h2h(h)), self.hidden, dim=-1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * self.cell_norm(c).tanh()
        return self.out(h)


class ConvolutionalGates(nn.Module):
    """A convolutional LSTM over frames."""

    def __init__(self, channels: int = 3, hidden: int = 8) -> None:
        super().__init__()
        self.hidden = hidden
        self.conv = nn.Conv2d(channels + hidden, 4 * hidden, 3, padding=1)
        self.out = nn.Conv2d(hidden, 2, 1)

    def forward(self, frames: Tensor) -> Tensor:
        b, _, _, high, wide = frames.shape
        h = c = torch.zeros(b, self.hidden, high, wide, dtype=frames.dtype)
        for frame in frames.unbind(1):
            i, f, o, g = torch.split(self.conv(torch.cat([frame, h], 1)), self.hidden, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.out(h)


def _read_text(m: Any, image: Tensor) -> Tensor:
    columns = m.conv(image).relu()
    b, c, h, w = columns.shape
    return m.b(m.r(columns.permute(3, 0, 1, 2).reshape(w, b, c * h))[0])


def _simple_recurrent_unit(m: Any, x: Tensor) -> Tensor:
    candidate, forget, reset = m.a(x).chunk(3, -1)
    state, outputs = torch.zeros_like(candidate[0]), []
    for u, f, r in zip(candidate, forget.sigmoid(), reset.sigmoid(), strict=True):
        state = f * state + (1 - f) * u
        outputs.append(r * state.tanh() + (1 - r) * u)
    return m.b(torch.stack(outputs))


def _stacked_with_shortcuts(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    for layer in m.layers:
        h = h + layer(h)[0]
    return m.b(h)


def _pooled_by_attention(m: Any, x: Tensor) -> Tensor:
    h, _ = m.r(x)
    weights = m.score(m.hidden(h).tanh()).softmax(1)
    return m.b((weights * h).sum(1))


def lstm(*args: Any, **named: Any) -> nn.LSTM:
    return nn.LSTM(6, 8, *args, **named)


STEPS = normal(4, 6, at=1)
CASES: tuple[Architecture, ...] = (
    case("lstm", "recurrent", lambda: Net(_read, r=lstm(), b=nn.Linear(8, 3)), STEPS),
    case("lstm 2 layers", "recurrent", lambda: Net(_read, r=lstm(2), b=nn.Linear(8, 3)), STEPS),
    case("lstm without bias", "recurrent", lambda: Net(_read, r=lstm(bias=False), b=nn.Linear(8, 3)), STEPS),
    case("lstm batch first", "recurrent", lambda: Net(_last_state, r=lstm(2, batch_first=True),
         b=nn.Linear(8, 3)), normal(4, 6)),
    case("lstm both directions", "recurrent", lambda: Net(_read, r=lstm(2, bidirectional=True),
         b=nn.Linear(16, 3)), STEPS),
    case("lstm projected", "recurrent", lambda: Net(_read, r=lstm(2, proj_size=4), b=nn.Linear(4, 3)), STEPS),
    case("lstm projected both directions", "recurrent", lambda: Net(_read, r=lstm(proj_size=4,
         bidirectional=True), b=nn.Linear(8, 3)), STEPS),
    case("lstm learned start", "recurrent", lambda: Net(_learned_start, r=lstm(), h=parameter(1, 1, 8),
         c=parameter(1, 1, 8), b=nn.Linear(8, 3)), STEPS),
    case("gru", "recurrent", lambda: Net(_read, r=nn.GRU(6, 8, 2), b=nn.Linear(8, 3)), STEPS),
    case("gru both ends", "recurrent", lambda: Net(_both_ends, r=nn.GRU(6, 8, bidirectional=True),
         b=nn.Linear(16, 3)), STEPS),
    case("rnn tanh", "recurrent", lambda: Net(_read, r=nn.RNN(6, 8, 2), b=nn.Linear(8, 3)), STEPS),
    case("rnn relu", "recurrent", lambda: Net(_read, r=nn.RNN(6, 8, nonlinearity="relu"),
         b=nn.Linear(8, 3)), STEPS),
    case("packed sequences", "recurrent", lambda: Net(_packed, a=nn.Linear(6, 8), r=nn.LSTM(8, 8, 2),
         b=nn.Linear(8, 3)), STEPS),
    case("packed both directions", "recurrent", lambda: Net(_packed, a=nn.Linear(6, 8),
         r=nn.GRU(8, 8, bidirectional=True), b=nn.Linear(16, 3)), STEPS),
    case("lstm cells in a loop", "recurrent", lambda: Net(_lstm_cells, cell=nn.LSTMCell(6, 8),
         b=nn.Linear(8, 3)), STEPS),
    case("gru cells in a loop", "recurrent", lambda: Net(_gru_cells, lower=nn.GRUCell(6, 8),
         upper=nn.GRUCell(8, 8), width=8, b=nn.Linear(8, 3)), STEPS),
    case("language model with tied embeddings", "recurrent", LanguageModel, tokens(31, 5)),
    case("translator with attention", "recurrent", Translator, tokens(23, 5), tokens(23, 4)),
    case("gates by hand", "recurrent", GatesByHand, normal(4, 6)),
    case("gates with layer norm", "recurrent", NormalizedGates, normal(4, 6)),
    case("convolutional lstm", "recurrent", ConvolutionalGates, normal(3, 3, 6, 6)),
    case("columns of text", "recurrent", lambda: Net(_read_text, conv=nn.Conv2d(1, 8, 3, (2, 1), 1),
         r=nn.LSTM(8 * 4, 8, bidirectional=True), b=nn.Linear(16, 5)), normal(1, 8, 6)),
    case("simple recurrent unit", "recurrent", lambda: Net(_simple_recurrent_unit, a=nn.Linear(6, 24),
         b=nn.Linear(8, 3)), STEPS),
    case("stacked with shortcuts", "recurrent", lambda: Net(_stacked_with_shortcuts, a=nn.Linear(6, 8),
         layers=nn.ModuleList(nn.LSTM(8, 8) for _ in range(2)), b=nn.Linear(8, 3)), STEPS),
    case("pooled by attention", "recurrent", lambda: Net(_pooled_by_attention,
         r=nn.GRU(6, 8, batch_first=True), hidden=nn.Linear(8, 8), score=nn.Linear(8, 1),
         b=nn.Linear(8, 3)), normal(5, 6)),
)  # fmt: skip
