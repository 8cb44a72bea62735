"""Whole modules go: the dropped network equals what is written down by hand here."""

from __future__ import annotations

import copy
import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gracile.errors import RefusedError, UsageError
from gracile.graph import droppable, watch
from gracile.reduce import Bypass, Silent, dead_blocks, drop, export_onnx, load, remove, save, smallest


class Basic(nn.Module):
    """The residual block of He et al., added in place as torchvision does."""

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.down = None
        if stride > 1 or inner != outer:
            self.down = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu_()))
        out += x if self.down is None else self.down(x)
        return out.relu_()


class ResNet(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(
            Basic(width, width), Basic(width, 2 * width, 2), Basic(2 * width, 2 * width)
        )
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).relu()).mean((2, 3)))


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class Layer(nn.Module):
    """Pre-norm, with layer scale if asked: as in timm."""

    def __init__(self, width: int, scaled: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width, 2), Mlp(width)
        self.ls1 = Scale(width) if scaled else nn.Identity()
        self.ls2 = Scale(width) if scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    def __init__(self, scaled: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.layers = nn.ModuleList(Layer(8, scaled) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def randomized(model: nn.Module) -> nn.Module:
    """Nothing is left at 0 or 1."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.copy_(torch.rand_like(tensor) + 0.3)
                if name.endswith(("bias", "running_mean")):
                    tensor.sub_(0.8)
    return model.double().eval()


@pytest.fixture
def resnet() -> ResNet:
    torch.manual_seed(0)
    return randomized(ResNet())


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 9, 9, dtype=torch.float64)


def test_blocks_of_a_residual_network(resnet: ResNet, images: Tensor) -> None:
    """The one with a projection changes the shape and stays; the projection is a shortcut, not a branch."""
    found = {detour.module: detour for detour in droppable(watch(resnet, images))}
    assert list(found) == ["blocks.0", "blocks.2"]
    assert found["blocks.0"].weights == ("blocks.0.conv2.weight",)
    assert found["blocks.0"].settled


def test_dead_block_leaves_the_shift_of_its_batch_norm(resnet: ResNet, images: Tensor) -> None:
    """y = relu(x + beta - gamma mean / sqrt(var + eps)), and the weights before it no longer matter."""
    nn.init.zeros_(resnet.blocks[2].conv2.weight)
    result = drop(resnet, images)
    norm = resnet.blocks[2].bn2
    shift = norm.bias - norm.weight * norm.running_mean / (norm.running_var + norm.eps).sqrt()
    [block] = [m for m in result.model.modules() if isinstance(m, Bypass)]
    assert list(result.cut.dropped) == ["blocks.2"]
    assert block.shift.shape == (1, 12, 1, 1)
    torch.testing.assert_close(block.shift.flatten(), shift, rtol=0, atol=1e-14)
    assert shift.abs().min() > 1e-3
    x = torch.randn(3, 3, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(result.model(x), resnet(x), rtol=1e-13, atol=1e-13)
    assert result.verdict.error < 1e-13 < result.verdict.moved
    assert not any(name.startswith("blocks.2") for name, _ in result.model.named_parameters())


def test_zero_batch_norm_is_the_identity(resnet: ResNet, images: Tensor) -> None:
    """Zero scale and shift (zero-init residual): nothing is left, not even the relu."""
    nn.init.zeros_(resnet.blocks[0].bn2.weight)
    nn.init.zeros_(resnet.blocks[0].bn2.bias)
    model = drop(resnet, images).model
    assert isinstance(model.blocks[0], Bypass)
    assert str(model.blocks[0]) == "Bypass()"
    assert model.blocks[0].shift is None
    torch.testing.assert_close(model(images), resnet(images), rtol=1e-13, atol=1e-13)


def test_living_block_is_masked(resnet: ResNet, images: Tensor) -> None:
    result = drop(resnet, images, blocks=["blocks.2"])
    masked = copy.deepcopy(resnet)
    masked.blocks[2] = nn.Identity()
    assert (masked(images) - resnet(images)).abs().max() > 1e-2
    assert torch.equal(result.model(images), masked(images))


def test_nothing_dead_changes_nothing(resnet: ResNet, images: Tensor) -> None:
    result = drop(resnet, images)
    assert not result.cut.dropped
    assert torch.equal(result.model(images), resnet(images))


def test_refusals(resnet: ResNet, images: Tensor) -> None:
    with pytest.raises(RefusedError, match=r"blocks\.1"):
        drop(resnet, images, blocks=["blocks.1"])
    with pytest.raises(UsageError, match="nowhere"):
        drop(resnet, images, blocks=["nowhere"])
    result = drop(resnet, images, blocks=["blocks.1", "blocks.0"])
    assert [refusal.unit for refusal in result.refused] == ["blocks.1"]
    assert list(result.cut.dropped) == ["blocks.0"]


def test_all_but_the_last_way_from_input_to_output() -> None:
    """Only the class token is read: without any attention nothing of the input reaches it."""

    class Token(ViT):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([torch.ones(len(x), 1, 8, dtype=x.dtype), self.embed(x)], 1)
            for layer in self.layers:
                x = layer(x)
            return self.head(x[:, 0])

    torch.manual_seed(0)
    model, x = randomized(Token()), torch.randn(2, 6, 5, dtype=torch.float64)
    result = drop(model, x, blocks=["layers.0", "layers.1", "layers.2"])
    assert list(result.cut.dropped) == ["layers.0", "layers.1"]
    [refusal] = result.refused
    assert refusal.unit == "layers.2"
    assert "no longer depends on the input" in refusal.reason


@pytest.mark.parametrize("scaled", [False, True])
def test_branches_of_a_transformer(scaled: bool) -> None:
    torch.manual_seed(0)
    model, x = randomized(ViT(scaled)), torch.randn(2, 6, 5, dtype=torch.float64)
    found = {d.module: d for d in droppable(watch(model, x))}
    last = "ls{}" if scaled else "{}"
    first, second = (last.format(1), last.format(2)) if scaled else ("attn", "mlp")
    assert list(found) == [f"layers.{n}{m}" for n in range(3) for m in ("", f".{first}", f".{second}")]
    branch = found[f"layers.1.{first}"]
    assert branch.unheard == (("layers.1.norm1", "layers.1.attn") if scaled else ("layers.1.norm1",))
    assert branch.weights == ("layers.1.attn.proj.weight",)

    result = drop(model, x, blocks=["layers.1.attn", "layers.2", "layers.2.mlp"])
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in expected.named_parameters():
            if name.startswith(("layers.1.attn.proj", "layers.2.attn.proj", "layers.2.mlp.2")):
                tensor.zero_()
    torch.testing.assert_close(result.model(x), expected(x), rtol=1e-13, atol=1e-13)
    gone = ("layers.1.attn", "layers.1.norm1", "layers.1.ls1", "layers.2")
    assert not any(name.startswith(gone) for name, _ in result.model.named_parameters())
    result.model(x).sum().backward()
    assert all(p.grad is not None for p in result.model.parameters())


@pytest.mark.parametrize("scaled", [False, True])
def test_dead_branch_leaves_its_bias(scaled: bool) -> None:
    torch.manual_seed(0)
    model, x = randomized(ViT(scaled)), torch.randn(2, 6, 5, dtype=torch.float64)
    nn.init.zeros_(model.layers[0].mlp[2].weight)
    if scaled:
        nn.init.zeros_(model.layers[2].ls1.gamma)
    assert dead_blocks(watch(model, x), model) == (
        ["layers.0.ls2", "layers.2.ls1"] if scaled else ["layers.0.mlp"]
    )
    result = drop(model, x)
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-13, atol=1e-13)
    left = result.model.layers[0].ls2 if scaled else result.model.layers[0].mlp
    bias = model.layers[0].mlp[2].bias * (model.layers[0].ls2.gamma if scaled else 1)
    assert isinstance(left, Silent)
    torch.testing.assert_close(left.shift.flatten(), bias, rtol=0, atol=1e-14)
    if scaled:
        assert result.model.layers[2].ls1.shift is None


def test_gate_lives_while_the_branch_emits(images: Tensor) -> None:
    """sigmoid(g(x)) * beta depends on x although f is dead; with beta = 0 the whole block is."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.g = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.f(x) * self.g(x).sigmoid()

    model = nn.Sequential(nn.Conv2d(3, 3, 1), Gated(), nn.Conv2d(3, 2, 1)).double().eval()
    nn.init.zeros_(model[1].f.weight)
    result = drop(model, images)
    assert list(result.cut.dropped) == ["1.f"]
    torch.testing.assert_close(result.model(images), model(images), rtol=1e-13, atol=1e-13)
    nn.init.zeros_(model[1].f.bias)
    result = drop(model, images)
    assert list(result.cut.dropped) == ["1"]
    torch.testing.assert_close(result.model(images), model(images), rtol=1e-13, atol=1e-13)


def test_projection_shortcut_keeps_and_branch_goes(images: Tensor) -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Sequential(
                nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1)
            )
            self.short = nn.Conv2d(3, 4, 1, 2)

        def forward(self, x: Tensor) -> Tensor:
            return (self.short(x) + self.branch(x)).relu()

    torch.manual_seed(0)
    model = randomized(nn.Sequential(Projected(), nn.Conv2d(4, 2, 1)))
    nn.init.zeros_(model[0].branch[3].weight)
    assert [detour.module for detour in droppable(watch(model, images))] == ["0.branch"]
    result = drop(model, images)
    assert result.model[0].branch.shift.shape == (1, 4, 1, 1)
    torch.testing.assert_close(result.model(images), model(images), rtol=1e-13, atol=1e-13)


def test_not_droppable(images: Tensor) -> None:
    """Called twice, doubled, scaled, multiplied, or without a shortcut."""

    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d, self.e = (nn.Conv2d(3, 3, 1) for _ in range(5))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.a(self.a(x))
            x = x + self.b(x).exp()
            x = x * self.c(x)
            x = self.d(x) + self.e(x)
            return x.relu()

    model = nn.Sequential(Several()).double()
    assert [d.module for d in droppable(watch(model, images))] == []


def test_relu_inside_stays_where_the_shortcut_is_signed(images: Tensor) -> None:
    class Signed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return functional.relu6(x + self.f(x))

    model = nn.Sequential(nn.Conv2d(3, 3, 1), Signed(), nn.Conv2d(3, 2, 1)).double()
    result = drop(model, images, blocks=["1"])
    assert str(result.model[1]) == "Bypass(relu6)"
    want = model[2](functional.relu6(model[0](images)))
    torch.testing.assert_close(result.model(images), want, rtol=1e-14, atol=1e-14)


def test_drop_path_does_nothing_in_evaluation(images: Tensor) -> None:
    class Stochastic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.f(x)
            if self.training:
                y = y * (torch.rand(len(y), 1, 1, 1) < 0.5) / 0.5
            return x + functional.dropout(y, 0.1, self.training)

    model = nn.Sequential(nn.Conv2d(3, 3, 1), Stochastic(), nn.Conv2d(3, 2, 1)).double().train()
    model = drop(model, images, blocks=["1"]).model
    assert model.training
    assert model[1].training
    assert torch.equal(model(images), model.eval()(images))


def test_depth_then_width_saved_loaded_and_trained_on(resnet: ResNet, images: Tensor, tmp_path: Path) -> None:
    nn.init.zeros_(resnet.blocks[2].conv2.weight)
    depth = drop(resnet, images)
    width = remove(depth.model, images, units=partial(smallest, fraction=0.5))
    assert width.model.blocks[2].shift.shape == (1, 6, 1, 1)
    assert width.verdict.error < 1e-12
    save(tmp_path, width.model, depth.cut, width.cut)
    again = load(tmp_path, ResNet().double()).eval()
    assert torch.equal(again(images), width.model(images))
    assert {n: p.shape for n, p in again.named_parameters()} == {
        n: p.shape for n, p in width.model.named_parameters()
    }
    assert list(again.state_dict()) == list(width.model.state_dict())

    optimizer = torch.optim.SGD(resnet.parameters(), lr=0.1, momentum=0.9)
    resnet(images).square().sum().backward()
    optimizer.step()
    first = {n: optimizer.state[p]["momentum_buffer"].clone() for n, p in resnet.named_parameters()}
    depth.apply_(resnet, optimizer)
    width.apply_(resnet, optimizer)
    names = dict(resnet.named_parameters())
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in names.values()}
    assert {id(p) for p in optimizer.state} == {id(p) for p in names.values()}
    kept = width.cut.tensors["stem.weight"][0]
    assert torch.equal(optimizer.state[names["stem.weight"]]["momentum_buffer"], first["stem.weight"][kept])
    assert torch.equal(resnet.blocks[2].shift, width.model.blocks[2].shift)
    before = {n: p.detach().clone() for n, p in names.items()}
    optimizer.zero_grad()
    resnet(images).square().sum().backward()
    optimizer.step()
    assert not any(torch.equal(p, before[n]) for n, p in names.items())


