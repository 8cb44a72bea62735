"""What test_terngrad.py starts with torchrun: average gradients on these ranks, write down facts."""

from __future__ import annotations

import contextlib
import os
import sys
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from gracile.algebra.philox import Random
from gracile.files import write_json
from gracile.train import (
    Checkpoints,
    Method,
    Run,
    Splits,
    TernGrad,
    TernGradReduceScatter,
    TernGradState,
    classification,
    fit,
    terngrad_hook,
)
from gracile.train.exchange import Exchange, Expected
from gracile.wire.messages import Code, average
from gracile.wire.parts import Layer, shares

RANK, RANKS = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
MODES = ("gather", "exact", "four-bit", "ternary", "base3")


class Network(nn.Module):
    """Layers above and below the size that is packed, of sizes that are no multiples of a block."""

    def __init__(self, unused: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second, self.last = nn.Linear(20, 90), nn.Linear(90, 70), nn.Linear(70, 10)
        self.unused = nn.Linear(40, 40) if unused else None

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).relu()).relu())


def batch(step: int, rank: int = RANK) -> tuple[Tensor, Tensor]:
    x = torch.randn(8, 20, generator=torch.Generator().manual_seed(100 * step + rank))
    return x, x[:, :10].argmax(1)


def loss(model: nn.Module, step: int) -> Tensor:
    x, y = batch(step)
    return functional.cross_entropy(model(x.to(next(model.parameters()).dtype)).float(), y)


def wrapped(mode: str, bucket_mb: float = 25.0, unused: bool = False, **options):
    model = Network(unused)
    static = options.pop("static_graph", False)
    parallel = DistributedDataParallel(
        model, bucket_cap_mb=bucket_mb, find_unused_parameters=unused, static_graph=static
    )
    state = TernGradState(parallel, mode, **options)
    parallel.register_comm_hook(state, terngrad_hook)
    return model, parallel, state


def train(model, parallel, steps: range) -> Tensor:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in steps:
        optimizer.zero_grad()
        loss(parallel, step).backward()
        optimizer.step()
    return torch.cat([p.detach().float().flatten() for p in model.parameters()])


def alike(values: Tensor) -> bool:
    """Whether all ranks have the same bits."""
    every = [torch.empty_like(values) for _ in range(RANKS)]
    dist.all_gather(every, values)
    return all(one.numpy().tobytes() == every[0].numpy().tobytes() for one in every)


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone().flatten() for p in model.parameters() if p.grad is not None]


def everybodys(steps: tuple[int, ...], smallest: int = 1024) -> list[dict[Layer, Tensor]]:
    """The gradients of every rank, by layer, summed over batches."""
    found = []
    for rank in range(RANKS):
        model = Network()
        for step in steps:
            x, y = batch(step, rank)
            functional.cross_entropy(model(x), y).backward()
        numbered = enumerate(gradients(model))
        found.append({Layer(i, g.numel(), g.numel() >= smallest): g for i, g in numbered})
    return found


def same(found: list[Tensor], expected: dict[Layer, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected.values(), strict=True))


def as_in_one_process(mode: str) -> dict[str, object]:
    """One step against the average of all ranks' gradients, computed here."""
    model, parallel, state = wrapped(mode, seed=11)
    loss(parallel, 0).backward()
    expected = average(everybodys((0,)), mode, Random(11))
    layers = tuple(expected)
    code, all_shares = Code("exact" if mode == "gather" else mode, RANKS), shares(layers, RANKS)
    sent = 4 * sum(layer.packed for layer in layers) * (RANKS - 1)
    if mode == "gather":
        (everything,) = shares(layers, 1)
        sent += 4 * Code("exact", 1).there(everything) * (RANKS - 1)
    else:
        sent += 4 * sum(code.there(share) for share in all_shares if share.owner != RANK)
        sent += 4 * code.back(all_shares[RANK]) * (RANKS - 1)
    return {"same": same(gradients(model), expected), "sent": state.traffic.bytes_sent, "expected": sent}


