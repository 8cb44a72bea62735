import pytest
import torch
from torch import nn

from gracile.algebra import Uniform
from gracile.errors import ShapeError, UsageError
from gracile.reduce import quantize


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))


def test_every_filter_lies_on_its_own_grid_and_nothing_else_changes():
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    done = quantize(model, 4)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    after = dict(done.model.named_parameters())
    assert set(done.codes) == {"0.weight", "4.weight"}
    for name, parameter in after.items():
        if name not in done.codes:
            assert torch.equal(parameter, before[name])
            continue
        codes = done.codes[name]
        assert torch.equal(parameter, codes.values * codes.scale)
        for row in range(len(parameter)):
            assert len(parameter[row].unique()) <= 15
            step = before[name][row].abs().max() / 7
            assert (parameter[row] - before[name][row]).abs().max() <= step / 2 * (1 + 1e-5)


def test_more_bits_come_closer():
    model, x = network().eval(), torch.randn(3, 2, 6, 6)
    errors = [(quantize(model, bits).model(x) - model(x)).abs().max().item() for bits in (2, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


def test_formats_by_name():
    done = quantize(network(), {"4.weight": Uniform(3), "0.weight": 8})
    assert done.bits == {"4.weight": 3, "0.weight": 8}


def test_what_cannot_be_quantized():
    model = network()
    with pytest.raises(UsageError, match="no such parameter"):
        quantize(model, {"nothing": 4})
    with pytest.raises(UsageError, match="shape"):
        quantize(model, {"0.bias": 4})
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ShapeError):
        quantize(model, 4)