def test_explicit_attention_that_is_dropped_later(tmp_path: Path) -> None:
    """Width first, then depth: loading makes attention explicit before it goes."""
    torch.manual_seed(0)

    def make() -> nn.Module:
        layers = [
            nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True) for _ in range(2)
        ]
        return nn.Sequential(nn.Linear(5, 8), *layers, nn.Linear(8, 3)).double().eval()

    model, x = make(), torch.randn(2, 6, 5, dtype=torch.float64)
    width = remove(model, x, units=partial(smallest, fraction=0.5))
    depth = drop(width.model, x, blocks=["1.self_attn"])
    assert set(depth.cut.dropped) == {"1.self_attn", "1.norm1"}
    assert depth.cut.dropped["1.self_attn"].attention == ["1.self_attn"]
    save(tmp_path, depth.model, width.cut, depth.cut)
    assert torch.equal(load(tmp_path, make())(x), depth.model(x))


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")
@torch.no_grad()
def test_what_is_left_compiles_and_exports(resnet: ResNet, images: Tensor, tmp_path: Path) -> None:
    nn.init.zeros_(resnet.blocks[2].conv2.weight)
    vit, x = randomized(ViT()).float(), torch.randn(2, 6, 5)
    nn.init.zeros_(vit.layers[0].mlp[2].weight)
    cases = [(drop(resnet.float(), images.float()).model, images.float()), (drop(vit, x).model, x)]
    for model, example in cases:
        want = model(example)
        torch.compiler.reset()
        compiled = torch.compile(copy.deepcopy(model), backend="aot_eager")
        torch.testing.assert_close(compiled(example), want)
        program = torch.export.export(model, (example,))
        torch.testing.assert_close(program.module()(example), want)
        if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
            export_onnx(tmp_path / "m.onnx", model, example)


