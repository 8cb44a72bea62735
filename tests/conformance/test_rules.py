"""Every rule, one row: `layer -> operator -> layer`, half of the units removed, and still the same function.

The reduced model must equal the model in which the removed slices are zeros, in float64, on an input it was
not watched on. Rows marked `holds` must pin instead. A new rule needs one new row.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from gracile.graph import Cut, Graph, watch


def mask(model: nn.Module, graph: Graph, units: list[int]) -> nn.Module:
    masked = copy.deepcopy(model)
    tensors = dict([*masked.named_parameters(), *masked.named_buffers()])
    for unit in units:
        for part in graph.units[unit].slices:
            lengths = tensors.get(part.tensor.replace("weight.original1", "weight.original0"))
            if part.tensor.endswith("weight.original1") and lengths.shape[part.dim] > 1:
                continue  # a direction: its length is divided by, the magnitude beside it is zeroed instead
            tensors[part.tensor].data.index_fill_(part.dim, torch.tensor(part.indices), 0)
    return masked


def take(model: nn.Module, cut: Cut) -> nn.Module:
    reduced = copy.deepcopy(model)
    for name, tensor in [*reduced.named_parameters(), *reduced.named_buffers()]:
        for dim, kept in cut.tensors.get(name, {}).items():
            tensor.data = tensor.data.index_select(dim, torch.tensor(kept))
    for path, value in cut.attributes.items():
        *way, last = path.split(".")
        holder: Any = reduced
        for step in way:
            holder = getattr(holder, step)
        old = getattr(holder, last)
        setattr(holder, last, type(old)(value) if isinstance(value, list) else value)
    return reduced


def randomize(model: nn.Module) -> None:
    """Nothing is left at 0 or 1, where an error could hide."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(
                    torch.rand_like(tensor) + 0.3 if tensor.dim() == 1 else torch.randn_like(tensor) * 0.4
                )


class Sandwich(nn.Module):
    def __init__(self, first: nn.Module, op: Callable[[Tensor], Tensor], last: nn.Module) -> None:
        super().__init__()
        self.first, self.last = first, last
        if isinstance(op, nn.Module):
            self.inner = op
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.op(self.first(x)))


@dataclass(frozen=True)
class Row:
    name: str
    ops: str  # that must be in the log
    op: Callable[[Tensor], Tensor]
    shape: tuple[int, ...] = (2, 4, 5)
    first: Callable[[], nn.Module] = lambda: nn.Linear(5, 8)
    last: Callable[[int], nn.Module] = lambda n: nn.Linear(n, 3)
    out: int = -1  # the dimension that the last layer contracts
    holds: bool = False
    close: float = 1e-12


def linear(name: str, ops: str, op: Callable[[Tensor], Tensor], **more: Any) -> Row:
    return Row(name, ops, op, **more)


def image(name: str, ops: str, op: Callable[[Tensor], Tensor], **more: Any) -> Row:
    more = {
        "shape": (2, 3, 6, 6),
        "first": lambda: nn.Conv2d(3, 8, 1),
        "last": lambda n: nn.Conv2d(n, 3, 1),
        **more,
    }
    return Row(name, ops, op, out=1, **more)


def signal(name: str, ops: str, op: Callable[[Tensor], Tensor]) -> Row:
    return Row(name, ops, op, (2, 3, 9), lambda: nn.Conv1d(3, 8, 1), lambda n: nn.Conv1d(n, 3, 1), out=1)


def volume(name: str, ops: str, op: Callable[[Tensor], Tensor]) -> Row:
    return Row(
        name, ops, op, (2, 3, 4, 4, 4), lambda: nn.Conv3d(3, 8, 1), lambda n: nn.Conv3d(n, 3, 1), out=1
    )


def write(h: Tensor) -> Tensor:
    y = torch.zeros(*h.shape[:-1], 2 * h.shape[-1], dtype=h.dtype)
    y[..., : h.shape[-1]] = h
    y[..., h.shape[-1] :].copy_(h).mul_(2)
    return y


