"""Random networks, composed from pieces: as many as one likes, all different, each tried in a moment."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import torch
from torch import Tensor, nn

from reducible import pieces_image, pieces_rows  # noqa: F401 (pieces register themselves)
from reducible.architecture import Architecture, Built
from reducible.pieces import PIECES, Shape, kind_of

LARGEST = 1500  # numbers in a sample, so that no piece makes the next one slow


class Program(nn.Module):
    """Pieces one after another; some are fed with the sum of two earlier results of equal shape.

    Every result listed in ``heads`` is read out, too.
    """

    def __init__(
        self, body: list[nn.Module], inputs: list[tuple[int, ...]], heads: dict[int, nn.Module]
    ) -> None:
        super().__init__()
        self.body, self.inputs = nn.ModuleList(body), [list(i) for i in inputs]
        self.heads, self.read = nn.ModuleList(heads.values()), tuple(heads)

    def forward(self, x: Tensor) -> list[Tensor]:
        values = [x]
        for module, places in zip(self.body, self.inputs, strict=True):
            given = values[places[0]]
            for place in places[1:]:
                given = given + values[place]
            values.append(module(given))
        return [head(values[place]) for head, place in zip(self.heads, self.read, strict=True)]


def _head(random: Random, shape: Shape) -> nn.Module:
    if len(shape) == 3:
        return random.choice(
            (
                lambda: nn.Conv2d(shape[0], 3, 1),
                lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[0], 3)),
                lambda: nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 3)),
            )
        )()
    return nn.Linear(shape[-1], 3)


def _made(random: Random) -> tuple[Program, Shape, int]:
    """A network, the shape of one sample, and how many different tokens it takes (0: numbers)."""
    tokens = 0
    shape: Shape = random.choice(((3, 8, 8), (3, 6, 4), (4, 6), (5, 9), (8,), (12,)))
    first: nn.Module
    if len(shape) == 2 and random.random() < 0.4:
        tokens = 11
        first = nn.Embedding(tokens, width := random.choice((8, 12, 16)))
        sample, shape = shape[:1], (shape[0], width)
    else:
        sample, n = shape, random.choice((8, 12, 16))
        first = nn.Conv2d(3, n, 3, padding=1) if len(shape) == 3 else nn.Linear(shape[-1], n)
        shape = (n, *shape[1:]) if len(shape) == 3 else (*shape[:-1], n)
    body, inputs, shapes = [first], [(0,)], [sample, shape]
    for _ in range(random.randint(2, 9)):
        made = None
        while made is None or not 2 <= _size(made[1]) <= LARGEST or min(made[1]) < 1:
            made = random.choice(PIECES[kind_of(shape)])(random, *shape)
        alike = [i for i in range(1, len(shapes) - 1) if shapes[i] == shape]
        more = (random.choice(alike),) if alike and random.random() < 0.4 else ()
        body.append(made[0])
        inputs.append((len(shapes) - 1, *more))
        shape = made[1]
        shapes.append(shape)
    heads = {len(shapes) - 1: _head(random, shape)}
    if random.random() < 0.15 and len(shapes) > 3:
        place = random.randrange(2, len(shapes) - 1)
        heads.setdefault(place, _head(random, shapes[place]))
    return Program(body, inputs, heads), sample, tokens


def _size(shape: Shape) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def program(seed: int) -> Architecture:
    """The random network of this number: the same at every call."""

    def build(batch: int) -> Built:
        state = torch.random.get_rng_state()
        torch.manual_seed(seed)
        try:
            model, sample, tokens = _made(Random(seed))
            given = torch.randint(tokens, (batch, *sample)) if tokens else torch.randn(batch, *sample)
            return Built(model, (given,))
        finally:
            torch.random.set_rng_state(state)

    return Architecture(f"program {seed}", "random", "program", build)


def programs(count: int, first: int = 0) -> Iterator[Architecture]:
    """``count`` random networks, from the seed ``first`` on."""
    return map(program, range(first, first + count))


ARCHITECTURES: tuple[Architecture, ...] = tuple(programs(1000))
