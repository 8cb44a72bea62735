"""What a reduced network is: an ordinary module of its own class. Networks in rows, promises in columns.

Every network loses half of its units, and is then trained on, copied, compiled, exported, saved and loaded.
A new architecture needs one new row; a new promise one function.
"""

from __future__ import annotations

import copy
import functools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from gracile.reduce import Reduction, load, remove, save, smallest
from gracile.zoo.networks import LSTMLanguageModel, build


class Depthwise(nn.Module):
    """Inverted residuals with a squeeze-and-excitation gate, as in MobileNet."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6())
        self.wide = nn.Sequential(
            nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width), nn.Hardswish()
        )
        self.deep = nn.Conv2d(4 * width, 4 * width, 3, 1, 1, groups=4 * width)
        self.gate = nn.Sequential(nn.Conv2d(4 * width, width, 1), nn.SiLU(), nn.Conv2d(width, 4 * width, 1))
        self.back = nn.Sequential(nn.Conv2d(4 * width, width, 1, bias=False), nn.BatchNorm2d(width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.deep(self.wide(x))
        y = y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        x = x + self.back(y)
        return self.head(x.mean((2, 3)))


class ViT(nn.Module):
    """Fused queries, keys and values; sizes taken from attributes; a class token."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.width, self.heads, self.head_dim = width, heads, width // heads
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.place = nn.Parameter(torch.randn(1, 5, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        b, n, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        scores = (q @ k.transpose(-2, -1)) * 0.5
        x = x + self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, self.heads * self.head_dim))
        return self.head((x + self.mlp(self.norm2(x)))[:, 0])


class Encoder(nn.Module):
    def __init__(self, norm_first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True, norm_first=norm_first)
        self.embed = nn.Embedding(31, 16)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 31)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(tokens)))


class Recurrent(nn.Module):
    """Two layers of any kind between two linear ones."""

    def __init__(self, kind: type[nn.RNNBase], **more: Any) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.inner = kind(8, 12, 2, batch_first=True, **more)
        ways = 2 if more.get("bidirectional") else 1
        self.last = nn.Linear(ways * (more.get("proj_size") or 12), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.first(x).relu())[0])


