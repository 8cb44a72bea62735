"""remove: what is left computes what the masked original computes, and the original is not touched.

The masked model here is made from the record of the cut alone, with no code of the library.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from gracile.errors import UsageError
from gracile.graph import Cut
from gracile.reduce import Reduction, load, random_units, remove, save, smallest


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 8, 3)
        self.fc1, self.fc2 = nn.Linear(8 * 3 * 3, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(self.conv1(x).relu(), 2)
        x = torch.max_pool2d(self.conv2(x).relu(), 2)
        return self.fc2(self.fc1(x.flatten(1)).relu())


class Residual(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.short = nn.Conv2d(channels, width, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu_())) + self.short(x)).relu_()


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bns = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(4))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1, bias=False) for i in range(3))
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for bn, conv in zip(self.bns, self.convs, strict=False):
            x = torch.cat([x, conv(bn(x).relu())], 1)
        return self.head(self.bns[3](x).relu().mean((2, 3)))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 12, 1)
        self.depth = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.widen = nn.Conv2d(12, 24, 3, padding=1, groups=12)
        self.grouped = nn.Conv2d(24, 16, 3, groups=4)
        self.norm = nn.GroupNorm(4, 16)
        self.up = nn.ConvTranspose2d(16, 6, 2, 2)
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.expand(x))
        x = self.widen(nn.functional.silu(self.depth(x)))
        return self.out(self.up(self.norm(self.grouped(x)).sigmoid()).tanh())


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        h = nn.functional.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2)
        x = x + self.proj(h.flatten(2))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.position = nn.Parameter(torch.zeros(1, 5, 16))
        self.blocks = nn.Sequential(Block(16, 4), Block(16, 4))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 3)
        nn.init.zeros_(self.head.weight)  # as many libraries do: a check on these weights would prove nothing

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class Torchy(nn.Module):
    """torch's own transformer, whose attention must be made explicit."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, dropout=0.1)
        self.put, self.encoder = nn.Linear(5, 16), nn.TransformerEncoder(layer, 2)
        self.cross = nn.MultiheadAttention(16, 2, kdim=5, vdim=5, add_bias_kv=True, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(self.put(x))
        return self.out(self.cross(h, x, x, need_weights=False)[0])


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(20, 8), nn.LSTM(8, 10, 2)
        self.head = nn.Linear(10, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(tokens))[0])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gru = nn.Embedding(20, 8), nn.GRU(8, 8, batch_first=True, bidirectional=True)
        self.mix, self.head = nn.Linear(16, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.mix(self.gru(self.embed(tokens))[0]).tanh())


Mask = Callable[[nn.Module, Cut], nn.Module]
Made = tuple[nn.Module, Tensor, Tensor]
IMAGES = (torch.Size((2, 3, 8, 8)), torch.Size((5, 3, 8, 8)))


def made(model: nn.Module, dtype: torch.dtype, *shapes: torch.Size, tokens: int = 0) -> Made:
    model = model.to(dtype)
    example, other = (
        torch.randint(tokens, s) if tokens else torch.randn(s, dtype=dtype) for s in shapes or IMAGES
    )
    model.train()
    model(example)  # running statistics that mean something
    return model.eval(), example, other


ARCHITECTURES: dict[str, Callable[[torch.dtype], Made]] = {
    "mlp": lambda t: made(
        nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2)),
        t,
        torch.Size((3, 4)),
        torch.Size((7, 4)),
    ),
    "lenet": lambda t: made(LeNet(), t, torch.Size((2, 1, 18, 18)), torch.Size((5, 1, 18, 18))),
    "batch norm": lambda t: made(
        nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.LeakyReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 3),
        ),
        t,
    ),
    "residual": lambda t: made(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            Residual(8, 8, 1),
            Residual(8, 16, 2),
            Residual(16, 16, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 3),
        ),
        t,
    ),
    "dense": lambda t: made(Dense(), t),
    "depthwise": lambda t: made(Depthwise(), t),
    "vit": lambda t: made(ViT(), t),
    "torch transformer": lambda t: made(Torchy(), t, torch.Size((2, 4, 5)), torch.Size((3, 6, 5))),
    "lstm": lambda t: made(Language(), t, torch.Size((5, 2)), torch.Size((7, 3)), tokens=20),
    "tied gru": lambda t: made(Tied(), t, torch.Size((2, 5)), torch.Size((3, 4)), tokens=20),
}
RENORMALIZED = {"vit", "torch transformer"}
pytestmark = pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors", "ignore:enable_nested_tensor is True"
)


