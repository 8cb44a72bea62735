"""The table of widths, judged with networks whose layers take known times."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from gracile.cost import Table, layer_times, tabulate
from gracile.cost.table import grid, touched_layers
from gracile.graph import watch


def spin(seconds: float) -> None:
    """Use the processor for so long; what it does besides this does not count."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


class Timed(nn.Linear):
    """A layer that takes 20 µs for every pair of input and output, in steps of 8 outputs."""

    def forward(self, x: Tensor) -> Tensor:
        steps = -(-self.out_features // 8) * 8
        spin(2e-5 * steps * self.in_features)
        return super().forward(x)


def network(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Timed(a, b) for a, b in pairwise(sizes))).eval()


def narrowed(sizes: tuple[int, ...], block: int, width: int) -> nn.Module:
    changed = list(sizes)
    changed[block + 1] = width
    return network(*changed)


def test_layer_times_are_those_of_the_layers_and_count_every_moment_once() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Timed(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            spin(2e-3)
            x = self.inner(self.inner(x))  # 1.28 ms each
            spin(1e-3)
            return x

    found = layer_times({"net": Outer().eval()}, lambda net: net(torch.zeros(1, 8)), rounds=3)["net"]
    assert list(found) == ["", "inner"]
    assert found[""] == pytest.approx(3e-3, rel=0.25)
    assert found["inner"] == pytest.approx(2.56e-3, rel=0.25)


def test_hooks_are_gone_afterwards_and_an_error_passes() -> None:
    net = network(4, 4)
    layer_times({"net": net}, lambda n: n(torch.zeros(1, 4)), rounds=1)
    with pytest.raises(RuntimeError):
        layer_times({"net": net}, lambda n: n(torch.zeros(1, 5)), rounds=1)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())


def test_the_table_predicts_networks_in_which_several_blocks_are_narrower() -> None:
    sizes = (8, 16, 16, 8)
    net = network(*sizes)
    graph = watch(net, torch.zeros(1, 8))
    assert [len(b.units) for b in graph.blocks] == [16, 16]
    seen: list[tuple[int, int]] = []
    table = tabulate(
        graph,
        net,
        lambda block, width: narrowed(sizes, block, width),
        lambda n: n(torch.zeros(1, 8)),
        {0: [8, 16], 1: [4, 8, 16]},
        {0: "first", 1: "second"},
        limit_s=5,
        advance=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(0, 2), (1, 2), (2, 2)]
    assert table.full == {"first": 16, "second": 16}

    def truth(a: int, b: int) -> float:
        return 2e-5 * sum(n * -(-m // 8) * 8 for n, m in ((8, a), (a, b), (b, 8)))

    for a, b in ((16, 16), (8, 16), (16, 8), (8, 8), (8, 4)):
        assert table.seconds({"first": a, "second": b}) == pytest.approx(truth(a, b), rel=0.2)


def test_widths_that_save_nothing_are_left_out() -> None:
    """8 outputs cost as 5 do, so 5 is not worth while; 16 as 12."""
    half = {"a": 0.5}
    table = Table({"a": 1.0, "b": 1.0}, {"x": 16}, {"x": {5: half, 8: half, 12: {"a": 1.0}, 14: {"a": 1.1}}})
    assert table.worthwhile("x") == [8, 16]
    assert table.seconds({"x": 14}) == pytest.approx(2.1)


def test_blocks_that_cannot_be_narrowed_are_left_out() -> None:
    net = network(8, 16, 8)
    graph = watch(net, torch.zeros(1, 8))
    run = lambda n: n(torch.zeros(1, 8))  # noqa: E731
    wrong = nn.Sequential(nn.Linear(3, 3)).eval()
    for narrow in (lambda *_: None, lambda *_: wrong):
        table = tabulate(graph, net, narrow, run, {0: [8, 16]}, {0: "x"}, limit_s=1, rounds=1)
        assert table.worthwhile("x") == [16] if "x" in table.full else narrow(0, 8) is wrong


def test_time_runs_out_politely() -> None:
    """However little time there is, every block has a few widths."""
    sizes = (8, 64, 8)
    net = network(*sizes)
    graph = watch(net, torch.zeros(1, 8))
    table = tabulate(
        graph, net, lambda b, w: narrowed(sizes, b, w), lambda n: n(torch.zeros(1, 8)),
        {0: list(range(6, 65))}, {0: "x"}, limit_s=1e-6, rounds=1,
    )  # fmt: skip
    assert 2 <= len(table.ratios["x"]) <= 5


@pytest.mark.parametrize("points", [3, 5, 9, 24])
@pytest.mark.parametrize(("least", "full", "span"), [(1, 12, 64), (7, 64, 1), (52, 512, 1), (20, 200, 1)])
def test_grids_are_allowed_few_and_hold_multiples(points: int, least: int, full: int, span: int) -> None:
    allowed = list(range(least, full + 1))
    chosen = grid(allowed, span, points)
    assert set(chosen) < set(allowed)
    assert full not in chosen
    assert least in chosen
    assert len(chosen) <= max(points + 2, 3)
    if len(allowed) > points + 1:
        assert any(w * span % 8 == 0 for w in chosen)


def test_blocks_touch_the_layers_that_handle_their_units() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 2))
    assert touched_layers(watch(net, torch.zeros(1, 3))) == [{"0", "1", "2"}, {"2", "3"}]