def accumulated() -> dict[str, object]:
    model, parallel, state = wrapped("exact")
    with parallel.no_sync():
        loss(parallel, 0).backward()
    loss(parallel, 1).backward()
    expected = average(everybodys((0, 1)), "exact", Random(0))
    return {"same": same(gradients(model), expected), "steps": state.traffic.steps}


def resumed() -> dict[str, object]:
    model, parallel, _ = wrapped("exact", feedback=True)
    whole = train(model, parallel, range(8))
    model, parallel, state = wrapped("exact", feedback=True)
    train(model, parallel, range(5))
    weights, saved = model.state_dict(), state.state_dict()
    model, parallel, state = wrapped("exact", feedback=True)
    model.load_state_dict(weights)
    state.load_state_dict(saved)
    return {"same": torch.equal(train(model, parallel, range(5, 8)), whole), "step": state.step}


def fed_back() -> float:
    """What was averaged so far and what is left add up to all gradients there were."""
    model, parallel, state = wrapped("exact", feedback=True)
    total, true = torch.zeros(90, 70), torch.zeros(90, 70)
    for step in range(5):
        model.zero_grad()
        loss(parallel, step).backward()
        total += model.second.weight.grad.T
        true += sum(everybodys((step,))[r][Layer(2, 6300, True)].view(70, 90).T for r in range(RANKS)) / RANKS
    left = state.state_dict()["residuals"]["2"].view(70, 90).T.contiguous()
    dist.all_reduce(left)
    return float((total + left / RANKS - true).norm() / true.norm())


def broken() -> dict[str, object]:
    facts: dict[str, object] = {}
    model, parallel, state = wrapped("exact")
    clean = average(everybodys((0,)), "exact", Random(0))
    hook = model.second.weight.register_hook(lambda g: g.index_fill(0, torch.tensor(3), float("inf")))
    if RANK != 1:
        hook.remove()
    loss(parallel, 0).backward()
    found = gradients(model)
    facts["nan"] = bool(found[2].isnan().all())
    facts["rest"] = all(
        torch.equal(g, clean[n]) for i, (g, n) in enumerate(zip(found, clean, strict=True)) if i != 2
    )
    facts["counted"] = state.last.not_finite
    return facts


def sharded() -> dict[str, object]:
    """FSDP2's own call, on made-up gradients."""
    reduce, size = TernGradReduceScatter(clip=None, seed=2), 1300
    total, steps = torch.zeros(size), 200
    whole = [torch.rand(size * RANKS, generator=torch.Generator().manual_seed(r)) - 0.5 for r in range(RANKS)]
    out = torch.empty(size)
    for _ in range(steps):
        reduce(out, whole[RANK].clone(), dist.group.WORLD, dist.ReduceOp.AVG)
        total += out
    true = (sum(whole) / RANKS)[RANK * size : (RANK + 1) * size]
    error = float((total / steps - true).square().mean().sqrt())
    return {"error": error, "bytes": reduce.bytes_sent / steps, "levels": len(out.unique())}


def fsdp() -> dict[str, object]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = Network()
    mesh, reduce = init_device_mesh("cpu", (RANKS,)), TernGradReduceScatter()
    for layer in (model.first, model.second, model.last, model):
        fully_shard(layer, mesh=mesh)
        layer.set_custom_reduce_scatter(reduce)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        found = loss(model, step)
        found.backward()
        optimizer.step()
        losses.append(float(found.detach()))
    return {"first": sum(losses[:5]) / 5, "last": sum(losses[-5:]) / 5}


class Interrupt(Method):
    def __init__(self, at: int) -> None:
        self.at = at

    def mask(self, run: Run) -> None:
        if run.step == self.at:
            raise KeyboardInterrupt


def fitted(folder: Path) -> dict[str, object]:
    """The method, in a run that is interrupted and resumed, against one that is not."""
    x = torch.randn(120, 20, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, x[:, :10].argmax(1))

    def run(*methods: Method, folder: Path | None = None) -> Tensor:
        model = Network()
        fit(
            model,
            Splits(data, data, data),
            classification(),
            epochs=2,
            batch_size=20,
            methods=methods,
            folder=Checkpoints(folder, every=4) if folder else None,
            device="cpu",
            progress=False,
        )
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    method, again = TernGrad("exact", seed=5), TernGrad("exact", seed=5)
    whole = run(method)
    with contextlib.suppress(KeyboardInterrupt):
        run(TernGrad("exact", seed=5), Interrupt(9), folder=folder)
    return {
        "steps": method.state.traffic.steps,
        "alike": alike(whole),
        "resumed": torch.equal(run(again, Interrupt(-1), folder=folder), whole),
        "differs": not torch.equal(run(), whole),
    }


