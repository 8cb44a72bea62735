"""Packed layers against torch in 64 bits, on random shapes, densities, threads and instruction sets."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from gracile.errors import ShapeError, UsageError
from gracile.runtime.kernels import Conv, Linear, Lstm, instruction_sets, native

SETS = instruction_sets() or (None,)
sets = st.sampled_from(SETS)
blocks = st.sampled_from([1, 16])
densities = st.sampled_from([0.0, 0.05, 0.3, 1.0])
seeds = st.integers(0, 2**31)


def sparse(shape: tuple[int, ...], density: float, generator: torch.Generator) -> Tensor:
    kept = torch.rand(shape, generator=generator) < density
    return torch.where(kept, torch.randn(shape, generator=generator), 0.0)


def close(ours: Tensor, exact: Tensor) -> bool:
    scale = float(exact.abs().max()) if exact.numel() else 0.0
    return bool(((ours.double() - exact).abs() <= 3e-6 * max(scale, 1e-6)).all())


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, object]:
    two = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (5, 5), (1, 3), (2, 4), (7, 7)]))
    size = draw(st.tuples(st.integers(1, 20), st.one_of(st.integers(1, 20), st.integers(21, 150))))
    stride, dilation = draw(two), draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    assume(all(s + 2 * p >= r for s, p, r in zip(size, padding, reach, strict=True)))
    return {
        "size": size,
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": draw(st.integers(1, 3)),
        "inputs": draw(st.integers(1, 8)),
        "outputs": draw(st.integers(1, 35)),
    }


@settings(deadline=None, max_examples=150)
@given(convolutions(), sets, blocks, densities, st.integers(0, 3), st.booleans(), st.booleans(), seeds)
def test_a_convolution_is_torchs_for_any_shape_and_any_number_of_threads(
    shape, instruction_set, block, density, batch, relu, added, seed
):
    generator = torch.Generator().manual_seed(seed)
    groups = shape.pop("groups")
    inputs, outputs = shape.pop("inputs"), shape.pop("outputs")
    weight = sparse((groups * outputs, inputs, *shape.pop("kernel")), density, generator)
    bias = torch.randn(groups * outputs, generator=generator)
    x = torch.randn(batch, groups * inputs, *shape["size"], generator=generator)
    layer = Conv(
        weight, bias, groups=groups, relu=relu, block=block, instruction_set=instruction_set, **shape
    )
    geometry = (shape["stride"], shape["padding"], shape["dilation"], groups)
    exact = functional.conv2d(x.double(), weight.double(), bias.double(), *geometry)
    add = torch.randn(exact.shape, generator=generator) if added else None
    exact = exact if add is None else exact + add
    exact = exact.relu() if relu else exact
    ours = layer(x, add)
    assert close(ours, exact), layer.tiling
    assert torch.equal(layer(x, add, threads=3), ours)
    if add is not None:
        assert torch.equal(layer(x, add, out=add), ours), "the sum overwritten by the result"
    assert torch.equal(layer.weight(), weight)
    assert layer.nonzeros == int(weight.count_nonzero())


@settings(deadline=None, max_examples=60)
@given(convolutions(), sets, blocks, st.integers(1, 9), st.integers(1, 9), seeds)
def test_every_tiling_computes_the_same(shape, instruction_set, block, rows, channels, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs, outputs = shape.pop("inputs"), shape.pop("outputs")
    shape.pop("groups")
    weight = sparse((outputs, inputs, *shape.pop("kernel")), 0.4, generator)
    x = torch.randn(2, inputs, *shape["size"], generator=generator)
    layer = Conv(weight, block=block, instruction_set=instruction_set, tiling=(rows, channels), **shape)
    geometry = (shape["stride"], shape["padding"], shape["dilation"])
    assert close(layer(x), functional.conv2d(x.double(), weight.double(), None, *geometry)), layer.tiling


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.integers(0, 70),
    sets,
    blocks,
    densities,
    st.booleans(),
    seeds,
)
def test_a_matrix_is_torchs_for_any_shape_and_any_number_of_threads(
    outputs, inputs, batch, instruction_set, block, density, relu, seed
):
    generator = torch.Generator().manual_seed(seed)
    weight = sparse((outputs, inputs), density, generator)
    bias = torch.randn(outputs, generator=generator)
    x = torch.randn(batch, inputs, generator=generator)
    add = torch.randn(batch, outputs, generator=generator)
    layer = Linear(weight, bias, relu=relu, block=block, instruction_set=instruction_set)
    exact = functional.linear(x.double(), weight.double(), bias.double())
    for added in (None, add):
        wanted = exact if added is None else exact + added
        ours = layer(x, added)
        assert close(ours, wanted.relu() if relu else wanted)
        assert torch.equal(layer(x, added, threads=3), ours)
    assert torch.equal(layer.weight(), weight)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("inputs", [1, 7, 8, 31, 32, 33, 650])
def test_few_inputs_are_looked_up_in_windows(instruction_set, inputs):
    """Rows of very different lengths, whose windows stand at the first and at the last column."""
    generator = torch.Generator().manual_seed(inputs)
    weight = torch.stack([sparse((inputs,), density, generator) for density in torch.linspace(0, 1, 53)])
    weight[1, 0] = weight[2, -1] = 1.0
    layer = Linear(weight, instruction_set=instruction_set)
    x = torch.randn(7, inputs, generator=generator)
    exact = x.double() @ weight.double().T
    for batch in range(1, 8):
        assert close(layer(x[:batch]), exact[:batch])
    if inputs == 650:
        assert ("windows" in layer.tiling) == (instruction_set in ("avx2", "avx512"))
    almost_empty = Linear(sparse((64, 650), 0.001, generator), instruction_set=instruction_set)
    assert "windows" not in almost_empty.tiling


def test_more_columns_than_sixteen_bits_can_number():
    generator = torch.Generator().manual_seed(0)
    weight = sparse((20, 70_000), 0.001, generator)
    x = torch.randn(3, 70_000, generator=generator)
    for batch in (1, 3):
        exact = x[:batch].double() @ weight.double().T
        assert close(Linear(weight)(x[:batch]), exact)


@pytest.mark.parametrize("block", [1, 16])
def test_one_nonzero_and_empty_filters(block):
    weight = torch.zeros(40, 3, 3, 3)
    weight[17, 1, 0, 2] = 2.0
    x = torch.randn(2, 3, 9, 9)
    layer = Conv(weight, size=(9, 9), padding=1, block=block)
    assert torch.equal(layer(x), functional.conv2d(x, weight, padding=1))


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("block", [1, 16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_go_through_as_in_a_dense_layer(instruction_set, block, value):
    generator = torch.Generator().manual_seed(0)
    weight = sparse((20, 4, 3, 3), 0.2, generator)
    x = torch.randn(2, 4, 7, 7, generator=generator)
    x[1, 2, 3, 3] = value
    layer = Conv(weight, size=(7, 7), padding=1, relu=True, block=block, instruction_set=instruction_set)
    expected = functional.conv2d(x, weight, padding=1).relu()
    assert torch.allclose(layer(x), expected, equal_nan=True, atol=1e-5)
    add = torch.randn(expected.shape, generator=generator)
    expected = (functional.conv2d(x, weight, padding=1) + add).relu()
    assert torch.allclose(layer(x, add, out=add), expected, equal_nan=True, atol=1e-5)
    matrix = sparse((20, 30), 0.2, generator)
    rows = torch.randn(5, 30, generator=generator)
    rows[2, 7] = value
    for batch in (rows, rows[2:3].contiguous()):
        ours = Linear(matrix, block=block, instruction_set=instruction_set)(batch)
        assert torch.allclose(ours, functional.linear(batch, matrix), equal_nan=True, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 6),
    st.integers(0, 5),
    st.integers(1, 30),
    st.integers(1, 40),
    sets,
    blocks,
    densities,
    seeds,
)
def test_an_lstm_is_torchs(steps, batch, inputs, hidden, instruction_set, block, density, seed):
    generator = torch.Generator().manual_seed(seed)
    w_ih = sparse((4 * hidden, inputs), density, generator)
    w_hh = sparse((4 * hidden, hidden), density, generator)
    biases = [torch.randn(4 * hidden, generator=generator) for _ in range(2)]
    x = torch.randn(steps, batch, inputs, generator=generator)
    h, c = (torch.randn(batch, hidden, generator=generator) for _ in range(2))
    layer = Lstm(w_ih, w_hh, *biases, block=block, instruction_set=instruction_set)
    before = h.clone(), c.clone()
    y, h_end, c_end = layer(x, h, c)
    assert torch.equal(before[0], h)
    assert torch.equal(before[1], c)
    assert all(torch.equal(a, b) for a, b in zip(layer(x, h, c, threads=2), (y, h_end, c_end), strict=True))
    expected: list[Tensor] = []
    hd, cd = h.double(), c.double()
    for step in x.double():
        gates = step @ w_ih.double().T + hd @ w_hh.double().T + biases[0].double() + biases[1].double()
        i, f, g, o = gates.chunk(4, 1)
        cd = f.sigmoid() * cd + i.sigmoid() * g.tanh()
        hd = o.sigmoid() * cd.tanh()
        expected.append(hd)
    assert all((a.double() - b).abs().max() < 1e-5 for a, b in zip(y, expected, strict=True) if batch)
    if steps and batch:
        assert (c_end.double() - cd).abs().max() < 1e-5
        assert torch.equal(h_end, y[-1])


def test_an_lstm_saturates_and_passes_nan():
    torch.manual_seed(0)
    dense = nn.LSTM(5, 6)
    layer = Lstm(dense.weight_ih_l0, dense.weight_hh_l0, dense.bias_ih_l0, dense.bias_hh_l0)
    for scale in (1e3, 1e30, float("nan"), float("inf")):
        x = scale * torch.randn(4, 2, 5).sign()
        with torch.no_grad():
            expected = dense(x)[0]
        ours = layer(x, torch.zeros(2, 6), torch.zeros(2, 6))[0]
        assert torch.allclose(ours, expected, atol=1e-5, equal_nan=True)


def _conv(**changes: object) -> Conv:
    arguments = {"weight": torch.ones(4, 2, 3, 3), "size": (8, 8)} | changes
    return Conv(arguments.pop("weight"), **arguments)


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"weight": torch.ones(4, 2, 3)}, ShapeError, "4 dimensions"),
        ({"weight": torch.ones(4, 2, 3, 3).double()}, UsageError, "float32"),
        ({"weight": torch.full((4, 2, 3, 3), float("nan"))}, UsageError, "finite"),
        ({"bias": torch.ones(3)}, ShapeError, "bias of shape (3,)"),
        ({"size": (2, 8)}, ShapeError, "fits the padded map"),
        ({"groups": 3}, ShapeError, "groups"),
        ({"groups": 0}, ShapeError, "groups"),
        ({"stride": 0}, ShapeError, "stride"),
        ({"padding": -1}, ShapeError, "padding"),
        ({"dilation": (1, 0)}, ShapeError, "dilation"),
        ({"weight": torch.ones(0, 2, 3, 3)}, ShapeError, "weight"),
        ({"block": 8}, UsageError, "1 or 16"),
        ({"instruction_set": "altivec"}, UsageError, "altivec"),
    ],
)
def test_what_cannot_be_packed_is_told(changes, error, told):
    with pytest.raises(error) as caught:
        _conv(**changes)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("x", "arguments", "told"),
    [
        (torch.ones(1, 2, 8, 9), {}, "(batch, 2, 8, 8)"),
        (torch.ones(2, 8, 8), {}, "(batch, 2, 8, 8)"),
        (torch.ones(1, 2, 8, 8).double(), {}, "float32"),
        (torch.ones(1, 8, 8, 2).permute(0, 3, 1, 2), {}, "contiguous"),
        (torch.ones(1, 2, 8, 8), {"add": torch.ones(1, 4, 6, 5)}, "(1, 4, 6, 6)"),
        (torch.ones(1, 2, 8, 8), {"out": torch.ones(2, 4, 6, 6)}, "(1, 4, 6, 6)"),
        (torch.ones(1, 2, 8, 8), {"threads": 0}, "threads=0"),
    ],
)
def test_what_cannot_be_run_is_told(x, arguments, told):
    with pytest.raises((ShapeError, UsageError)) as caught:
        _conv()(x, **arguments)
    assert told in str(caught.value)


def test_a_result_cannot_overwrite_its_input():
    layer = Conv(torch.ones(2, 2, 1, 1), size=(4, 4))
    x = torch.ones(1, 2, 4, 4)
    with pytest.raises(UsageError, match="another tensor"):
        layer(x, out=x)


def test_matrices_and_lstms_refuse_too():
    with pytest.raises(ShapeError, match="rows and columns"):
        Linear(torch.ones(0, 3))
    with pytest.raises(ShapeError, match=r"\(\.\.\., 3\)"):
        Linear(torch.ones(2, 3))(torch.ones(2, 4))
    with pytest.raises(ShapeError, match="4 hidden"):
        Lstm(torch.ones(8, 3), torch.ones(8, 3))
    layer = Lstm(torch.ones(8, 3), torch.ones(8, 2))
    with pytest.raises(ShapeError, match="running a sparse LSTM"):
        layer(torch.ones(4, 1, 3), torch.zeros(2, 2), torch.zeros(2, 2))
    with pytest.raises(ShapeError, match="float32"):
        layer(torch.ones(4, 1, 3), torch.zeros(1, 2).double(), torch.zeros(1, 2).double())


@pytest.mark.skipif(not instruction_sets(), reason="installed without a compiler")
def test_zeros_are_not_stored():
    generator = torch.Generator().manual_seed(0)
    weight = sparse((64, 64, 3, 3), 0.1, generator)
    layer = Conv(weight, size=(14, 14), padding=1)
    assert layer.nbytes < 0.35 * weight.nbytes
    matrix = sparse((512, 512), 0.1, generator)
    assert Linear(matrix).nbytes < 0.4 * matrix.nbytes  # once for few inputs, once for many


def test_without_compiled_kernels_torch_computes_and_it_is_said_once(monkeypatch):
    monkeypatch.setattr(native, "_native", None)
    native._tell.cache_clear()
    weight = torch.randn(4, 2, 3, 3)
    with pytest.warns(UserWarning, match="without a compiler"):
        layer = Conv(weight, size=(8, 8), relu=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix = Linear(torch.randn(8, 4))
        lstm = Lstm(torch.randn(8, 3), torch.randn(8, 2))
    x = torch.randn(2, 2, 8, 8)
    assert torch.allclose(layer(x), functional.conv2d(x, weight).relu())
    assert matrix(torch.ones(4)).shape == (8,)
    assert lstm(torch.ones(3, 1, 3), torch.zeros(1, 2), torch.zeros(1, 2))[0].shape == (3, 1, 2)
    assert (layer.instruction_set, layer.tiling) == ("torch", "torch")
    native._tell.cache_clear()


@st.composite
def windows(draw):
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    size = (kernel[0] + draw(st.integers(0, 15)), kernel[1] + draw(st.integers(0, 70)))
    stride = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding = (draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2)))
    return size, kernel, stride, padding, draw(st.booleans())


@pytest.mark.skipif(not instruction_sets(), reason="installed without a compiler")
@settings(deadline=None, max_examples=200)
@given(windows(), sets, st.booleans(), st.integers(1, 3), seeds)
def test_the_largest_of_each_window_is_torchs(shape, instruction_set, odd, threads, seed):
    size, kernel, stride, padding, ceil_mode = shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, *size, generator=generator)
    if odd:
        for value in (float("nan"), float("inf"), float("-inf")):
            x[torch.rand(x.shape, generator=generator) < 0.03] = value
    wanted = functional.max_pool2d(x, kernel, stride, padding, 1, ceil_mode)
    y = torch.full_like(wanted, 7.0)
    pool = native.pooling(size, kernel, stride, padding, wanted.shape[-2:], instruction_set)
    pool.run(x.data_ptr(), y.data_ptr(), 6, threads)
    assert torch.equal(y.isnan(), wanted.isnan())
    assert torch.equal(y.nan_to_num(), wanted.nan_to_num())


@pytest.mark.skipif(not instruction_sets(), reason="installed without a compiler")
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "out"),
    [
        ((0, 1), (1, 1), (0, 0), (3, 3)),
        ((2, 2), (1, 1), (2, 0), (3, 3)),
        ((2, 2), (2, 2), (0, 0), (3, 3)),
    ],
)
def test_windows_that_miss_the_map_are_refused(kernel, stride, padding, out):
    with pytest.raises(ValueError, match="does not meet"):
        native.pooling((4, 4), kernel, stride, padding, out)


@pytest.mark.skipif(not instruction_sets(), reason="installed without a compiler")
@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 40), sets, st.booleans(), seeds)
def test_the_mean_of_each_plane_is_torchs(planes, height, width, instruction_set, odd, seed):
    x = torch.randn(1, planes, height, width, generator=torch.Generator().manual_seed(seed))
    if odd:
        x[0, 0, height // 2, width // 2] = float("nan")
    out = torch.full((1, planes, 1, 1), 7.0)
    native.mean(x, out, instruction_set)()
    wanted = x.double().mean((-2, -1), keepdim=True).float()
    assert torch.allclose(out, wanted, atol=1e-6, equal_nan=True)
