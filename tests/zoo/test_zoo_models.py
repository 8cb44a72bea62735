"""The reference networks have the parameters and behavior of the networks they are named after."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from gracile.errors import ShapeError, UsageError
from gracile.files import read_tensors
from gracile.zoo import (
    MLP,
    LeNet,
    LSTMLanguageModel,
    VGGSmall,
    available,
    build,
    cifar10,
    digits,
    models,
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
    with pytest.raises(UsageError, match="'lenets'; expected one of lenet"):
        build("lenets", (1, 8, 8))
    with pytest.raises(UsageError, match="token streams go to 'lstm'"):
        build("lenet", (35,))


def test_networks_refuse_what_they_cannot_be() -> None:
    with pytest.raises(ShapeError, match="4x4 or more"):
        LeNet((1, 3, 8))
    with pytest.raises(ShapeError, match="8x8 or more"):
        VGGSmall((1, 7, 8))
    with pytest.raises(ShapeError, match="12 units and an embedding of 8"):
        LSTMLanguageModel(9, widths=(8, 12), tied=True)


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