class UNet(nn.Module):
    """Down, up by a transposed convolution, and a concatenated skip."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(
            nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.down = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.ReLU(inplace=True))
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.leave = nn.Conv2d(16, 2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.leave(torch.cat([x, self.up(self.down(x))], 1))


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(31, 12)
        self.inner = nn.LSTM(12, 16, batch_first=True)
        self.narrow = nn.Linear(16, 12)
        self.head = nn.Linear(12, 31)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.narrow(self.inner(self.embed(tokens))[0]))


class Normed(nn.Module):
    """Weights that are computed: weight norm as a parametrization, and one of our own making."""

    def __init__(self) -> None:
        super().__init__()
        self.first = weight_norm(nn.Conv1d(3, 12, 3, padding=1))
        self.second = nn.Linear(12, 10)
        self.last = weight_norm(nn.Linear(10, 4))
        nn.utils.parametrize.register_parametrization(self.second, "weight", Clipped())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).relu().mean(2)).tanh())


class Clipped(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.clamp(-2, 2)


def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="an optional extra")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 31}
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 16}
    config = transformers.BertConfig(**sizes, **none, num_attention_heads=4, type_vocab_size=1)
    return transformers.BertForMaskedLM(config)


def gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="an optional extra")
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 16, "vocab_size": 31}
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = transformers.GPT2Config(**sizes, **none, bos_token_id=None, eos_token_id=None)
    return transformers.GPT2LMHeadModel(config)


def llama() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="an optional extra")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 31}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    return transformers.LlamaForCausalLM(config)


def pixels(*shape: int) -> Callable[[], Tensor]:
    return functools.partial(torch.randn, *shape)


def tokens() -> Tensor:
    return torch.randint(31, (2, 7))


@dataclass(frozen=True)
class Row:
    name: str
    make: Callable[[], nn.Module]
    example: Callable[[], Tensor]
    pick: Callable[[Any], Tensor] = lambda y: y
    named: dict[str, Any] = field(default_factory=dict)
    no_onnx: str = ""  # why there can be none
    blind: str = "nothing"  # the end of names of parameters on which the function does not depend


def logits(y: Any) -> Tensor:
    return y.logits


ROWS = [
    Row("lenet", lambda: build("lenet", (1, 28, 28)), pixels(2, 1, 28, 28)),
    Row("resnet20", lambda: build("resnet20", (3, 16, 16)), pixels(2, 3, 16, 16)),
    Row("vgg", lambda: build("vggsmall", (3, 32, 32)), pixels(2, 3, 32, 32)),
    Row("depthwise", Depthwise, pixels(2, 3, 8, 8)),
    Row("vit", ViT, pixels(2, 3, 8, 8)),
    Row("encoder", Encoder, tokens),
    Row("encoder, post-norm", functools.partial(Encoder, False), tokens),
    Row("lstm language model", lambda: LSTMLanguageModel(31, (12, 8), dropout=0.0), tokens),
    Row("gru, two ways", functools.partial(Recurrent, nn.GRU, bidirectional=True), pixels(2, 6, 5)),
    Row(
        "lstm, projected",
        functools.partial(Recurrent, nn.LSTM, proj_size=6),
        pixels(2, 6, 5),
        no_onnx="ONNX has no LSTM with a projection; what torch writes for one, reduced or not, does not run",
    ),
    Row("rnn", functools.partial(Recurrent, nn.RNN), pixels(2, 6, 5)),
    Row("u-net", UNet, pixels(2, 3, 8, 8)),
    Row("tied", Tied, tokens),
    Row("parametrized", Normed, pixels(2, 3, 9)),
    Row("bert", bert, tokens, logits, blind="key.bias"),  # the softmax cancels it
    Row("gpt2", gpt2, tokens, logits, {"use_cache": False}),
    Row("llama", llama, tokens, logits, {"use_cache": False}),
]


@functools.cache
def reduced(name: str) -> tuple[Row, nn.Module, Tensor, Reduction]:
    """The row, a network of it, an example, and the network with half of its units."""
    row = next(row for row in ROWS if row.name == name)
    torch.manual_seed(0)
    model, x = row.make(), row.example()
    with torch.no_grad():
        for tensor in model.parameters():  # nothing is left at 0 or 1
            tensor.add_(torch.empty_like(tensor).uniform_(-0.1, 0.1))
    model.eval()
    reduction = remove(model, x, units=functools.partial(smallest, fraction=0.5), **row.named)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, reduction.model))
    assert after < 0.7 * before
    assert type(reduction.model) is type(model)
    return row, model, x, reduction


def answer(row: Row, model: nn.Module, x: Tensor) -> Tensor:
    return row.pick(model(x, **row.named))


@pytest.fixture(params=[row.name for row in ROWS])
def case(request: pytest.FixtureRequest) -> Iterator[tuple[Row, nn.Module, Tensor, Reduction]]:
    row, model, x, reduction = reduced(request.param)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield row, copy.deepcopy(model), x, reduction


Case = tuple[Row, nn.Module, Tensor, Reduction]


def test_nothing_odd_is_left_behind(case: Case) -> None:
    """No traced integers, no hooks (also none for all modules), no attribute that the original did not have,
    no stale list of weights."""
    _, model, _, reduction = case
    originals = dict(model.named_modules())
    for name, module in reduction.model.named_modules():
        for key, value in vars(module).items():
            for item in value if isinstance(value, (list, tuple)) else [value]:
                assert not isinstance(item, int) or type(item) in (int, bool), f"{name}.{key}"
        original = originals.get(name)
        if type(original) is type(module):
            assert vars(module).keys() == vars(original).keys()
            assert len(module._forward_hooks) == len(original._forward_hooks)
            assert len(module._forward_pre_hooks) == len(original._forward_pre_hooks)
        if isinstance(module, nn.RNNBase):
            own = {id(p) for p in module.parameters()}
            assert {id(weight) for weight in module._flat_weights} == own
            assert {id(weight) for layer in module.all_weights for weight in layer} == own
    assert not nn.modules.module._has_any_global_hook()
    for name, parameter in reduction.model.named_parameters():
        assert parameter.is_leaf, name
        assert parameter.requires_grad, name
        assert parameter.is_contiguous(), name


def loss_of(row: Row, model: nn.Module, x: Tensor) -> Tensor:
    y = answer(row, model, x)
    target = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).reshape(y.shape)
    return (y - target).square().mean()


def sgd(p: Tensor, g: Tensor, state: dict[str, Tensor]) -> Tensor:
    return p - 1e-3 * (0.9 * state["momentum_buffer"] + g)


def adam(p: Tensor, g: Tensor, state: dict[str, Tensor]) -> Tensor:
    step = int(state["step"]) + 1
    first = 0.9 * state["exp_avg"] + 0.1 * g
    second = 0.999 * state["exp_avg_sq"] + 0.001 * g * g
    return p - 1e-3 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)


OPTIMIZERS = {
    "sgd": (lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9), sgd),
    "adam": (lambda p: torch.optim.Adam(p, lr=1e-3), adam),
}


@pytest.mark.parametrize("method", OPTIMIZERS)
def test_trains_on(case: Case, method: str) -> None:
    """Cut in the middle of training: the first step after it is the optimizer's formula on sliced state, and
    a few steps later every parameter has moved and the loss has fallen."""
    row, model, x, reduction = case
    make, formula = OPTIMIZERS[method]
    model.train()
    optimizer = make(model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(row, model, x).backward()
        optimizer.step()
    names = dict(model.named_parameters())
    full = {
        name: {key: value.clone() for key, value in optimizer.state[p].items()} for name, p in names.items()
    }
    reduction.apply_(model, optimizer)
    assert dict(model.named_parameters()).keys() == names.keys()
    assert {id(p) for p in model.parameters()} == {id(p) for p in optimizer.state}

    optimizer.zero_grad()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    start = loss_of(row, model, x)
    start.backward()
    optimizer.step()
    for name, p in model.named_parameters():
        state = dict(full[name])
        for key, value in state.items():
            for dim, kept in reduction.cut.tensors.get(name, {}).items() if value.dim() else ():
                state[key] = state[key].index_select(dim, torch.tensor(kept))
        torch.testing.assert_close(p.detach(), formula(before[name], p.grad, state), rtol=1e-4, atol=1e-6)
    for _ in range(3):
        optimizer.zero_grad()
        loss = loss_of(row, model, x)
        loss.backward()
        optimizer.step()
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert not [name for name in still if not name.endswith(row.blind)]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert loss < start


@torch.no_grad()
def test_copies_and_state_dicts(case: Case) -> None:
    row, model, x, reduction = case
    want = answer(row, reduction.model, x)
    twin = copy.deepcopy(reduction.model)
    for parameter in twin.parameters():
        parameter.zero_()
    assert torch.equal(answer(row, reduction.model, x), want)
    state = reduction.model.state_dict()
    assert state.keys() == model.state_dict().keys()
    twin.load_state_dict(state)
    assert torch.equal(answer(row, twin, x), want)


@torch.no_grad()
def test_saves_and_loads(case: Case, tmp_path: Path) -> None:
    row, _, x, reduction = case
    save(tmp_path, reduction.model, reduction.cut)
    again = load(tmp_path, row.make()).eval()
    assert type(again) is type(reduction.model)
    assert again.state_dict().keys() == reduction.model.state_dict().keys()
    assert torch.equal(answer(row, again, x), answer(row, reduction.model, x))


@torch.no_grad()
def test_compiles(case: Case) -> None:
    row, _, x, reduction = case
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(reduction.model), backend="aot_eager")
    close(answer(row, compiled, x), answer(row, reduction.model, x))


# Of any LSTM, GRU or RNN, reduced or not: torch puts its weights into a list while it traces.
@pytest.mark.filterwarnings("ignore:The tensor attributes? .*_flat_weights:UserWarning")
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")
@torch.no_grad()
def test_exports_and_runs_in_onnx_runtime(case: Case, tmp_path: Path) -> None:
    row, _, x, reduction = case
    program = torch.export.export(reduction.model, (x,), row.named)
    want = answer(row, reduction.model, x)
    close(row.pick(program.module()(x, **row.named)), want)
    pytest.importorskip("onnxscript", reason="an optional extra")
    onnxruntime = pytest.importorskip("onnxruntime", reason="an optional extra")
    if row.no_onnx:
        pytest.skip(reason=row.no_onnx)
    torch.onnx.export(program, (x,), tmp_path / "model.onnx", kwargs=row.named, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    close(torch.from_numpy(found), want)


@pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler")
@torch.no_grad()
def test_compiles_to_machine_code() -> None:
    row, _, x, reduction = reduced("parametrized")
    torch.compiler.reset()
    close(answer(row, torch.compile(copy.deepcopy(reduction.model)), x), answer(row, reduction.model, x))


def close(found: Tensor, want: Tensor) -> None:
    assert found.shape == want.shape
    assert (found - want).abs().max() <= 1e-5 * want.abs().max()
