"""The judge must not be fooled: wrong cuts, vacuous checks, operators that count, models that misbehave."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gracile.errors import RefusedError
from gracile.graph import Cut, Graph, watch
from gracile.reduce import UnprovenError, Verdict, random_units, remove, verify
from gracile.reduce.probes import fresh, jitter_, leaves, twice
from gracile.reduce.replay import Replay, Survivors
from gracile.reduce.verify import difference


def chain(*middle: nn.Module) -> tuple[nn.Module, Graph, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), *middle, nn.Linear(8, 3)).double()
    x = torch.randn(5, 4).double()
    return model, watch(model, x), x


def check(model: nn.Module, graph: Graph, x: Tensor, units: list[int], cut: Cut | None = None) -> Verdict:
    return verify(model, graph, units, graph.cut(units) if cut is None else cut, ((x,), {}))


def test_right_cut_is_proven() -> None:
    model, graph, x = chain(nn.ReLU())
    verdict = check(model, graph, x, [1, 2])
    assert verdict.kind == "exact"
    assert verdict.error < 1e-14
    assert verdict.moved > 0.01


def shift(indices: list[int]) -> list[int]:
    return [i - 1 if i > 2 else i for i in indices]


WRONG = {
    "other rows than columns": Cut({"0.weight": {0: [0, 1]}, "0.bias": {0: [0, 1]}, "2.weight": {1: [0, 2]}}),
    "bias of another unit": Cut({"0.weight": {0: [0, 1]}, "0.bias": {0: [0, 2]}, "2.weight": {1: [0, 1]}}),
    "consumer forgotten": Cut({"0.weight": {0: [0, 1]}, "0.bias": {0: [0, 1]}}),
    "output cut": Cut({"2.weight": {0: [0]}, "2.bias": {0: [0]}}),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_cuts_are_caught(case: str) -> None:
    model, graph, x = chain(nn.Sigmoid())
    with pytest.raises(UnprovenError):
        check(model, graph, x, [2, 3, 4, 5, 6, 7], WRONG[case])


class Buffered(nn.Module):
    """Batch norm statistics of the wrong channels would be seen only if they differ."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.bn(self.a(x)).relu())


def test_fresh_statistics_do_not_hide_a_mistake() -> None:
    model = Buffered().double()
    x = torch.randn(5, 4).double()
    graph = watch(model, x)
    right = graph.cut([1])
    assert check(model, graph, x, [1]).error < 1e-12
    wrong = Cut({**right.tensors, "bn.running_mean": {0: [0, 1, 2, 3, 4]}}, right.attributes)
    with pytest.raises(UnprovenError):
        check(model, graph, x, [1], wrong)


def test_zero_initialized_head_is_no_excuse() -> None:
    model, graph, x = chain(nn.ReLU())
    with torch.no_grad():
        model[2].weight.zero_()
        model[0].bias.zero_()
    assert check(model, graph, x, [1]).moved > 0.01
    with pytest.raises(UnprovenError):
        check(model, graph, x, [2, 3, 4, 5, 6, 7], WRONG["other rows than columns"])


class Blind(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) * 0


def test_output_that_depends_on_nothing_proves_nothing() -> None:
    model, x = Blind().double(), torch.randn(5, 4).double()
    graph = watch(model, x)
    with pytest.raises(UnprovenError, match="nothing is proven"):
        check(model, graph, x, [1])


class Norms(nn.Module):
    """One counting operator at a time, between two layers."""

    def __init__(self, count: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.count = count
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.count(self.a(x)))


COUNTING = {
    "softmax": lambda h: h.softmax(-1),
    "log_softmax": lambda h: h.log_softmax(-1),
    "mean": lambda h: h - h.mean(-1, keepdim=True),
    "std": lambda h: h / h.std(-1, keepdim=True),
    "var": lambda h: h / h.var(-1, keepdim=True),
    "max": lambda h: h - h.amax(-1, keepdim=True),
    "min": lambda h: h - h.min(-1, keepdim=True).values,
    "logsumexp": lambda h: h - h.logsumexp(-1, keepdim=True),
    "layer norm": lambda h: nn.functional.layer_norm(h, (h.shape[-1],)),
    "rms": lambda h: nn.functional.rms_norm(h, (h.shape[-1],)),
    "product": lambda h: h * h.exp().prod(-1, keepdim=True),
    "fullest": lambda h: h - h.mean(),
}


@pytest.mark.parametrize("case", COUNTING)
def test_counting_operators_see_kept_indices(case: str) -> None:
    """Against the closed form: the function of a narrower network, computed by slicing weights by hand."""
    torch.manual_seed(0)
    model, x = Norms(COUNTING[case]).double(), torch.randn(5, 4).double()
    graph = watch(model, x)
    units = [1, 4, 6]
    if len(graph.units) == 0:
        pytest.skip(reason=f"{case}: the axis is pinned, nothing can be removed")
    verdict = check(model, graph, x, units)
    assert verdict.kind == "renormalized"
    assert verdict.error < 1e-12
    keep = [0, 2, 3, 5, 7]
    h = model.count(nn.functional.linear(x, model.a.weight[keep], model.a.bias[keep]))
    want = nn.functional.linear(h, model.b.weight[:, keep], model.b.bias).detach()
    with torch.no_grad():
        for tensor in (model.a.weight, model.a.bias, model.b.weight.T):
            tensor[units] = 0
        with Replay(graph, Survivors(graph, units)) as replay:
            found = model(x)
    assert replay.counted
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize("case", ["sum", "norm"])
def test_sums_of_zeros_are_exact(case: str) -> None:
    """An operator that counts but does not mind zeros does not make the verdict weaker."""
    torch.manual_seed(0)
    count = {
        "sum": lambda h: h * h.sum(-1, keepdim=True),
        "norm": lambda h: h / h.norm(dim=-1, keepdim=True),
    }[case]
    model, x = Norms(count).double(), torch.randn(5, 4).double()
    graph = watch(model, x)
    assert len(graph.units) == 8
    assert check(model, graph, x, [1, 4, 6]).kind == "exact"


