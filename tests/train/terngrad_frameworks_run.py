"""What test_terngrad_frameworks.py starts with torchrun: the hook under Lightning and under Accelerate."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from reducible.operators import declare
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

declare()  # Lightning imports torchvision where it finds one

import lightning.pytorch as pl  # noqa: E402
from accelerate import Accelerator  # noqa: E402

from gracile.files import write_json  # noqa: E402
from gracile.train import TernGradState, terngrad_hook  # noqa: E402
from gracile.train.lightning import TernGradCallback  # noqa: E402

RANK = int(os.environ["RANK"])
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.simplefilter("ignore")  # of Lightning, which recommends settings


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.network = nn.Sequential(nn.Linear(20, 90), nn.ReLU(), nn.Linear(90, 10))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data() -> TensorDataset:
    x = torch.randn(160, 20, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, x[:, :10].argmax(1))


def alike(module: nn.Module) -> bool:
    own = torch.cat([p.detach().flatten() for p in module.parameters()])
    every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(every, own)
    return torch.equal(every[0], every[1])


def under_lightning(folder: Path) -> dict[str, object]:
    def fit(epochs: int, resume: Path | None = None) -> tuple[Module, TernGradState]:
        module = Module()
        state = TernGradState(module, "exact", seed=4)
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            callbacks=[TernGradCallback(state)],
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(data(), 16), ckpt_path=resume)
        if not resume:
            trainer.save_checkpoint(folder / "lightning.ckpt")
        return module, state

    whole, _ = fit(2)
    fit(1)
    resumed, state = fit(2, folder / "lightning.ckpt")
    same = all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    return {"alike": alike(whole), "steps": state.traffic.steps, "step": state.step, "resumed": same}


def under_accelerate() -> dict[str, object]:
    torch.manual_seed(1)
    accelerator = Accelerator(cpu=True)
    model = nn.Sequential(nn.Linear(20, 90), nn.ReLU(), nn.Linear(90, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data(), 16))
    state = TernGradState(model, "exact")
    model.register_comm_hook(state, terngrad_hook)
    losses = []
    for _ in range(3):
        for x, y in loader:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            accelerator.backward(loss)
            optimizer.step()
            losses.append(float(loss.detach()))
    return {"alike": alike(model), "steps": state.traffic.steps, "learns": losses[-1] < losses[0]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    facts = {"lightning": under_lightning(folder), "accelerate": under_accelerate()}
    write_json(folder / f"facts-{RANK}.json", facts)
