"""Networks that programs are tried on: those of the zoo, and what is hard to trace, fuse or place."""

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from gracile.zoo import build


def sparse_(model, density=0.2):
    """Random zeros, and batch norms that have seen something."""
    generator = torch.Generator().manual_seed(7)

    def uniform(tensor, low, high):
        return tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= torch.rand(parameter.shape, generator=generator) < density
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                uniform(module.running_mean, -0.5, 0.5)
                uniform(module.running_var, 0.5, 2.0)
                if module.affine:
                    uniform(module.weight, 0.5, 1.5)
                    uniform(module.bias, -0.5, 0.5)
    return model.eval()


class Odd(nn.Module):
    """Every kind of sliding, and shortcuts that cannot be added in place."""

    def __init__(self):
        super().__init__()
        self.same = nn.Conv2d(3, 8, 3, padding="same", dilation=2)
        self.valid = nn.Conv2d(8, 16, (3, 1), padding="valid", groups=4)
        self.wide = nn.Conv2d(16, 16, (1, 5), stride=(1, 2), padding=(0, 2), bias=False)
        self.circular = nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular")
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.uneven = nn.Conv2d(16, 16, 2, padding="same")
        self.norm = nn.BatchNorm2d(16, affine=False)
        self.up = nn.ConvTranspose2d(16, 4, 2, stride=2)

    def forward(self, x):
        x = self.same(x)
        x = functional.relu6(x) + x.mean((2, 3), keepdim=True)  # broadcast
        x = self.wide(self.valid(x))
        y = self.circular(x)
        y += x  # in place
        y = functional.relu_(y)
        y = self.norm(self.depthwise(y)) - y
        y = self.uneven(y) + 2 * y
        return self.up(functional.max_pool2d(y, 3, stride=2, padding=1)).sigmoid()


class Shared(nn.Module):
    """One convolution three times: twice on one size of map, with and without ReLU, and once on another."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        y = self.conv(self.conv(x).relu()) + x
        return y, self.conv(functional.avg_pool2d(y, 2))


class PreActivated(nn.Module):
    """Batch norm in front, and in a place where it cannot be folded; outputs that are inputs and views."""

    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 8, 3)
        self.linear = nn.Linear(8, 6)
        self.second = nn.BatchNorm1d(6)
        self.third = nn.BatchNorm1d(5)

    def forward(self, x):
        y = self.conv(self.first(x).relu())
        flat = self.second(self.linear(y.mean((2, 3))))
        steps = self.linear(y.flatten(2).transpose(1, 2)[:, :5])
        return {"x": x, "flat": (flat, flat[:, :2]), "steps": self.third(steps), "shape": flat.t().shape[0]}


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.head = nn.Linear(16, 50)

    def forward(self, tokens):
        return self.head(self.layer(self.embed(tokens)))


class Recurrent(nn.Module):
    """Recurrence in all forms; only the first has sparse kernels."""

    def __init__(self):
        super().__init__()
        self.plain = nn.LSTM(6, 8, num_layers=2, batch_first=True)
        self.both = nn.LSTM(8, 4, bidirectional=True, bias=False)
        self.gated = nn.GRU(8, 8)
        self.projected = nn.LSTM(8, 8, proj_size=3)

    def forward(self, x):
        y, state = self.plain(x)
        y, _ = self.both(y.transpose(0, 1))
        y, _ = self.gated(y)
        return self.projected(y)[0].transpose(0, 1), state


class Derived(nn.Module):
    """Weights that follow from others, and products written out."""

    def __init__(self):
        super().__init__()
        self.normed = parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
        self.masked = prune.random_unstructured(nn.Linear(8, 8), "weight", 0.5)
        self.matrix = nn.Parameter(torch.randn(8, 4))
        self.scale = nn.Parameter(torch.rand(4))

    def forward(self, x):
        y = self.masked(self.normed(x).amax((2, 3)))
        return (y @ self.matrix) * self.scale.exp(), torch.addmm(self.scale, y, self.matrix), self.scale


class Branches(nn.Module):
    """Values that live long, pieces of values, and a sum of two layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        left, right = (self.a(x) + self.b(x)).relu().chunk(2, 1)
        joined = torch.cat([right, left, x], 1)
        shuffled = joined.unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)
        y = functional.softmax(self.c(shuffled[:, :8]), 1)
        return functional.pad(y, (1, 2)), y.reshape(x.shape[0], -1)[:, ::2]


NETWORKS = {
    "lenet": (lambda: build("lenet", (1, 28, 28)), lambda n: torch.randn(n, 1, 28, 28)),
    "resnet20": (lambda: build("resnet20", (3, 16, 16)), lambda n: torch.randn(n, 3, 16, 16)),
    "vgg": (lambda: build("vggsmall", (3, 16, 16)), lambda n: torch.randn(n, 3, 16, 16)),
    "mlp": (lambda: build("mlp", (1, 8, 8)), lambda n: torch.randn(n, 1, 8, 8)),
    "conv_m": (lambda: build("convm", (1, 8, 8)), lambda n: torch.randn(n, 1, 8, 8)),
    "lstm": (lambda: build("lstm", (9,), 60), lambda n: torch.randint(60, (n, 9))),
    "odd": (Odd, lambda n: torch.randn(n, 3, 10, 12)),
    "shared": (Shared, lambda n: torch.randn(n, 4, 8, 8)),
    "pre-activated": (PreActivated, lambda n: torch.randn(n, 3, 7, 7)),
    "attending": (Attending, lambda n: torch.randint(50, (n, 7))),
    "recurrent": (Recurrent, lambda n: torch.randn(n, 5, 6)),
    "derived": (Derived, lambda n: torch.randn(n, 3, 6, 6)),
    "branches": (Branches, lambda n: torch.randn(n, 4, 6, 6)),
}


def make(name):
    """A network with zeros, and a function that makes inputs for a batch."""
    torch.manual_seed(0)
    network, inputs = NETWORKS[name]
    return sparse_(network()), inputs
