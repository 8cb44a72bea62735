"""From one common beginning on: dense, with single zeros, with zeros in runs of 16 outputs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from gracile.algebra import Grouping, View, elements
from gracile.files import read_tensors, write_tensors
from gracile.papers.t02_sparse_conv.parts import KINDS, Density, Part, prunable
from gracile.train import Freeze, Schedule, Splits, constant, cosine, cubic, fit

RUN = 16
_RUNS = {"single": 1, "runs of 16": RUN}
BEGUN = "begun"
_JUDGED = 64  # validation samples that are looked at between legs: enough to see a training fail


def networks(
    name: str, part: Part, splits: Splits, seed: int, kinds: Sequence[str] = KINDS, folder: Path | None = None
) -> dict[str, nn.Module]:
    """The trained networks by kind.

    Args:
        name, part: of the network.
        splits: its data.
        seed: of everything.
        kinds: that are wanted.
        folder: where every network is kept as soon as it is trained, and is looked for before; ``None``
            keeps and looks for nothing.
    """
    begun: nn.Module | None = None
    found = {}
    for kind in kinds:
        path = None if folder is None else folder / f"{name}-{kind.replace(' ', '-')}-seed{seed}.safetensors"
        model = _kept(part, seed, path)
        if model is None:
            begun = begun or _begun(name, part, splits, seed, folder)
            model = go_on(begun, part, splits, seed, kind)
            if path is not None:
                write_tensors(path, model.state_dict())
        found[kind] = model
    return found


def _begun(name: str, part: Part, splits: Splits, seed: int, folder: Path | None) -> nn.Module:
    path = None if folder is None else folder / f"{name}-{BEGUN}-seed{seed}.safetensors"
    model = _kept(part, seed, path)
    if model is None:
        model = begin(part, splits, seed)
        if path is not None:
            write_tensors(path, model.state_dict())
    return model


def _kept(part: Part, seed: int, path: Path | None) -> nn.Module | None:
    if path is None or not path.exists():
        return None
    model = part.network(seed)
    model.load_state_dict(read_tensors(path))
    return model.eval()


def begin(part: Part, splits: Splits, seed: int) -> nn.Module:
    """The common beginning, at a constant rate."""
    model = part.network(seed)
    for leg in range(part.first):
        _leg(model, part, splits, leg, 1000 * seed + leg, constant())
    return model


def go_on(model: nn.Module, part: Part, splits: Splits, seed: int, kind: str) -> nn.Module:
    """A copy, trained for ``part.more`` legs while the rate falls to zero along half a cosine.

    In the first half of the legs the share of the weights that are zero rises along a cubic ramp: before each
    leg those of least magnitude go, and are held at zero from then on. Dense training is the same without.
    Every kind has seeds of its own: with one for all, batches would come in the order that is known already.
    """
    model = copy.deepcopy(model)
    ramp, legs = cubic(), part.more
    for leg in range(legs):
        if kind in part.left:
            prune_(model, part.left[kind], ramp(min(1.0, (leg + 1) / max(1, legs // 2))), _RUNS[kind])
        own = 1000 * seed + 100 * (1 + KINDS.index(kind)) + leg
        _leg(model, part, splits, part.first + leg, own, partial(_falling, leg, legs))
    return model


@torch.no_grad()
def prune_(model: nn.Module, left: Density, way: float, run: int) -> None:
    """Zero all but the largest single weights, or runs of them, of every prunable layer.

    Args:
        model: changed in place.
        left: what is left of a weight in the end.
        way: how much of the way there to go, from 0 to 1.
        run: 1, or how many consecutive output channels share one fate.

    >>> model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(64, 32))
    >>> prune_(model, lambda shape: 0.25, 1.0, run=1); (model[1].weight != 0).sum()
    tensor(512)
    """
    parameters = dict(model.named_parameters())
    for name in prunable(model):
        share = way * (1 - left(parameters[name].shape))
        for grouping in groups_of(name, len(parameters[name]), run):
            groups = grouping.of(parameters)
            norms = groups.norms.detach().flatten()
            gone = norms.argsort(stable=True)[: round(share * len(norms))]
            groups.scale_(torch.ones_like(norms).index_fill_(0, gone, 0.0))


def groups_of(name: str, rows: int, run: int) -> list[Grouping]:
    """Single numbers, or runs of consecutive output channels; a last run may be shorter.

    >>> [g.of({"w": torch.ones(40, 3)}).sizes.unique().tolist() for g in groups_of("w", 40, 16)]
    [[16], [8]]
    """
    if run == 1:
        return [elements(name)]
    whole, rest = rows // run * run, rows % run
    parts = [(run, (0, 0, whole))] * bool(whole) + [(rest, (0, whole, rest))] * bool(rest)
    return [
        Grouping((View(name, f"(tile run:{size}) ...", ("tile", "..."), narrow=narrow),))
        for size, narrow in parts
    ]


def _falling(leg: int, legs: int, progress: float) -> float:
    return cosine()((leg + progress) / legs)


def _leg(model: nn.Module, part: Part, splits: Splits, number: int, seed: int, schedule: Schedule) -> None:
    """Train on the next piece of the data; test data are not looked at."""
    size = len(splits.train) // part.pass_
    start = number % part.pass_ * size
    glance = Subset(splits.validation, range(min(_JUDGED, len(splits.validation))))
    piece: Any = Subset(splits.train, range(start, start + size))
    # The cache of casted weights would outlive the optimizer's steps.
    with torch.autocast("cpu", part.precision, part.precision != torch.float32, cache_enabled=False):
        fit(
            model,
            Splits(piece, glance, glance),
            part.task,
            epochs=1,
            batch_size=part.batch_size,
            optimizer=part.optimizer,
            schedule=schedule,
            methods=[Freeze()],
            clip=part.clip,
            select="last",
            seed=seed,
            progress=False,
        )
