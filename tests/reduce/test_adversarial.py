"""Networks built to mislead: each is reduced rightly, or refused; none is wrong.

Checked with plain masking on inputs of another batch size, by code that shares nothing with the library.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from gracile.errors import RefusedError
from gracile.graph import Cut
from gracile.reduce import random_units, remove
from gracile.reduce.probes import leaves


class Toy(nn.Module):
    """A forward pass given as a function of the module and its input."""

    def __init__(self, run: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Any, **named: Any) -> Any:
        return self.run(self, *args, **named)


def halves_written(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y[:, :4] = m.c(x)
    return m.b(y)


def positives_written(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y[y < 0] = 0.0
    return m.b(y)


def shuffled(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(
        y.view(len(y), m.b.groups, y.shape[1] // m.b.groups, *y.shape[2:]).transpose(1, 2).flatten(1, 2)
    )


def gated(m: Any, x: Tensor) -> Tensor:
    left, right = m.a(x).chunk(2, -1)
    return m.b(left * right.sigmoid())


def remembered(m: Any, x: Tensor) -> Tensor:
    m.state = m.state * 0.5 + 0.5
    return m.b(m.a(x) * m.state)


def counting(m: Any, x: Tensor) -> Tensor:
    m.state.add_(1)  # another function at every call
    return m.b(m.a(x) * m.state)


def with_state(toy: Toy) -> Toy:
    toy.register_buffer("state", torch.rand(8))
    return toy


def excited(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(h * m.e(m.r(h.mean((2, 3), keepdim=True)).relu()).sigmoid())


def a(n: int = 8) -> nn.Linear:
    return nn.Linear(6, n)


def b(n: int = 8) -> nn.Linear:
    return nn.Linear(n, 3)


ROWS, IMAGES, STEPS = (4, 6), (2, 3, 8, 8), (5, 2, 6)
# name: (network, shape of its input, largest share of parameters that may be left; 1: it may be refused)
TOYS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], float]] = {
    "weight norm": (
        lambda: nn.Sequential(*map(parametrizations.weight_norm, (a(), b()))),
        ROWS,
        0.6,
    ),
    "spectral norm": (lambda: nn.Sequential(nn.utils.spectral_norm(a()), nn.ReLU(), b()), ROWS, 1),
    "gate of two halves": (lambda: Toy(gated, a=a(16), b=b()), ROWS, 0.6),
    "flip": (lambda: Toy(lambda m, x: m.b(m.a(x).flip(-1) + m.c(x)), a=a(), c=a(), b=b()), ROWS, 0.6),
    "root of the width": (
        lambda: Toy(lambda m, x: m.b(m.a(x) / m.a(x).shape[-1] ** 0.5), a=a(), b=b()),
        ROWS,
        1,
    ),
    "number of elements": (lambda: Toy(lambda m, x: m.b(m.a(x) / m.a(x).numel()), a=a(), b=b()), ROWS, 1),
    "sum over eight": (
        lambda: Toy(lambda m, x: m.b(m.a(x)) * (m.a(x).sum(-1, keepdim=True) / 8), a=a(), b=b()),
        ROWS,
        1,
    ),
    "weight and its transpose": (
        lambda: Toy(lambda m, x: functional.linear(m.a(x).relu(), m.a.weight.t()), a=a()),
        ROWS,
        0.6,
    ),
    "data": (
        lambda: Toy(lambda m, x: m.b(functional.linear(x, m.a.weight.data, m.a.bias.data)), a=a(), b=b()),
        ROWS,
        0.6,
    ),
    "outer product": (
        lambda: Toy(lambda m, x: m.b((m.a(x)[:, :, None] * m.a(x)[:, None]).flatten(1)), a=a(5), b=b(25)),
        ROWS,
        0.6,
    ),
    "running sum": (lambda: Toy(lambda m, x: m.b(m.a(x).cumsum(-1)), a=a(), b=b()), ROWS, 1),
    "sorted": (lambda: Toy(lambda m, x: m.b(m.a(x).sort(-1).values), a=a(), b=b()), ROWS, 1),
    "the largest": (lambda: Toy(lambda m, x: m.b(m.a(x).topk(4, -1).values), a=a(), b=b(4)), ROWS, 1),
    "position of the largest": (
        lambda: Toy(lambda m, x: m.b(m.a(x) * (m.a(x).argmax(-1, keepdim=True) > 3)), a=a(), b=b()),
        ROWS,
        1,
    ),
    "halves written in place": (lambda: Toy(halves_written, a=a(), c=a(4), b=b()), ROWS, 1),
    "positives written in place": (lambda: Toy(positives_written, a=a(), b=b()), ROWS, 1),
    "fourier": (lambda: Toy(lambda m, x: m.b(torch.fft.fft(m.a(x)).real), a=a(), b=b()), ROWS, 1),
    "weights from the input": (
        lambda: Toy(lambda m, x: functional.linear(x, m.a(x.mean(0)).view(3, 6)), a=a(18)),
        ROWS,
        1,
    ),
    "literal split": (
        lambda: Toy(lambda m, x: m.b(sum(m.a(x).split([4, 4, 4], -1))), a=a(12), b=b(4)),
        ROWS,
        1,
    ),
    "returned as a dictionary": (
        lambda: Toy(lambda m, x: {"y": m.b(m.a(x).relu()), "z": [m.b(m.a(x))]}, a=a(), b=b()),
        ROWS,
        0.6,
    ),
    "returned in an object": (
        lambda: Toy(lambda m, x: types.SimpleNamespace(y=m.b(m.a(x).relu())), a=a(), b=b()),
        ROWS,
        0.6,
    ),
    "hidden layer returned": (lambda: Toy(lambda m, x: (m.b(m.a(x).relu()), m.a(x)), a=a(), b=b()), ROWS, 1),
    "buffer assigned": (lambda: with_state(Toy(remembered, a=a(), b=b())), ROWS, 0.6),
    "buffer written in place": (lambda: with_state(Toy(counting, a=a(), b=b())), ROWS, 0.6),
    "gated linear unit": (lambda: Toy(lambda m, x: m.b(functional.glu(m.a(x))), a=a(16), b=b()), ROWS, 0.6),
    "rms norm": (lambda: Toy(lambda m, x: m.b(m.n(m.a(x))), a=a(), n=nn.RMSNorm(8), b=b()), ROWS, 1),
    "bilinear": (
        lambda: Toy(lambda m, x: m.b(m.c(m.a(x), m.a(x))), a=a(), c=nn.Bilinear(8, 8, 5), b=b(5)),
        ROWS,
        1,
    ),
    "pixel shuffle": (
        lambda: nn.Sequential(nn.Conv2d(3, 16, 1), nn.PixelShuffle(2), nn.Conv2d(4, 2, 1)),
        IMAGES,
        0.6,
    ),
    "pixel unshuffle": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.PixelUnshuffle(2), nn.Conv2d(16, 2, 1)),
        IMAGES,
        0.6,
    ),
    "channel shuffle": (
        lambda: Toy(shuffled, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 8, 3, groups=2)),
        IMAGES,
        1,
    ),
    "squeeze and excite": (
        lambda: Toy(
            excited, a=nn.Conv2d(3, 8, 3), r=nn.Conv2d(8, 4, 1), e=nn.Conv2d(4, 8, 1), b=nn.Conv2d(8, 2, 1)
        ),
        IMAGES,
        0.6,
    ),
    "batch statistics": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(), nn.Conv2d(8, 2, 1)
        ),
        IMAGES,
        0.6,
    ),
    "grouped transposed": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 12, 3, groups=4), nn.Conv2d(12, 2, 1)
        ),
        IMAGES,
        0.6,
    ),
    "projected lstm": (
        lambda: Toy(lambda m, x: m.b(m.r(x)[0]), r=nn.LSTM(6, 8, 2, proj_size=4), b=b(4)),
        STEPS,
        0.6,
    ),
    "two directions": (
        lambda: Toy(lambda m, x: m.b(m.r(x)[0]), r=nn.LSTM(6, 8, 2, bidirectional=True), b=b(16)),
        STEPS,
        0.6,
    ),
    "attention weights": (
        lambda: Toy(lambda m, x: m.b(m.m(*3 * [m.a(x)])[0]), a=a(), m=nn.MultiheadAttention(8, 2), b=b()),
        STEPS,
        1,
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", TOYS)
def test_right_or_refused(name: str, masked: Callable[[nn.Module, Cut], nn.Module]) -> None:
    make, shape, largest = TOYS[name]
    torch.manual_seed(0)
    model = make().double().eval()
    example, other = torch.randn(shape).double(), torch.randn((shape[0] + 3, *shape[1:])).double()
    try:
        reduction = remove(model, example, units=partial(random_units, fraction=0.5), norms="keep")
    except RefusedError as error:
        if largest < 1 or "test_adversarial.py:" not in str(error):  # the line must be named
            raise
        return
    share = sum(p.numel() for p in reduction.model.parameters()) / sum(p.numel() for p in model.parameters())
    assert share <= largest
    reference = masked(model, reduction.cut)
    with torch.no_grad():
        for x in (example, other):
            want, found = list(leaves(reference(x))), list(leaves(reduction.model(x)))
            assert len(want) == len(found) > 0
            for y, z in zip(want, found, strict=True):
                torch.testing.assert_close(z, y, rtol=1e-9, atol=1e-12)


def halves(m: Any, x: Tensor) -> Tensor:
    left, right = m.a(x).chunk(2, -1)
    return m.b(left.relu()) + m.c(right.tanh())


def kill(model: Any, *rows: int) -> None:
    with torch.no_grad():
        model.a.weight[list(rows)], model.a.bias[list(rows)] = 0, 0


def test_halves_must_stay_equal() -> None:
    """Dead units in one half of a chunk only: it would no longer be a half, so they stay."""
    torch.manual_seed(0)
    model = Toy(halves, a=a(16), b=b(), c=b()).double()
    x, other = torch.randn(4, 6).double(), torch.randn(7, 6).double()
    kill(model, 3)
    with pytest.raises(RefusedError, match="chunk"):
        remove(model, x)
    kill(model, 9)
    reduction = remove(model, x)
    assert reduction.model.a.out_features == 14
    torch.testing.assert_close(reduction.model(other), model(other))


def test_dead_units_of_a_network_with_a_memory() -> None:
    torch.manual_seed(0)
    model = with_state(Toy(counting, a=a(), b=b())).double()
    kill(model, 2)
    state = model.state.clone()
    reduction = remove(model, torch.randn(4, 6).double())
    assert torch.equal(model.state, state)
    assert torch.equal(reduction.model.state, state[[0, 1, 3, 4, 5, 6, 7]])
    x = torch.randn(7, 6).double()
    torch.testing.assert_close(reduction.model(x), model(x))


def test_arguments_by_name_and_other_kinds_of_input() -> None:
    def run(m: Any, x: Tensor, *, mask: Tensor, tokens: dict[str, Tensor], scale: float) -> Tensor:
        return m.b((m.a(x) * scale + m.e(tokens["ids"])).masked_fill(mask, 0).relu())

    torch.manual_seed(0)
    model = Toy(run, a=a(), e=nn.Embedding(11, 8), b=b()).double()
    named = {
        "mask": torch.tensor([[True], [False], [False], [False]]),
        "tokens": {"ids": torch.tensor([1, 4, 9, 9])},
        "scale": 0.5,
    }
    reduction = remove(model, torch.randn(4, 6).double(), units=partial(random_units, fraction=0.5), **named)
    assert reduction.model.e.embedding_dim == 4
    assert reduction.verdict.error < 1e-12


def test_lengths_that_cannot_be_shuffled(masked: Callable[[nn.Module, Cut], nn.Module]) -> None:
    def run(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(m.a(x), lengths)
        return m.b(nn.utils.rnn.pad_packed_sequence(m.r(packed)[0])[0])

    torch.manual_seed(0)
    model = Toy(run, a=a(), r=nn.GRU(8, 8), b=b()).double()

    reduction = remove(
        model,
        torch.randn(5, 3, 6).double(),
        torch.tensor([5, 4, 2]),
        units=partial(random_units, fraction=0.5),
    )
    assert reduction.model.r.hidden_size == 4
    x, lengths = torch.randn(7, 4, 6).double(), torch.tensor([7, 3, 3, 1])
    with torch.no_grad():
        torch.testing.assert_close(
            reduction.model(x, lengths), masked(model, reduction.cut)(x, lengths), rtol=1e-9, atol=1e-12
        )


def test_a_sum_over_what_is_not_zero_counts() -> None:
    """A removed unit says sigmoid(0) = 1/2 in the masked network and nothing in the narrower one."""
    torch.manual_seed(0)

    def run(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        return m.b(h * m.s(h).sigmoid().sum(-1, keepdim=True))

    model = Toy(run, a=a(), s=nn.Linear(8, 12), b=b()).double()
    x = torch.randn(4, 6).double()
    reduction = remove(model, x, units=partial(random_units, fraction=0.5))
    assert reduction.verdict.kind == "renormalized"
    assert reduction.model.s.out_features == 6
    strict = remove(model, x, units=partial(random_units, fraction=0.5), norms="keep")
    assert strict.verdict.kind == "exact"
    assert strict.model.s.out_features == 12


def test_called_in_inference_mode() -> None:
    """Operators come whole there, and what is made there cannot be trained; neither happens."""

    def run(m: Any, x: Tensor) -> Tensor:
        return m.b(torch.einsum("bi,io->bo", m.a(x), m.c.weight).relu())

    torch.manual_seed(0)
    model = Toy(run, a=a(), c=nn.Linear(8, 8), b=b())
    with torch.inference_mode():
        reduction = remove(model, torch.randn(4, 6), units=partial(random_units, fraction=0.5))
    assert reduction.model.a.out_features == 4
    reduction.model(torch.randn(4, 6)).sum().backward()
    assert reduction.model.a.weight.grad is not None