@pytest.fixture(autouse=True)
def _no_fused_encoder() -> Iterator[None]:
    """torch's fused encoder kernel would not call the layer norms replaced below."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def jittered(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.rand(p.shape, generator=generator).to(p) - 0.5, alpha=0.4)
    return model


def with_narrow_norms(model: nn.Module, cut: Cut) -> nn.Module:
    """Layer norms that see kept indices only, in place."""
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and f"{name}.weight" in cut.tensors:
            kept = torch.tensor(cut.tensors[f"{name}.weight"][0])
            module.forward = partial(_narrow_norm, module, kept)
    return model


def _narrow_norm(module: nn.LayerNorm, kept: Tensor, x: Tensor) -> Tensor:
    part = x[..., kept]
    part = (part - part.mean(-1, keepdim=True)) / (
        part.var(-1, correction=0, keepdim=True) + module.eps
    ).sqrt()
    return torch.zeros_like(x).index_copy(-1, kept, part * module.weight[kept] + module.bias[kept])


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def state(model: nn.Module) -> list[object]:
    return [
        *(
            (n, t.clone(), t.requires_grad, t.grad)
            for n, t in [*model.named_parameters(), *model.named_buffers()]
        ),
        *((n, type(m), m.training, str(m)) for n, m in model.named_modules()),
    ]


def equal_states(a: list[object], b: list[object]) -> bool:
    def equal(x: object, y: object) -> bool:
        return torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x is y or x == y

    return len(a) == len(b) and all(all(map(equal, x, y)) for x, y in zip(a, b, strict=True))  # type: ignore[call-overload]


def reduced(name: str, norms: str = "renormalize", seed: int = 0) -> tuple[Made, Reduction]:
    torch.manual_seed(seed)
    given = ARCHITECTURES[name](torch.float64)
    choice = partial(random_units, fraction=0.5, seed=seed)
    return given, remove(given[0], given[1], units=choice, norms=norms)  # type: ignore[arg-type]


@pytest.mark.parametrize("norms", ["renormalize", "keep"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_random_cut_equals_masked_model(name: str, norms: str, masked: Mask) -> None:
    (model, _, other), reduction = reduced(name, norms)
    assert reduction.verdict.kind == (
        "renormalized" if name in RENORMALIZED and norms == "renormalize" else "exact"
    )
    assert reduction.verdict.error < 1e-12
    assert reduction.verdict.moved > 1e-3
    assert reduction.refused == ()
    limit = 0.85 if name in RENORMALIZED | {"depthwise"} and norms == "keep" else 0.7
    assert size(reduction.model) < limit * size(model)
    # With other weights and another batch: what was cut, not what the numbers were.
    full = jittered(copy.deepcopy(model), seed=3)
    small = copy.deepcopy(full)
    reduction.apply_(small)
    with torch.no_grad():
        torch.testing.assert_close(
            small(other),
            with_narrow_norms(masked(full, reduction.cut), reduction.cut)(other),
            rtol=1e-9,
            atol=1e-11,
        )
        assert not torch.allclose(small(other), full(other), rtol=1e-3)
        # and with its own weights
        torch.testing.assert_close(
            reduction.model(other),
            with_narrow_norms(masked(model, reduction.cut), reduction.cut)(other),
            rtol=1e-9,
            atol=1e-11,
        )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_reduced_models_are_ordinary(name: str, tmp_path: object) -> None:
    """They train, copy, save, load, and print their true sizes."""
    (_, example, other), reduction = reduced(name, seed=1)
    small = reduction.model
    again = copy.deepcopy(small)
    with torch.no_grad():
        want = small(other)
        assert torch.equal(again(other), want)
    save(f"{tmp_path}/net", small, reduction.cut)
    loaded = load(f"{tmp_path}/net", ARCHITECTURES[name](torch.float64)[0]).eval()
    with torch.no_grad():
        assert torch.equal(loaded(other), want)
    assert str(loaded) == str(small)
    before = [p.detach().clone() for p in small.parameters()]
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    small.train()
    for _ in range(2):
        (small(example) - 1).square().sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    optimizer.step()
    assert all(  # but for biases in front of a norm, whose gradients are rounding
        not torch.equal(a, b) or b.grad.abs().max() < 1e-12
        for a, b in zip(before, small.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", ["residual", "vit", "torch transformer"])
def test_reduced_models_export(name: str) -> None:
    (_, example, _), reduction = reduced(name)
    program = torch.export.export(reduction.model, (example,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(example), reduction.model(example))


def test_successive_cuts_compose(tmp_path: object) -> None:
    (_, example, other), first = reduced("residual")
    second = remove(first.model, example, units=partial(smallest, fraction=0.5))
    assert size(second.model) < 0.7 * size(first.model)
    save(f"{tmp_path}/net", second.model, first.cut, second.cut)
    loaded = load(f"{tmp_path}/net", ARCHITECTURES["residual"](torch.float64)[0]).eval()
    with torch.no_grad():
        assert torch.equal(loaded(other), second.model(other))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("training", [True, False])
def test_original_is_untouched(name: str, training: bool) -> None:
    torch.manual_seed(0)
    model, example, _ = ARCHITECTURES[name](torch.float32)
    model.train(training)
    next(model.parameters()).requires_grad_(False)
    next(iter(model.children())).eval()  # a mixture of modes, as in fine-tuning with frozen statistics
    before, inputs = state(model), example.clone()
    generator = torch.get_rng_state()
    reduction = remove(model, example, units=partial(random_units, fraction=0.25))
    assert equal_states(before, state(model))
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(example, inputs)
    assert not next(reduction.model.parameters()).requires_grad
    assert [m.training for m in reduction.model.modules()][:2] == [m.training for m in model.modules()][:2]
    with pytest.raises(ZeroDivisionError):
        remove(model, example, units=lambda graph, model: 1 / 0)  # type: ignore[arg-type,return-value]
    with pytest.raises(UsageError, match="numbers from 0"):
        remove(model, example, units=lambda graph, model: [10**6])
    assert equal_states(before, state(model))
    assert torch.equal(torch.get_rng_state(), generator)


def test_nothing_dead_gives_a_copy() -> None:
    torch.manual_seed(0)
    model, example, other = ARCHITECTURES["lenet"](torch.float32)
    reduction = remove(model, example)
    assert reduction.cut == Cut()
    assert reduction.model is not model
    assert torch.equal(reduction.model(other), model(other))


def test_apply_to_the_original_with_its_optimizer() -> None:
    """The reduction carried out in place: same function, momentum goes along, training goes on."""
    torch.manual_seed(0)
    model, example, other = ARCHITECTURES["torch transformer"](torch.float64)
    optimizer = torch.optim.Adam(model.parameters())
    model(example).square().sum().backward()
    optimizer.step()
    moments = {n: optimizer.state[p]["exp_avg"].clone() for n, p in model.named_parameters()}
    reduction = remove(model, example, units=partial(smallest, fraction=0.5))
    reduction.apply_(model, optimizer)
    with torch.no_grad():
        assert torch.equal(model(other), reduction.model(other))
    for name, p in model.named_parameters():
        want = moments[name]
        for dim, kept in reduction.cut.tensors.get(name, {}).items():
            want = want.index_select(dim, torch.tensor(kept))
        assert torch.equal(optimizer.state[p]["exp_avg"], want), name
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.zero_grad()
    model(example).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
