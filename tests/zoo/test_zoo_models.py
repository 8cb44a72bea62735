"""The reference networks have the parameters and behavior of the networks they are named after."""

from __future__ import annotations

import os
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from gracile.errors import ShapeError, UsageError
from gracile.files import read_tensors
from gracile.reduce import remove, smallest
from gracile.zoo import (
    MLP,
    ConvM,
    ConvMNet,
    LeNet,
    LSTMLanguageModel,
    VGGSmall,
    available,
    build,
    cifar10,
    conv_m,
    conv_m_small,
    digits,
    models,
    plain_small,
    resnet20,
    resnet32,
    resnet56,
)

DATA = Path(os.environ.get("GRACILE_DATA", "no-data"))


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_lenet_has_the_parameters_of_caffe() -> None:
    convolutions = 20 * 25 + 20 + 50 * 20 * 25 + 50
    dense = 500 * 50 * 4 * 4 + 500 + 10 * 500 + 10
    assert parameters(LeNet((1, 28, 28))) == convolutions + dense == 431_080


@pytest.mark.parametrize(("factory", "blocks"), [(resnet20, 3), (resnet32, 5), (resnet56, 9)])
def test_residual_networks_match_the_closed_form(factory, blocks: int) -> None:
    convolutions = 27 * 16 + 9 * (
        2 * blocks * 16**2 + 16 * 32 + (2 * blocks - 1) * 32**2 + 32 * 64 + (2 * blocks - 1) * 64**2
    )
    norms = 2 * (16 + 2 * blocks * (16 + 32 + 64))
    assert parameters(factory()) == convolutions + norms + 650
    layers = [m for m in factory().modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 6 * blocks + 2


def test_vgg_at_full_width_is_the_published_vgg_small() -> None:
    widths = (3, 128, 128, 256, 256, 512, 512)
    convolutions = sum(9 * a * b for a, b in pairwise(widths))
    expected = convolutions + 2 * sum(widths[1:]) + 512 * 16 * 10 + 10
    assert parameters(VGGSmall((3, 32, 32), widths=(128, 256, 512))) == expected
    assert expected == pytest.approx(4.66e6, rel=0.01)


def test_mlp_parameters() -> None:
    assert parameters(MLP((64, 32, 10))) == 65 * 32 + 33 * 10


@pytest.mark.parametrize("tied", [False, True])
def test_lstm_parameters(tied: bool) -> None:
    model = LSTMLanguageModel(50, widths=(12, 8), embedding=8, tied=tied)
    layers = 4 * 12 * (8 + 12 + 2) + 4 * 8 * (12 + 8 + 2)
    assert parameters(model) == layers + (50 * 8) * (1 if tied else 2) + 50
    assert (model.decoder.weight is model.embedding.weight) == tied


def test_lstm_equals_torch_with_two_layers() -> None:
    torch.manual_seed(0)
    model = LSTMLanguageModel(30, widths=(6, 6)).eval()
    stacked = nn.LSTM(6, 6, num_layers=2, batch_first=True)
    for depth, layer in enumerate(model.layers):
        for name, value in layer.named_parameters():
            stacked.get_parameter(name.replace("l0", f"l{depth}")).data.copy_(value)
    tokens = torch.randint(30, (4, 9))
    expected = model.decoder(stacked(model.embedding(tokens))[0])
    torch.testing.assert_close(model(tokens), expected)


def test_lstm_carries_its_state_across_windows() -> None:
    torch.manual_seed(0)
    model = LSTMLanguageModel(30, widths=(8, 6)).eval()
    tokens = torch.randint(30, (4, 10))
    first, state = model(tokens[:, :6], model.initial_state(4))
    second, _ = model(tokens[:, 6:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), model(tokens))
    assert not torch.allclose(second, model(tokens[:, 6:]))


@pytest.mark.parametrize("name", sorted(set(models) - {"lstm"}))
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_every_image_network_takes_every_image_size(name: str, shape: tuple[int, int, int]) -> None:
    model = build(name, shape, classes=7)
    model(torch.randn(2, *shape)).sum().backward()
    assert model(torch.randn(3, *shape)).shape == (3, 7)
    assert all(p.grad is not None for p in model.parameters())


def test_build_takes_shape_and_classes_from_splits() -> None:
    splits = digits()
    assert build("lenet", splits)(splits.train[0][0][None]).shape == (1, 10)


def test_build_refuses_what_does_not_fit() -> None:
    with pytest.raises(UsageError, match="'lenets'; expected one of convm, lenet"):
        build("lenets", (1, 8, 8))
    with pytest.raises(UsageError, match="token streams go to 'lstm'"):
        build("lenet", (35,))


def test_networks_refuse_what_they_cannot_be() -> None:
    with pytest.raises(ShapeError, match="4x4 or more"):
        LeNet((1, 3, 8))
    with pytest.raises(ShapeError, match="8x8 or more"):
        VGGSmall((1, 7, 8))
    with pytest.raises(ShapeError, match="4x4 or more"):
        ConvMNet((1, 3, 8))
    with pytest.raises(ShapeError, match="32x32 or more"):
        conv_m(10, (3, 31, 40))
    with pytest.raises(UsageError, match="outputs=2"):
        ConvM(3, 2)
    with pytest.raises(ShapeError, match="12 units and an embedding of 8"):
        LSTMLanguageModel(9, widths=(8, 12), tied=True)


def test_conv_m_has_the_published_number_of_parameters() -> None:
    assert parameters(conv_m(1000)) == pytest.approx(4.1e6, rel=0.05)
    assert parameters(conv_m_small((1, 16, 16))) == pytest.approx(
        parameters(plain_small((1, 16, 16))), rel=0.02
    )
    block = ConvM(8, 30, squeeze=4)
    assert parameters(block) == 8 * 4 + 4 + 10 * 4 * (9 + 9 + 16) + 2 * 30
    assert conv_m(7, (3, 64, 64))(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_conv_m_puts_its_three_branches_side_by_side() -> None:
    torch.manual_seed(0)
    block = ConvM(2, 7).eval()
    x = torch.randn(3, 2, 6, 9)
    up = functional.conv_transpose2d(x, block.up.weight, stride=2, padding=1)
    expected = [
        functional.conv2d(x, block.near.weight, padding=1),
        functional.conv2d(x, block.far.weight, padding=2, dilation=2),
        up.unflatten(3, (9, 2)).unflatten(2, (6, 2)).amax((3, 5)),
    ]
    assert [part.shape[1] for part in expected] == [3, 2, 2]
    torch.testing.assert_close(block(x), functional.relu(torch.cat(expected, 1) / (1 + block.bn.eps) ** 0.5))


def test_the_transposed_branch_is_no_ordinary_convolution() -> None:
    """With a mean in place of the maximum it would be one: linear, and equal to its response to a point."""
    torch.manual_seed(0)
    block = ConvM(1, 3).eval()
    x = torch.randn(1, 1, 8, 8)

    def branch(x: torch.Tensor, pool) -> torch.Tensor:
        return pool(block.up(x), 2)

    for pool, ordinary in ((functional.avg_pool2d, True), (functional.max_pool2d, False)):
        point = torch.zeros(1, 1, 5, 5)
        point[..., 2, 2] = 1
        kernel = branch(point, pool).flip(2, 3)
        alike = torch.allclose(functional.conv2d(x, kernel, padding=2), branch(x, pool), atol=1e-5)
        assert alike == ordinary


@pytest.mark.parametrize("build_one", [conv_m_small, plain_small])
def test_conv_m_is_halved_and_proven_equal(build_one) -> None:
    torch.manual_seed(0)
    model, x = build_one((1, 16, 16)).eval(), torch.randn(2, 1, 16, 16)
    reduction = remove(model, x, units=partial(smallest, fraction=0.5))
    assert reduction.verdict.error < 1e-4
    assert not reduction.refused
    assert parameters(reduction.model) < 0.3 * parameters(model)
    small = reduction.model.stages[1][0]
    assert small.bn.num_features == model.stages[1][0].bn.num_features // 2


@pytest.mark.data
@pytest.mark.parametrize(
    ("factory", "file"),
    [(resnet20, "resnet20_cifar10.safetensors"), (resnet56, "resnet56_cifar10.safetensors")],
)
def test_public_checkpoints_load_strictly(factory, file: str) -> None:
    path = DATA / "pretrained" / file
    if not path.is_file():
        pytest.skip(reason="GRACILE_DATA has no pretrained networks")
    state = read_tensors(path)
    model = factory()
    model.load_state_dict(state, strict=True)
    learned = sum(t.numel() for name, t in state.items() if "running" not in name)
    assert parameters(model) == learned


@pytest.mark.data
def test_public_resnet20_keeps_its_accuracy() -> None:
    path = DATA / "pretrained" / "resnet20_cifar10.safetensors"
    if not (path.is_file() and available("cifar10")):
        pytest.skip(reason="GRACILE_DATA has no pretrained networks or no cifar10")
    model = resnet20().eval()
    model.load_state_dict(read_tensors(path))
    test = cifar10().test
    images, targets = zip(*test.__getitems__(range(1000)), strict=True)
    with torch.inference_mode():
        guesses = torch.cat([model(torch.stack(images[i : i + 100])).argmax(1) for i in range(0, 1000, 100)])
    # 81.03 % on all 10000 JPEG images; the standard error on 1000 of them is 1.2 points.
    assert (guesses == torch.stack(targets)).double().mean() == pytest.approx(0.8103, abs=0.037)
