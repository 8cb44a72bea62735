"""The roofline against the published figures of C23, closed forms, and a search over densities."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from gracile.cost import (
    Machine,
    Roof,
    Roofline,
    calibrate,
    count,
    densities,
    machines,
    prefers_groups,
    roofline,
    scipy_csr,
    torch_csr,
)
from gracile.errors import UsageError
from gracile.runtime.kernels import Conv
from gracile.zoo import LeNet, resnet20

XEON, ATOM, KNL = (machines()[name] for name in ("xeon-e5-2697v4", "atom-c2750", "knl-7250"))


class AlexNetConv5(nn.Module):
    """The published golden layer, and the 1x1 layer of GoogLeNet that is never useful."""

    def __init__(self) -> None:
        super().__init__()
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
        self.reduce = nn.Conv2d(480, 16, 1)

    def forward(self, x, y):
        return self.conv5(x), self.reduce(y)


def published(machine: Machine) -> Roofline:
    return roofline(AlexNetConv5(), (torch.zeros(1, 384, 13, 13), torch.zeros(1, 480, 14, 14)), machine)


def test_golden_layer_of_the_publication():
    conv5 = published(XEON)["conv5"]
    assert conv5.flops == pytest.approx(149.5e6, rel=1e-3)
    assert (conv5.activation_bytes, conv5.weight_bytes) == (432_640, 1_769_472)
    assert conv5.weight == "conv5.weight"
    assert conv5.lower == pytest.approx(0.0197, abs=5e-5)
    assert published(ATOM)["conv5"].lower == pytest.approx(0.0109, abs=5e-5)
    assert conv5.upper == pytest.approx(1 / 3)
    assert published(ATOM)["conv5"].upper == pytest.approx(1 / 1.2)
    assert conv5.speedup(0.09) == pytest.approx(3.70, abs=5e-3)
    assert published(ATOM)["conv5"].speedup(0.09) == pytest.approx(9.26, abs=5e-3)


def test_a_small_1x1_layer_is_never_useful_on_the_xeon():
    reduce = published(XEON)["reduce"]
    assert not reduce.worthwhile
    assert reduce.upper < 0
    assert reduce.speedup(0.1) == pytest.approx(0.43, abs=5e-3)
    assert reduce.speedup(0.0) < 0.44
    assert published(ATOM)["reduce"].worthwhile


roofs = st.builds(
    Roof,
    st.just("layer"),
    st.just("layer.weight"),
    st.floats(1e5, 1e10),
    st.floats(1e3, 1e8),
    st.floats(1e2, 1e8),
    st.builds(
        Machine,
        st.just("any"),
        st.floats(1e10, 1e13),
        st.floats(1e9, 1e12),
        st.floats(1.0, 10.0),
        st.floats(1.0, 3.0),
    ),
)


@given(roofs)
def test_bounds_agree_with_a_search_over_densities(roof):
    grid = np.linspace(0, 1, 401)
    speedups = np.array([roof.speedup(x) for x in grid])
    assert (np.diff(speedups) <= 1e-9 * speedups[1:]).all()  # fewer weights are never slower
    faster = grid[speedups > 1]
    if roof.upper > 0:
        assert roof.speedup(roof.upper) >= 1 - 1e-9
        if roof.upper < 1:
            assert roof.speedup(roof.upper * (1 + 1e-6)) <= 1
        assert roof.worthwhile
    else:
        assert not len(faster)
        assert not roof.worthwhile
    if roof.lower > 0:
        assert roof.lower <= roof.upper
        assert roof.compute_s(roof.lower) == pytest.approx(roof.memory_s(roof.lower))
        assert roof.sparse_s(roof.lower / 2) == roof.memory_s(roof.lower / 2)
    else:  # memory is the limit at every useful density
        useful = [x for x in grid if x < roof.upper]
        assert all(roof.sparse_s(x) == pytest.approx(roof.memory_s(x)) for x in useful)


def test_what_is_not_known_is_nan_and_never_a_number():
    assert math.isnan(KNL.alpha)
    conv5 = published(KNL)["conv5"]
    assert all(math.isnan(v) for v in (conv5.upper, conv5.speedup(0.1), conv5.sparse_s(0.5)))
    assert conv5.dense_s == conv5.flops / 4540e9
    assert math.isnan(published(KNL).sparse_s({"conv5.weight": 0.1}))
    with pytest.raises(UsageError, match="unknown bounds"):
        _ = conv5.worthwhile
    unknown = replace(published(XEON)["conv5"], flops=math.nan)
    assert all(math.isnan(v) for v in (unknown.upper, unknown.dense_s, unknown.sparse_s(0.1)))
    assert math.isnan(unknown.lower)


def test_rows_are_what_is_counted():
    model = resnet20()
    rows = roofline(model, torch.zeros(2, 3, 32, 32), XEON)
    work = {row.layer: row for row in count(model, torch.zeros(2, 3, 32, 32)).rows}
    assert len(rows.rows) == 20
    for row in rows.rows:
        assert row.flops == 2 * work[row.layer].macs
        assert row.weight_bytes == work[row.layer].bytes - (40 if row.layer == "linear" else 0)
    stem = rows["conv1"]
    assert stem.activation_bytes == 4 * 2 * (3 + 16) * 32 * 32
    assert rows["linear"].activation_bytes == 4 * 2 * (64 + 10)


def test_layers_that_run_twice_and_layers_chosen():
    shared = nn.Linear(4, 4, bias=False)
    row = roofline(nn.Sequential(shared, nn.ReLU(), shared), torch.zeros(1, 4), XEON)["0"]
    assert (row.flops, row.activation_bytes, row.weight_bytes) == (64, 64, 128)
    only = roofline(LeNet((1, 28, 28)), torch.zeros(1, 1, 28, 28), ATOM, layers=[nn.Conv2d])
    assert [row.layer for row in only.rows] == ["conv1", "conv2"]
    with pytest.raises(UsageError, match=r"got 'fc1'; expected one of conv1, conv2"):
        only["fc1"]


def test_a_network_runs_every_layer_the_faster_way():
    rows = published(XEON)
    sparse = rows.sparse_s({"conv5.weight": 0.09, "reduce.weight": 0.09})
    assert sparse == pytest.approx(rows["conv5"].dense_s / 3.7037 + rows["reduce"].dense_s, rel=1e-4)
    assert rows.sparse_s({}) == pytest.approx(rows.dense_s)
    assert rows.speedup({"conv5.weight": 0.9}) == pytest.approx(1.0)


def test_densities_are_counted():
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))
    model[0].weight.data[0] = 0
    assert densities(model, ["0.weight", "1.weight"]) == {"0.weight": 0.5, "1.weight": 1.0}


def test_groups_are_preferred_when_they_are_dense_enough_by_alpha():
    for x, group in ((0.1, 0.2), (0.3, 0.5)):
        assert prefers_groups(x, group, alpha=3.0) == (group < 3.0 * x)
        assert prefers_groups(x, group, alpha=3.0, group_alpha=2.0) == (group < 1.5 * x)


@pytest.mark.parametrize(
    "wrong", [{"alpha": 0.0}, {"flops_per_s": -1.0}, {"bytes_per_s": 0.0}, {"beta": 0.0}]
)
def test_machines_have_positive_numbers(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        replace(ATOM, **wrong)


@pytest.mark.parametrize("engine", [torch_csr, scipy_csr])
def test_engines_multiply(engine):
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(30, 20, generator=generator) * (torch.rand(30, 20, generator=generator) < 0.2)
    columns = torch.randn(20, 7, generator=generator)
    torch.testing.assert_close(engine(weights)(columns), weights @ columns)


def test_calibration_measures_and_is_bounded():
    machine = calibrate(limit_s=0.5)
    assert 1e8 < machine.flops_per_s < 1e14
    assert 1e8 < machine.bytes_per_s < 1e13
    assert 0.1 < machine.alpha < 1000
    assert "measured" in machine.source


def test_a_slower_engine_has_a_larger_alpha():
    def four_times(weights):
        product = torch_csr(weights)
        return lambda columns: (product(columns), product(columns), product(columns), product(columns))[0]

    assert calibrate(four_times, limit_s=0.5).alpha > 2 * calibrate(limit_s=0.5).alpha


def test_alpha_of_an_engine_that_convolves_directly():
    def once(filters, images):
        assert filters.shape == (256, 128, 3, 3)
        return lambda x: functional.conv2d(x, filters, padding=1)

    def four_times(filters, images):
        product = once(filters, images)
        return lambda x: (product(x), product(x), product(x), product(x))[0]

    assert (
        calibrate(convolution=four_times, limit_s=0.5).alpha
        > 2 * calibrate(convolution=once, limit_s=0.5).alpha
    )
    kernels = calibrate(
        convolution=lambda w, x: Conv(w, size=tuple(x.shape[2:]), padding=1), limit_s=0.5
    ).alpha
    assert 0.5 < kernels < 1000


def test_an_engine_that_computes_something_else_is_refused():
    with pytest.raises(UsageError, match="an engine whose product"):
        calibrate(convolution=lambda w, x: lambda y: functional.conv2d(y, w), limit_s=0.5)
    with pytest.raises(UsageError, match="engine and convolution; expected one of them"):
        calibrate(torch_csr, convolution=lambda w, x: lambda y: y, limit_s=0.5)
    with pytest.raises(UsageError, match="an engine whose product"):
        calibrate(lambda weights: lambda columns: columns, limit_s=0.5)
    with pytest.raises(UsageError, match="limit_s=0"):
        calibrate(limit_s=0)
