"""Random networks: what is removed equals zeros in an ordinary full-size copy, on inputs nobody has seen."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from reducible.programs import program, programs
from torch import Tensor, nn

from gracile.errors import RefusedError
from gracile.graph import Cut, Graph
from gracile.reduce import random_units, remove

TOLERANCE = 1e-9  # float64
SEEDS = range(5000, 5060)


def masked(model: nn.Module, cut: Cut) -> nn.Module:
    """A full-size copy with zeros in the parameters where the cut keeps nothing."""
    model = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in cut.tensors.keys() & parameters.keys():
            for dim, kept in cut.tensors[name].items():
                if name.endswith("original1") and dim == 0:
                    continue  # a weight norm's direction: 0/0, and its magnitude is zero anyway
                gone = sorted(set(range(parameters[name].shape[dim])) - set(kept))
                parameters[name].index_fill_(dim, torch.tensor(gone), 0)
    return model


def double(model: nn.Module) -> nn.Module:
    for module in model.double().eval().modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(module, name, value.double())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def fresh(x: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if x.is_floating_point():
        return torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return torch.randint(int(x.max()) + 1, x.shape, generator=generator)


def uneven(graph: Graph, model: nn.Module, seed: int) -> list[int]:
    """Any units, so that blocks lose unequal shares; one of every block stays."""
    generator = torch.Generator().manual_seed(seed)
    kept = {block.units[0] for block in graph.blocks}
    chance = torch.rand(len(graph.units), generator=generator) < 0.4
    return [unit for unit in range(len(graph.units)) if chance[unit] and unit not in kept]


def largest_error(seed: int, choice: object) -> tuple[float, float] | None:
    """(error, share of parameters left); None where it was refused."""
    torch.manual_seed(seed)
    built = program(seed).build(2)
    model, x = double(built.model), fresh(built.args[0], seed)
    try:
        reduction = remove(model, x, units=choice, norms="keep")  # type: ignore[arg-type]
    except RefusedError:
        return None
    assert reduction.verdict.kind == "exact"
    other = fresh(program(seed).build(3).args[0], seed + 1)
    with torch.no_grad():
        reference, found = masked(model, reduction.cut)(other), reduction.model(other)
    assert [y.shape for y in found] == [y.shape for y in reference]
    error = max(
        float((a - b).abs().max() / a.abs().max().clamp(min=1e-30))
        for a, b in zip(reference, found, strict=True)
    )
    sizes = [sum(p.numel() for p in m.parameters()) for m in (reduction.model, model)]
    return error, sizes[0] / sizes[1]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_half_of_every_block() -> None:
    results = {seed: largest_error(seed, partial(random_units, fraction=0.5, seed=seed)) for seed in SEEDS}
    done = {seed: result for seed, result in results.items() if result is not None}
    assert not {seed for seed, (error, _) in done.items() if not error <= TOLERANCE}
    shares = sorted(left for _, left in done.values())
    assert sum(left <= 0.9 for left in shares) >= 0.85 * len(results)
    assert shares[len(shares) // 2] <= 0.6


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_unequal_shares_of_blocks() -> None:
    results = {seed: largest_error(seed, partial(uneven, seed=seed)) for seed in list(SEEDS)[:20]}
    done = {seed: result for seed, result in results.items() if result is not None}
    assert not {seed for seed, (error, _) in done.items() if not error <= TOLERANCE}
    assert len(done) >= 0.8 * len(results)


def test_programs_are_the_same_every_time_and_differ_from_each_other() -> None:
    one, two = (program(3).build(2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    assert torch.equal(one.args[0], two.args[0])
    built = [a.build(2).model for a in programs(20, first=100)]
    assert len({repr(model) for model in built}) == 20
