"""Fit a trained network of your own to a latency, measured on this machine; or learn that it cannot be."""

import torch
from torch import nn

from gracile.cost import count
from gracile.errors import RefusedError
from gracile.pipeline import to_latency
from gracile.reduce import Limits, taylor


class Net(nn.Module):
    """Any module whose forward is Python."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = x + self.block(x)
        return self.head(x.mean((2, 3)))


torch.manual_seed(0)
model, example = Net().eval(), torch.randn(1, 3, 32, 32)  # the example sets the batch size
batches = [(torch.randn(16, 3, 32, 32), torch.randint(10, (16,))) for _ in range(2)]  # your training data


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


fitted = to_latency(
    model,
    example,
    share=0.6,  # or latency_s=2e-3
    importance=taylor(loss, batches),
    limits=Limits(least=0.25),
    limit_s=3,
    announce=print,
)
print(fitted)
print("widths:", dict(fitted.widths))
before, after = count(model, example), count(fitted.reduction.model, example)
print(f"MACs left: {after.macs / before.macs:.1%}; {fitted.reduction.verdict.kind}")

try:
    to_latency(model, example, latency_s=1e-7)
except RefusedError as refused:
    print(refused)
