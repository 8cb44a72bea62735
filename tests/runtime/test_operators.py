"""Sparse kernels as torch's own operators: eager, exported, compiled, differentiated."""

import copy
import gc

import pytest
import torch
from torch import nn

from gracile.errors import UsageError
from gracile.runtime import SparseConv2d, SparseLinear, operators, sparse_modules_
from gracile.runtime.operators import sparse_conv2d, sparse_linear


def pruned(layer, density=0.2):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        layer.weight *= torch.rand(layer.weight.shape, generator=generator) < density
    return layer


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        pruned(nn.Conv2d(4, 16, 3, padding="same", stride=1)),
        nn.ReLU(),
        pruned(nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=2, bias=False)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        pruned(nn.Linear(32, 10)),
    ).eval()


def close(found, wanted):
    return (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("block", [1, 16])
def test_modules_equal_the_dense_ones(block):
    model, x = network(), torch.randn(3, 4, 9, 9)
    sparse = sparse_modules_(copy.deepcopy(model), block=block)
    assert [type(m) for m in sparse if type(m).__module__.startswith("gracile")] == [
        SparseConv2d,
        SparseConv2d,
        SparseLinear,
    ]
    with torch.no_grad():
        assert close(sparse(x), model(x))
        assert close(sparse(x.to(memory_format=torch.channels_last)), model(x))
    assert sparse.state_dict().keys() == model.state_dict().keys()


def test_dense_layers_stay():
    model = nn.Sequential(nn.Linear(8, 8), nn.Conv2d(1, 1, 3, padding_mode="circular"))
    model[1].weight.data.zero_()
    assert [type(m) for m in sparse_modules_(model)] == [nn.Linear, nn.Conv2d]


def test_a_layer_used_twice_stays_one():
    layer = pruned(nn.Linear(8, 8))
    model = sparse_modules_(nn.Sequential(layer, nn.ReLU(), layer))
    assert model[0] is model[2]


def test_what_cannot_be_is_refused():
    with pytest.raises(UsageError, match="circular"):
        SparseConv2d(nn.Conv2d(1, 1, 3, padding_mode="circular"))
    with pytest.raises(UsageError, match="same"):
        SparseConv2d(nn.Conv2d(1, 1, 2, padding="same"))
    with pytest.raises(UsageError, match="block=3"):
        sparse_linear(torch.zeros(1, 2), torch.zeros(2, 2), None, 3)


def test_writing_to_a_weight_packs_anew():
    layer = SparseLinear(pruned(nn.Linear(8, 8)))
    x = torch.randn(2, 8)
    before = layer(x)
    layer.weight.mul_(2)
    layer.bias.mul_(2)
    assert close(layer(x), 2 * before)


def test_what_was_packed_goes_with_its_weight():
    weight = torch.randn(8, 8)
    sparse_linear(torch.randn(2, 8), weight, None, 1)
    address = weight.untyped_storage()._cdata
    assert address in operators._packed
    del weight
    gc.collect()
    sparse_linear(torch.randn(2, 8), torch.randn(8, 8), None, 1)
    reference = operators._packed.get(address)
    assert reference is None or not reference[0].expired()


def test_many_sizes_of_map():
    layer, dense = SparseConv2d(conv := pruned(nn.Conv2d(2, 3, 3))), conv
    for side in range(3, 20):
        x = torch.randn(1, 2, side, side)
        assert close(layer(x), dense(x))


def test_other_numbers_run_dense():
    weight, x = torch.randn(4, 6).double(), torch.randn(2, 6).double()
    assert torch.equal(sparse_linear(x, weight, None, 1), x @ weight.t())
    weight = torch.full((4, 6), float("inf"))
    assert sparse_linear(x.float(), weight, None, 1).isfinite().sum() == 0
    with torch.inference_mode():
        weight = torch.randn(4, 6)
        first = sparse_linear(x.float(), weight, None, 1)
        weight.mul_(2)
        assert close(sparse_linear(x.float(), weight, None, 1), 2 * first)


@pytest.mark.parametrize("grad", [False, True])
def test_operators_keep_torchs_rules(grad):
    x = torch.randn(2, 4, 6, 6, requires_grad=grad)
    weight, bias = torch.randn(8, 2, 3, 3, requires_grad=grad), torch.randn(8, requires_grad=grad)
    args = (x, weight, bias, [1, 2], [1, 0], [1, 1], 2, 1)
    torch.library.opcheck(sparse_conv2d, args)
    torch.library.opcheck(sparse_conv2d, (x, weight, None, *args[3:]))
    matrix = torch.randn(5, 4, requires_grad=grad)
    torch.library.opcheck(sparse_linear, (torch.randn(3, 2, 4, requires_grad=grad), matrix, None, 16))


def test_gradients_are_those_of_the_dense_layer():
    x = torch.randn(2, 4, 6, 6)
    for sparse, dense in (
        (
            lambda x, w, b: sparse_conv2d(x, w, b, [2, 1], [1, 0], [1, 1], 2, 1),
            lambda x, w, b: nn.functional.conv2d(x, w, b, (2, 1), (1, 0), 1, 2),
        ),
        (
            lambda x, w, b: sparse_linear(x[:, :, 0, :2], w[:, :, 0, 0], b, 1),
            lambda x, w, b: nn.functional.linear(x[:, :, 0, :2], w[:, :, 0, 0], b),
        ),
    ):
        tensors = [t.requires_grad_() for t in (x.clone(), torch.randn(8, 2, 3, 3), torch.randn(8))]
        found = torch.autograd.grad(sparse(*tensors).sin().sum(), tensors)
        wanted = torch.autograd.grad(dense(*tensors).sin().sum(), tensors)
        assert all(close(a, b) for a, b in zip(found, wanted, strict=True))


def test_export_with_any_batch():
    model = sparse_modules_(network())
    batch = torch.export.Dim("batch")
    exported = torch.export.export(model, (torch.randn(2, 4, 9, 9),), dynamic_shapes=({0: batch},))
    assert "gracile.sparse_conv2d" in str(exported.graph)
    x = torch.randn(5, 4, 9, 9)
    with torch.no_grad():
        assert torch.equal(exported.module()(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_as_one_graph(backend):
    model, x = sparse_modules_(network()), torch.randn(2, 4, 9, 9)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        assert close(compiled(x), model(x))
        assert close(compiled(x), model(x))