def _hf(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="an optional extra")
    torch.manual_seed(0)
    if name == "GPT2":
        sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 31}
        sizes |= {"bos_token_id": None, "eos_token_id": None}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).double().eval()
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "vocab_size": 31,
    }
    sizes |= {"num_attention_heads": 2} | ({} if name == "Bert" else {"num_key_value_heads": 1})
    config = getattr(transformers, f"{name}Config")(**sizes)
    kind = {"Bert": "BertForMaskedLM"}.get(name, f"{name}ForCausalLM")
    return getattr(transformers, kind)(config).double().eval()


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("Llama", ["model.layers.1", "model.layers.2.self_attn"]),
        ("Qwen2", ["model.layers.0", "model.layers.2.mlp"]),
        ("GPT2", ["transformer.h.0.mlp", "transformer.h.2"]),
        ("Bert", ["bert.encoder.layer.1.attention.output.dense"]),
    ],
)
def test_layers_of_hugging_face(name: str, blocks: list[str], tmp_path: Path) -> None:
    """Keyword arguments, tuples, and attributes that the loop over the layers asks for."""
    model, tokens = _hf(name), torch.randint(31, (2, 7))
    more = {} if name == "Bert" else {"use_cache": False}
    result = drop(model, tokens, blocks=blocks, **more)
    assert not result.refused
    assert result.verdict.error < 1e-12
    assert set(blocks) <= result.cut.dropped.keys()
    save(tmp_path, result.model, result.cut)
    again, other = load(tmp_path, _hf(name)), torch.randint(31, (3, 5))
    with torch.no_grad():
        want = result.model(other, **more).logits
        assert torch.equal(again(other, **more).logits, want)
        assert (model(other, **more).logits - want).abs().max() > 1e-6


def test_layer_that_fills_a_cache_stays() -> None:
    """The user would miss its keys and values."""
    model, tokens = _hf("Llama"), torch.randint(31, (2, 7))
    with pytest.raises(RefusedError, match=r"model\.layers\.1"):
        drop(model, tokens, blocks=["model.layers.1"], use_cache=True)
