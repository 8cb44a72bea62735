"""Take a trained network of your own, remove half of every layer, and keep training it."""

import torch
from torch import nn

from gracile.cost import count, measure
from gracile.reduce import load, remove, save, smallest


class Net(nn.Module):
    """Any module whose forward is Python."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = x + self.block(x)  # the shortcut ties the widths of stem and block
        return self.head(x.mean((2, 3)))


torch.manual_seed(0)
model, example = Net().eval(), torch.randn(2, 3, 16, 16)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
model(example).sum().backward()
optimizer.step()

reduction = remove(model, example, units=lambda graph, model: smallest(graph, model, fraction=0.5))
before, after = count(model, example), count(reduction.model, example)
print(f"parameters {before.parameters} -> {after.parameters}, MACs {before.macs:.0f} -> {after.macs:.0f}")
print(f"equal to the masked network: {reduction.verdict.kind}, error {reduction.verdict.error:.1e}")

timings = measure({"dense": model.eval(), "reduced": reduction.model.eval()}, example, rounds=10)
print(f"measured: {timings['reduced'].speedup:.2f}x faster")

save("runs/example", reduction.model, reduction.cut)
again = load("runs/example", Net())
assert torch.equal(again.eval()(example), reduction.model(example))

reduction.apply_(model, optimizer)  # the same cut in place; momentum moves along
model.train()(example).sum().backward()
optimizer.step()
print("trains on:", sum(p.numel() for p in model.parameters()), "parameters")