def trained(mode: str, steps: int, **options) -> tuple[Tensor, TernGradState]:
    model, parallel, state = wrapped(mode, **options)
    return train(model, parallel, range(steps)), state


def messages_arrive() -> list[bool]:
    """Announced together and sent one after the other: large ones in turn, small ones at once, some empty."""
    exchange = Exchange(dist.group.WORLD)
    sizes = (5, 300_000, 0, 20_000, 1)
    incoming = [[torch.zeros(size + source) for source in range(RANKS)] for size in sizes]
    expected = [exchange.expect(messages) for messages in incoming]
    return [phase_arrives(exchange, *each) for each in zip(expected, incoming, sizes, strict=True)]


def phase_arrives(exchange: Exchange, expected: Expected, incoming: list[Tensor], size: int) -> bool:
    """What is sent is written when its turn comes, and read once it is there."""
    outgoing = [torch.zeros(size + RANK) for _ in range(RANKS)]
    written: list[int] = []
    seen: dict[int, bool] = {}

    def write(to: int) -> None:
        outgoing[to].fill_(RANK + 10 * to)
        written.append(to)

    def read(source: int) -> None:
        seen[source] = bool((incoming[source] == source + 10 * RANK).all())

    exchange.send(outgoing, expected, write, read)
    others = [(RANK + shift) % RANKS for shift in range(1, RANKS)]
    return written == others and list(seen) == others[::-1] and all(seen.values())


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    facts: dict[str, object] = {mode: as_in_one_process(mode) for mode in MODES}
    facts["messages"] = messages_arrive()
    weights = {(mode, mb): trained(mode, 20, bucket_mb=mb)[0] for mode, mb in product(MODES, (25.0, 0.01))}
    facts["alike"] = {mode: alike(weights[mode, 25.0]) for mode in MODES}
    facts["any bucket"] = {mode: torch.equal(weights[mode, 25.0], weights[mode, 0.01]) for mode in MODES}
    for mode in ("exact", "ternary"):  # one rounding, and two
        long, state = trained(mode, 200)
        facts[f"200 steps, {mode}"] = {
            "alike": alike(long),
            "steps": state.traffic.steps,
            "step": state.step,
        }
    again, other = (trained("exact", 20, seed=seed)[0] for seed in (0, 1))
    facts["seed"] = [torch.equal(again, weights["exact", 25.0]), torch.equal(other, weights["exact", 25.0])]
    facts["accumulated"], facts["resumed"], facts["broken"] = accumulated(), resumed(), broken()
    facts["fed back"] = fed_back()
    facts["unused"] = torch.equal(
        trained("exact", 20, unused=True)[0][: len(again)], trained("exact", 20, static_graph=True)[0]
    )
    facts["plain"] = {mode: trained(mode, 2)[1].last.bytes_sent for mode in ("fp32", "fp16")}
    facts["auto"] = trained("auto", 1)[1].mode
    model = Network().to(torch.bfloat16)
    parallel = DistributedDataParallel(model)
    parallel.register_comm_hook(TernGradState(model, "exact"), terngrad_hook)
    facts["half"] = alike(train(model, parallel, range(5)))
    if RANKS == 4:
        model, parallel, _ = wrapped("exact", site=2)
        loss(parallel, 0).backward()
        every = everybodys((0,))
        sites = [{n: (every[i][n] + every[i + 1][n]) / 2 for n in every[0]} for i in (0, 2)]
        facts["sites"] = [
            same(gradients(model), average(sites, "exact", Random(0))),
            alike(torch.cat(gradients(model))),
        ]
    facts["sharded"], facts["fsdp"], facts["fit"] = sharded(), fsdp(), fitted(folder / "checkpoints")
    write_json(folder / f"facts-{RANK}.json", facts)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
