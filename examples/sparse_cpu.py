"""Take the zeros of a network of your own out of its inference: measured, proven, saved."""

import torch
from torch import nn

import gracile
from gracile.runtime import SparseCPU, load


class Net(nn.Module):
    """Any module that torch.export can read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = (x + self.block(x)).relu()
        return self.head(x.mean((2, 3)))


torch.manual_seed(0)
model, example = Net().eval(), torch.randn(1, 3, 32, 32)  # measured for this batch; any other runs, too
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.dim() == 4:  # the smallest nine tenths go; training would have made up for them
            least = parameter.abs().flatten().kthvalue(int(0.9 * parameter.numel())).values
            parameter *= parameter.abs() > least

program = gracile.compile(model, example, target=SparseCPU(against=("torch", "torch channels-last")))
print(program.plan)
for fact, value in program.report().items():
    print(f"{fact}: {value}")
dense, left = gracile.cost.count(model, example).macs, program.cost().macs
print(f"multiply-accumulates left: {left / dense:.1%}")

images = torch.randn(16, 3, 32, 32)
with torch.no_grad():
    assert torch.allclose(program(images), model(images), atol=1e-4)

program.save("runs/sparse")
again = load("runs/sparse")  # on the machine that runs it: without the class, and nothing is measured there
assert torch.equal(again(images), program(images))