@pytest.mark.parametrize("groups", [[0, 1, 2, 3], [0, 1, 6, 7], [0, 4, 8, 12]])
def test_group_norm_loses_groups_or_members(groups: list[int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 16, 1), nn.GroupNorm(4, 16), nn.Conv1d(16, 2, 1)).double()
    x = torch.randn(2, 3, 5).double()
    graph = watch(model, x)
    units = [
        u.id
        for u in graph.units
        if any(s.tensor == "0.weight" and s.dim == 0 and set(s.indices) <= set(groups) for s in u.slices)
    ]
    if units:
        verdict = check(model, graph, x, units)
        assert verdict.error < 1e-12
    else:  # a unit is a whole group, or the same member of every group
        assert all(len(s.indices) == 4 for u in graph.units for s in u.slices if s.tensor == "0.weight")


def test_difference() -> None:
    a, nan, inf = torch.tensor([1.0, -4.0]), float("nan"), float("inf")
    assert difference([a], [a]) == 0
    assert difference([a], [a + torch.tensor([0.0, 0.4])]) == pytest.approx(0.1)
    assert difference([a], [a, a]) == inf
    assert difference([a], [a[:1]]) == inf
    assert difference([a], [a.double()]) == inf
    assert difference([a], [torch.tensor([1.0, nan])]) == inf
    assert difference([torch.tensor([1.0, nan])], [torch.tensor([1.0, nan])]) == 0
    assert difference([torch.tensor([1.0, inf])], [torch.tensor([1.0, inf])]) == 0
    assert difference([torch.tensor([1.0, inf])], [torch.tensor([1.0, -inf])]) == inf
    assert difference([torch.tensor([1, 2])], [torch.tensor([1, 3])]) == inf
    assert difference([torch.zeros(2)], [torch.full((2,), 0.5)]) == 0.5


def test_fresh_inputs_keep_their_kind() -> None:
    mask = torch.tensor([0.0, -math.inf])
    tokens, flags, image = torch.arange(10).reshape(2, 5), torch.tensor([True, False]), torch.rand(2, 3, 4)
    args, named = fresh(((tokens, [image, flags]), {"mask": mask, "n": 3}), seed=0)
    assert torch.equal(args[0].flatten().sort().values, tokens.flatten())
    assert not torch.equal(args[0], tokens)
    assert args[1][0].shape == image.shape
    assert not torch.equal(args[1][0], image)
    assert torch.equal(args[1][1], flags)
    assert torch.equal(named["mask"], mask)
    assert named["n"] == 3
    constant = fresh(((torch.zeros(2, 3),), {}), seed=0)[0][0]
    assert constant.std() > 0
    doubled = twice(((image, tokens), {}), seed=0)
    assert doubled is not None
    assert [len(x) for x in leaves(list(doubled))] == [4, 4]
    assert twice(((image, torch.zeros(3)), {}), seed=0) is None
    assert twice(((image, torch.tensor(3.0)), {}), seed=0) is None


def test_jitter_leaves_nothing_constant() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.LayerNorm(4)).double()
    nn.init.zeros_(model[0].weight)
    jitter_(model, seed=0)
    assert all(p.std() > 1e-3 for p in model.parameters())
    assert model[1].running_mean.std() > 0
    assert (model[1].running_var > 0).all()


class Constant(nn.Module):
    """A huge constant beside the values sets the scale of every relative error."""

    def forward(self, y: Tensor) -> Tensor:
        return torch.cat([y, torch.full((len(y), 1), -1e9, dtype=y.dtype)], 1)


def test_a_huge_constant_output_hides_no_mistake() -> None:
    model, _, x = chain(nn.Sigmoid())
    model.append(Constant())
    graph = watch(model, x)
    assert check(model, graph, x, [2, 3, 4, 5, 6, 7]).error < 1e-14
    for wrong in ("other rows than columns", "bias of another unit"):
        with pytest.raises(UnprovenError):
            check(model, graph, x, [2, 3, 4, 5, 6, 7], WRONG[wrong])


class Rounded(nn.Module):
    """Makes much of the last digit."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 256), nn.Linear(256, 64)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(1e4 * self.b(self.a(x)))


def test_rounding_is_no_mistake() -> None:
    torch.manual_seed(0)
    reduction = remove(Rounded(), torch.randn(64, 6), units=half)
    if not reduction.verdict.error:
        pytest.skip("this machine adds up the shorter sums in the same order")
    assert reduction.verdict.error > 1e-4  # the tolerance of float32
    assert reduction.model.get_parameter("a.weight").shape == (128, 6)


class SlightlyCounted(nn.Module):
    """Depends on its width so little that rounding could be blamed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h * (1 + 3e-6 * len(h[0])))


def test_a_slight_mistake_is_no_rounding() -> None:
    torch.manual_seed(0)
    with pytest.raises(RefusedError, match="a relative error of"):
        remove(SlightlyCounted(), torch.randn(4, 6), units=half)


def half(graph: Graph, model: nn.Module) -> list[int]:
    return random_units(graph, model, 0.5)
