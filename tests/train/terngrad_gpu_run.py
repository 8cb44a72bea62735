"""What test_terngrad.py starts with torchrun where a GPU is: gradients packed there, by ranks sharing it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from terngrad_run import MODES, RANK, RANKS, Network, alike, batch, gradients, same
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from gracile.algebra.philox import Random
from gracile.files import write_json
from gracile.train import TernGradState, terngrad_hook
from gracile.wire import scaler
from gracile.wire.messages import average
from gracile.wire.parts import Layer

DEVICE = torch.device("cuda", 0)


def loss(model: nn.Module, step: int, rank: int = RANK) -> Tensor:
    x, y = (each.to(DEVICE) for each in batch(step, rank))
    return functional.cross_entropy(model(x.to(next(model.parameters()).dtype)).float(), y)


def wrapped(mode: str, half: bool = False, **options):
    model = Network().to(DEVICE, torch.float16 if half else torch.float32)
    parallel = DistributedDataParallel(model)
    state = TernGradState(parallel, mode, seed=11, **options)
    parallel.register_comm_hook(state, terngrad_hook)
    return model, parallel, state


def train(model: nn.Module, parallel: nn.Module, steps: range) -> Tensor:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in steps:
        optimizer.zero_grad()
        loss(parallel, step).backward()
        optimizer.step()
    return torch.cat([p.detach().float().flatten() for p in model.parameters()]).cpu()


def as_on_the_cpu(mode: str) -> bool:
    """One step against the average made on the CPU, of gradients and scales found here."""
    model, parallel, _ = wrapped(mode)
    loss(parallel, 0).backward()
    everybodys = []
    for rank in range(RANKS):
        other = Network().to(DEVICE)
        loss(other, 0, rank).backward()
        everybodys.append({Layer(i, g.numel(), g.numel() >= 1024): g for i, g in enumerate(gradients(other))})
    scales = {n: max(scaler(g[n]) for g in everybodys) for n in everybodys[0] if n.packed}
    there = [{n: g.cpu() for n, g in each.items()} for each in everybodys]
    expected = average(there, mode, Random(11), scales=scales)
    return same([g.cpu() for g in gradients(model)], expected)


def resumed() -> bool:
    """With what rounding left out, saved on the CPU."""
    model, parallel, _ = wrapped("exact", feedback=True)
    whole = train(model, parallel, range(8))
    model, parallel, state = wrapped("exact", feedback=True)
    train(model, parallel, range(5))
    weights, saved = model.state_dict(), state.state_dict()
    saved["residuals"] = {name: x.cpu() for name, x in saved["residuals"].items()}
    model, parallel, state = wrapped("exact", feedback=True)
    model.load_state_dict(weights)
    state.load_state_dict(saved)
    return torch.equal(train(model, parallel, range(5, 8)), whole)


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    facts: dict[str, object] = {mode: as_on_the_cpu(mode) for mode in MODES}
    facts["alike"] = {mode: alike(train(*wrapped(mode)[:2], range(50))) for mode in MODES}
    half = train(*wrapped("exact", half=True)[:2], range(5))
    facts["half"] = alike(half) and bool(half.isfinite().all())
    facts["resumed"] = resumed()
    write_json(folder / f"facts-{RANK}.json", facts)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