def attend(h: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(
        h.unsqueeze(1), h.unsqueeze(1), h.unsqueeze(1), scale=0.3
    ).squeeze(1)


def counted(h: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(h[None], h[None], h[None])[0]


def decomposed(h: Tensor) -> Tensor:
    """With a dimension more than the fused kernels take."""
    wide = h[None, None, None]
    return functional.scaled_dot_product_attention(wide, wide, wide)[0, 0, 0]


def channels_last(h: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(h.contiguous(memory_format=torch.channels_last), 1)


def gate(h: Tensor) -> Tensor:
    a, b = h.chunk(2, -1)
    return a * b.sigmoid()


class Twice(nn.Bilinear):
    def forward(self, h: Tensor) -> Tensor:
        return super().forward(h, h.relu())


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.weight.shape[0], -1)
        weight = functional.batch_norm(flat, None, None, training=True).reshape_as(self.weight)
        return functional.conv2d(x, weight, self.bias)


def weighted(h: Tensor) -> Tensor:
    weights = torch.arange(1, 5, dtype=h.dtype).repeat(h.shape[-1])
    return (h.mT.flatten(1) * weights).view(2, -1, 4).mT


def windowed(h: Tensor) -> Tensor:
    h = h.contiguous()
    batch, time, width = h.stride()
    return h.as_strided((2, 3, 2, h.shape[-1]), (batch, time, time, width)).flatten(1, 2)


class Grouped(nn.Module):
    """Two experts: the first three rows go to one, the others to the other. The kernel knows no double."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, n, m))

    def forward(self, h: Tensor) -> Tensor:
        rows = h.flatten(0, 1).float()
        return functional.grouped_mm(rows, self.weight.float(), offs=OFFSETS).double().view(2, 4, -1)


def grouped_columns(h: Tensor) -> Tensor:
    y = functional.grouped_mm(h.float(), h.flatten(0, 1).float().mT, offs=OFFSETS)
    return y.mT.double() @ h[0]


def grouped_rows(h: Tensor) -> Tensor:
    flat = h.flatten(0, 1).float()
    return h @ functional.grouped_mm(flat.mT, flat, offs=OFFSETS).double()


def batch_of_products(h: Tensor) -> Tensor:
    return functional.grouped_mm(h.float(), (h.mT @ h).float()).double()


def solved(h: Tensor) -> Tensor:
    matrix = torch.eye(4, dtype=h.dtype) + torch.full((4, 4), 0.3, dtype=h.dtype).tril(-1)
    return torch.linalg.solve_triangular(matrix.expand(2, 4, 4), h, upper=False)


def negative_replaced(h: Tensor) -> Tensor:
    y = h * 2
    y[y < 0] = 0.5
    return y


def rows_replaced(h: Tensor) -> Tensor:
    y = h.clone()
    y[MASK] = h.flip(0)[MASK] * 2
    return y


def steps_replaced(h: Tensor) -> Tensor:
    y = h.clone()
    y[:, torch.tensor([0, 2])] = h[:, 1:3] * 2
    return y


def packed(h: Tensor) -> Tensor:
    sequence = nn.utils.rnn.pack_padded_sequence(h, torch.tensor([4, 3]), batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(sequence._replace(data=sequence.data * 2), batch_first=True)[0]


def unpooled(h: Tensor) -> Tensor:
    values, places = functional.max_pool2d(h, 2, return_indices=True)
    return functional.max_unpool2d(values, places, 2)


def sampled(h: Tensor) -> Tensor:
    theta = torch.tensor([[0.9, 0.2, 0.1], [-0.2, 1.0, 0.0]], dtype=h.dtype).expand(len(h), 2, 3)
    grid = functional.affine_grid(theta, h.shape, align_corners=False)
    return functional.grid_sample(h, grid, align_corners=False)


def rotated(h: Tensor) -> Tensor:
    pairs = torch.view_as_complex(h.unflatten(-1, (h.shape[-1] // 2, 2)))
    return torch.view_as_real(pairs * (1 + 2j)).flatten(-2)


MASK = torch.tensor([True, False])
OFFSETS = torch.tensor([3, 8], dtype=torch.int32)
FIRST = torch.zeros(2, 1, 1, dtype=torch.long)

ROWS = [
    linear("relu", "relu", torch.relu),
    linear("gelu", "gelu", functional.gelu),
    linear("hardswish", "hardswish", functional.hardswish),
    linear("sigmoid times itself", "mul", lambda h: h * h.sigmoid()),
    linear("in place", "mul_ relu_", lambda h: h.mul_(2).relu_()),
    linear("scalar arithmetic", "add rsub pow div", lambda h: (1 - (h + 1) ** 2) / 3),
    linear("where", "where", lambda h: torch.where(h > 0, h, -h)),
    linear("masked fill", "masked_fill", lambda h: h.masked_fill(h < 0, 0.5)),
    linear("clamp", "clamp", lambda h: h.clamp(-1, 1)),
    linear("prelu", "_prelu_kernel", nn.PReLU()),
    linear("prelu by channel", "_prelu_kernel", nn.PReLU(8), first=lambda: nn.Linear(5, 8), shape=(7, 5)),
    linear("log sigmoid", "log_sigmoid_forward", functional.logsigmoid),
    linear("broadcast", "mul", lambda h: h * h[:, :1]),
    linear("glu", "glu", functional.glu),
    linear("dropout at rest", "addmm", nn.Dropout(0.5)),
    linear("clone and cast", "clone _to_copy", lambda h: h.clone().float().double()),
    linear("detach", "detach", lambda h: h.detach()),
    linear("view", "view", lambda h: h.view(-1, h.shape[-1])),
    linear("flatten", "view", lambda h: h.flatten(1)),
    linear("flatten and back", "view", lambda h: h.flatten(1).view(2, 4, -1)),
    linear("unflatten by shape", "view", lambda h: h.unflatten(-1, (h.shape[-1] // 2, 2)).flatten(-2)),
    linear("permute", "permute", lambda h: h.permute(1, 0, 2)),
    linear("transpose twice", "transpose", lambda h: h.transpose(1, 2).relu().transpose(1, 2)),
    linear("in-place transpose", "transpose_", lambda h: h.clone().transpose_(0, 1)),
    linear("squeeze", "unsqueeze squeeze", lambda h: h.unsqueeze(1).squeeze(1)),
    linear("expand", "expand", lambda h: h.unsqueeze(0).expand(3, -1, -1, -1)),
    linear("repeat", "repeat", lambda h: h.repeat(2, 1, 1)),
    linear("repeat the units", "repeat", lambda h: h.repeat(1, 1, 2)),
    linear("cat", "cat", lambda h: torch.cat([h, h.relu()], -1)),
    linear("cat along time", "cat", lambda h: torch.cat([h, h.relu()], 1)),
    linear("stack", "stack", lambda h: torch.stack([h, h.relu()], 1)),
    linear("split", "split", lambda h: torch.cat([h.split(h.shape[-1] // 2, -1)[1], h], -1)),
    linear("chunk", "split", gate),
    linear("slice", "slice", lambda h: h[..., : h.shape[-1] // 2] * 2),
    linear("slice of time", "slice", lambda h: h[:, 1:3]),
    linear("select of time", "select", lambda h: h[:, 1]),
    linear("unbind of time", "unbind", lambda h: h.unbind(1)[0]),
    linear("flip", "flip", lambda h: h.flip(-1)),
    linear("pad", "constant_pad_nd", lambda h: functional.pad(h, (2, 1))),
    linear("write into zeros", "zeros copy_", write),
    linear("bmm", "bmm", lambda h: torch.bmm(torch.bmm(h, h.transpose(1, 2)), h)),
    linear("baddbmm", "baddbmm", lambda h: torch.baddbmm(h, torch.ones(2, 4, 4, dtype=h.dtype), h)),
    linear("einsum", "bmm", lambda h: torch.einsum("btc,bsc,bsd->btd", h, h, h)),
    linear("mean over time", "mean", lambda h: h.mean(1)),
    linear("sum over time", "sum", lambda h: h.sum(1, keepdim=True)),
    linear("amax over time", "amax", lambda h: h.amax(1)),
    linear("max with indices", "max", lambda h: h.max(1).values),
    linear("norm over time", "linalg_vector_norm", lambda h: h.norm(dim=1)),
    linear("softmax over time", "_softmax", lambda h: h.softmax(1)),
    linear("log softmax over time", "_log_softmax", lambda h: h.log_softmax(1)),
    linear("cumsum over time", "cumsum", lambda h: h.cumsum(1)),
    linear("topk over time", "topk", lambda h: h.topk(2, 1).values),
    linear("roll over time", "roll", lambda h: h.roll(1, 1)),
    linear("triangle of time", "tril", lambda h: torch.ones(4, 4, dtype=h.dtype).tril() @ h),
    linear("gather over time", "gather", lambda h: h.gather(1, FIRST.expand(-1, -1, h.shape[-1]))),
    linear("index over time", "index", lambda h: h[:, torch.tensor([2, 0])]),
    linear("index select", "index_select", lambda h: h.index_select(1, torch.tensor([2, 0]))),
    linear("index put", "index_put_", lambda h: h.clone().index_put_((torch.tensor([0]),), h[1] * 2)),
    linear("index add", "index_add", lambda h: h.index_add(1, torch.tensor([0, 1]), h[:, 2:])),
    linear("scatter add", "scatter_add", lambda h: h.scatter_add(1, FIRST.expand(-1, 4, h.shape[-1]), h * 2)),
    linear("rows by mask", "index", lambda h: h[MASK]),
    linear("places by mask", "index", lambda h: h[MASK[:, None].expand(2, 4)]),
    linear("number written by mask", "index_put_", negative_replaced),
    linear("rows written by mask", "index_put_", rows_replaced),
    linear("steps written by index", "index_put_", steps_replaced),
    linear(
        "bags",
        "_embedding_bag_forward_only",
        lambda h: functional.embedding_bag(torch.tensor([[0, 1], [2, 0]]), h[0]),
    ),
    linear(
        "largest of bags",
        "_embedding_bag_forward_only",
        lambda h: functional.embedding_bag(torch.tensor([[0, 1], [2, 0]]), h[0], mode="max"),
    ),
    linear("constants repeated for every unit", "repeat", weighted),
    linear("every other unit", "slice", lambda h: h[..., ::2] * h[..., 1::2].sigmoid()),
    linear("overlapping windows of time", "as_strided", windowed),
    linear("a product for each group of rows", "_grouped_mm", Grouped(8, 16), close=1e-4),
    linear("a product for each group of columns", "_grouped_mm", grouped_columns, close=1e-4),
    linear("a product for each group of contracted rows", "_grouped_mm", grouped_rows, close=1e-4),
    linear("batch of products", "_grouped_mm", batch_of_products, close=1e-4),
    linear("triangular equations", "linalg_solve_triangular", solved),
    linear("bilinear form", "_trilinear", Twice(8, 8, 6)),
    linear("distances", "_cdist_forward", lambda h: torch.cdist(h, h.flip(1))),
    linear("distances between batches", "_cdist_forward", lambda h: torch.cdist(h, h[:1, :3], p=1.0)),
    linear("extremes over time", "aminmax", lambda h: torch.aminmax(h, dim=1).max),
    linear("spread over time", "var_mean", lambda h: torch.var_mean(h, 1, keepdim=True)[0]),
    linear("mode over time", "mode", lambda h: h.round().mode(1).values),
    linear("windows of time", "unfold", lambda h: h.unfold(1, 2, 1)[..., 1]),
    linear("windows of units", "unfold", lambda h: h.unfold(-1, h.shape[-1] // 2, h.shape[-1] // 2).relu()),
    linear("diagonals", "diag_embed diagonal", lambda h: torch.diag_embed(h * 2).diagonal(dim1=-2, dim2=-1)),
    linear("diagonal of time", "diagonal", lambda h: (h @ h.mT).diagonal(1, 1, 2)),
    linear("pairs as complex numbers", "view_as_complex view_as_real", rotated),
    linear("complex", "complex", lambda h: torch.complex(h, h * 2).abs()),
    linear(
        "fourier over time", "_fft_c2c", lambda h: torch.fft.ifft(torch.fft.fft(h, dim=1) ** 2, dim=1).abs()
    ),
    linear(
        "fourier and back", "_fft_r2c _fft_c2r", lambda h: torch.fft.irfft(torch.fft.rfft(h, dim=1), 4, 1)
    ),
    linear("packed sequences", "_pack_padded_sequence", packed),
    linear("attention", "_scaled_dot_product_flash_attention_for_cpu", attend),
    linear("weight norm", "_weight_norm_interface", weight_norm(nn.Linear(8, 6))),
    linear("mm", "mm", lambda h: h[0] @ (h[0].mT @ h[1])),
    image("batch norm", "native_batch_norm", nn.BatchNorm2d(8)),
    image("group norm", "native_group_norm", nn.GroupNorm(4, 8)),
    image("conv", "convolution", nn.Conv2d(8, 6, 3, padding=1)),
    image("strided conv without bias", "convolution", nn.Conv2d(8, 6, 3, stride=2, bias=False)),
    image("depthwise conv", "convolution", nn.Conv2d(8, 8, 3, groups=8)),
    image("depthwise multiplier", "convolution", nn.Conv2d(8, 16, 3, groups=8)),
    image("grouped conv", "convolution", nn.Conv2d(8, 12, 3, groups=4)),
    image("transposed conv", "convolution", nn.ConvTranspose2d(8, 6, 2, stride=2)),
    image("grouped transposed conv", "convolution", nn.ConvTranspose2d(8, 12, 2, groups=4)),
    image("max pool", "max_pool2d_with_indices", nn.MaxPool2d(2)),
    image("average pool", "avg_pool2d", nn.AvgPool2d(2)),
    image("adaptive pool to 1", "mean", nn.AdaptiveAvgPool2d(1)),
    image("adaptive pool to 2", "_adaptive_avg_pool2d", nn.AdaptiveAvgPool2d(2)),
    image("adaptive max pool", "adaptive_max_pool2d", nn.AdaptiveMaxPool2d(2)),
    image("nearest", "upsample_nearest2d", nn.Upsample(scale_factor=2)),
    image("bilinear", "upsample_bilinear2d", nn.Upsample(scale_factor=2, mode="bilinear")),
    image("bicubic", "upsample_bicubic2d", nn.Upsample(scale_factor=2, mode="bicubic")),
    image("pixel shuffle", "pixel_shuffle", nn.PixelShuffle(2)),
    image("pixel unshuffle", "pixel_unshuffle", nn.PixelUnshuffle(2)),
    image("reflection pad", "reflection_pad2d", nn.ReflectionPad2d(1)),
    image("replication pad", "replication_pad2d", nn.ReplicationPad2d(1)),
    image("zero pad", "constant_pad_nd", nn.ZeroPad2d(1)),
    image("channel shuffle", "channel_shuffle", nn.Sequential(nn.ChannelShuffle(2), nn.Conv2d(8, 8, 1))),
    image("channels last", "clone", channels_last),
    image("squeeze and excite", "mul", lambda h: h * h.mean((2, 3), keepdim=True).sigmoid()),
    image("instance norm", "native_batch_norm", nn.InstanceNorm2d(8, affine=True)),
    image("unfold", "im2col", lambda h: functional.unfold(h, 3), last=lambda n: nn.Conv1d(n, 3, 1)),
    image("fold", "col2im", lambda h: functional.fold(h.flatten(2), (7, 7), 2)),
    image("unpool", "max_unpool2d", unpooled),
    image("sample", "affine_grid_generator grid_sampler_2d", sampled),
    signal("conv 1d", "convolution", nn.Conv1d(8, 8, 3, groups=2)),
    signal("pool 1d", "max_pool2d_with_indices", nn.MaxPool1d(2)),
    signal("average pool 1d", "avg_pool2d", nn.AvgPool1d(2)),
    Row(
        "average pool beside the units",
        "avg_pool2d",
        lambda h: functional.avg_pool2d(h, (2, 1)),
        (3, 4, 5),
        lambda: nn.Linear(5, 8),
        lambda n: nn.Linear(n, 3),
    ),
    signal("weight norm by tap", "_weight_norm_interface", weight_norm(nn.Conv1d(8, 6, 3), dim=2)),
    signal("linear resize", "upsample_linear1d", nn.Upsample(scale_factor=2, mode="linear")),
    signal("batch norm 1d", "native_batch_norm", nn.BatchNorm1d(8)),
    volume("conv 3d", "convolution", nn.Conv3d(8, 6, 2)),
    volume("transposed conv 3d", "convolution", nn.ConvTranspose3d(8, 6, 2)),
    volume("pool 3d", "max_pool3d_with_indices", nn.MaxPool3d(2)),
    volume("average pool 3d", "avg_pool3d", nn.AvgPool3d(2)),
    volume("trilinear", "upsample_trilinear3d", nn.Upsample(scale_factor=2, mode="trilinear")),
    # the operator looks across units: they stay
    linear("layer norm", "native_layer_norm", nn.LayerNorm(8), holds=True),
    linear("rms norm", "rsqrt", nn.RMSNorm(8), holds=True),
    image("standardized weight", "native_batch_norm", Standardized(8, 6, 1), holds=True),
    linear("softmax", "_softmax", lambda h: h.softmax(-1), holds=True),
    linear("mean", "mean", lambda h: h - h.mean(-1, keepdim=True), holds=True),
    linear("size as a tensor", "div", lambda h: h / torch.tensor(h.shape[-1]).sqrt(), holds=True),
    linear("cumsum", "cumsum", lambda h: h.cumsum(-1), holds=True),
    linear("sort", "sort", lambda h: h.sort(-1).values, holds=True),
    linear("roll", "roll", lambda h: h.roll(1, -1), holds=True),
    linear("argmax", "argmax", lambda h: h * (h.argmax(-1, keepdim=True) > 2), holds=True),
    linear("select", "select", lambda h: h * h[..., 1].unsqueeze(-1)),
    linear("select the last", "select", lambda h: h * h[..., -2].unsqueeze(-1)),
    linear("strided slice that leaves a rest", "slice", lambda h: h[..., 1:6:2], holds=True),
    linear(
        "overlapping windows of units",
        "as_strided",
        lambda h: h.as_strided((2, 4, 3, 4), (32, 8, 2, 1)),
        holds=True,
    ),
    linear("another order by strides", "as_strided", lambda h: h[0].as_strided((4, 8), (1, 4)), holds=True),
    linear("index", "index", lambda h: h[..., torch.tensor([1, 0, 3, 2, 7, 6, 5, 4])], holds=True),
    linear("boolean index", "index", lambda h: h[h.abs() >= 0].view(h.shape), holds=True),
    linear("fft", "_fft_r2c", lambda h: torch.fft.rfft(h).abs(), holds=True),
    linear("attention that decomposes", "_safe_softmax", decomposed, holds=True),
    linear("attention that counts", "_scaled_dot_product_flash_attention_for_cpu", counted, holds=True),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_removed_equals_masked(row: Row) -> None:
    torch.manual_seed(0)
    first, x = row.first().double(), torch.randn(row.shape, dtype=torch.float64)
    op = copy.deepcopy(row.op).double().eval() if isinstance(row.op, nn.Module) else row.op
    with torch.no_grad():
        width = op(first(x)).shape[row.out]
    model = Sandwich(first, op, row.last(width)).double().eval()
    randomize(model)

    graph = watch(model, x, norms="keep")

    logged = {step.op.split(".")[1] for step in graph.steps}
    assert set(row.ops.split()) <= logged, f"the operator did not run; {sorted(logged)} did"
    assert not [pin for pin in graph.pins() if "does not fit" in pin.why]
    held = [pin for pin in graph.pins() if "first." in pin.tensor and pin.dim == 0 and pin.share == 1]
    if row.holds:
        assert held
        assert all(pin.source.startswith("test_rules.py:") for pin in held)
    else:
        assert not held, held
    units = [unit for block in graph.blocks for unit in block.units[1::2]]
    assert row.holds or units
    masked, reduced = mask(model, graph, units), take(model, graph.cut(units))
    fresh = torch.randn(row.shape, dtype=torch.float64)
    with torch.no_grad():
        expected, found, whole = masked(fresh), reduced(fresh), model(fresh)
    torch.testing.assert_close(found, expected, rtol=row.close, atol=row.close)
    if units:
        assert not torch.allclose(whole, expected), "nothing was removed that mattered"
        assert sum(p.numel() for p in reduced.parameters()) < sum(p.numel() for p in model.parameters())


def test_every_row_has_its_own_name() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
