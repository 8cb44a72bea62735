"""Integers in the model's own code: followed back to attributes, derived, or refused with their line."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from gracile.graph import Cut, CutRefusedError, Graph, watch
from gracile.graph.settle import evaluate
from gracile.graph.sizes import Attribute, Book, Leaf, Length, Traced, expression_of, traced


class Config:
    def __init__(self, width: int, heads: int) -> None:
        self.width, self.heads, self.name = width, heads, "small"


class Net(nn.Module):
    """first -> between -> last, where `between` sees the module and what it was built with."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor], **attributes: Any) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.between = between
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, self.first(x)))


def seen(between: Callable[[Any, Tensor], Tensor], **attributes: Any) -> Graph:
    torch.manual_seed(0)
    return watch(Net(between, **attributes), torch.randn(3, 4))


def checked(m: Any, h: Tensor) -> Tensor:
    assert m.g * 2 == m.w
    return h.view(3, m.g, -1).flatten(1)


def half(graph: Graph) -> Cut:
    return graph.cut([unit for block in graph.blocks for unit in block.units[1::2]])


def line(function: Callable[..., Any]) -> str:
    return f"test_sizes.py:{function.__code__.co_firstlineno}"


def test_an_attribute_in_a_view_follows() -> None:
    cut = half(seen(lambda m, h: h.view(3, m.groups, -1).relu().flatten(1), groups=4))
    assert cut.attributes["groups"] == 2
    assert cut.attributes["first.out_features"] == cut.attributes["last.in_features"] == 4


@pytest.mark.parametrize(
    ("between", "attributes", "changed"),
    [
        (lambda m, h: h.view(3, m.groups, h.shape[1] // m.groups).flatten(1), {"groups": 4}, {"groups": 2}),
        (lambda m, h: h.view(3, m.groups, 8 // m.groups).flatten(1), {"groups": 4}, None),
        (lambda m, h: h.view(3, m.n // 2, 2).flatten(1), {"n": 8}, {"n": 4}),
        (lambda m, h: h.unflatten(1, (m.groups, -1)).flatten(1), {"groups": 4}, {"groups": 2}),
        (lambda m, h: torch.cat(h.split(m.parts, 1), 1), {"parts": [4, 4]}, {"parts": [2, 2]}),
        (lambda m, h: torch.cat(h.split([m.a, 2 * m.b], 1), 1), {"a": 4, "b": 2}, {"a": 2, "b": 1}),
        (lambda m, h: torch.cat([h[:, m.at :], h[:, : m.at]], 1), {"at": 4}, {"at": 2}),
        (lambda m, h: torch.cat([h[:, -m.at :], h[:, : -m.at]], 1), {"at": 4}, {"at": 2}),
        (lambda m, h: torch.cat([h.narrow(1, 0, m.at), h.narrow(1, m.at, m.at)], 1), {"at": 4}, {"at": 2}),
        (lambda m, h: h + torch.zeros(3, m.width), {"width": 8}, {"width": 4}),
        (lambda m, h: h + h.new_ones(m.width), {"width": 8}, {"width": 4}),
        (lambda m, h: h + torch.full((m.width,), 2.0), {"width": 8}, {"width": 4}),
        (lambda m, h: h * h.sum(1, keepdim=True).expand(3, m.width), {"width": 8}, {"width": 4}),
        (lambda m, h: h * h.sum(1, keepdim=True).repeat(1, m.width), {"width": 8}, {"width": 4}),
        (lambda m, h: h * torch.arange(2.0).repeat(m.times), {"times": 4}, {"times": 2}),
        (lambda m, h: functional.layer_norm(h, (m.width,)), {"width": 8}, {"width": 4}),
        (lambda m, h: functional.group_norm(h, m.groups), {"groups": 4}, {"groups": 2}),
        (lambda m, h: h if h.size(-1) == m.width else h.nothing(), {"width": 8}, {"width": 4}),
        (checked, {"g": 4, "w": 8}, {"g": 2, "w": 4}),
        (lambda m, h: h + functional.pad(h[:, : m.n], (m.n, 0)), {"n": 4}, {"n": 2}),
        (lambda m, h: h.view(3, m.spec.heads, -1).flatten(1), {"spec": Config(8, 4)}, {"spec.heads": 2}),
        (lambda m, h: h.view(h.shape[0], *m.shape).flatten(1), {"shape": (4, 2)}, {"shape": [2, 2]}),
    ],
)  # fmt: skip
def test_numbers_are_derived(
    between: Callable[[Any, Tensor], Tensor], attributes: dict[str, Any], changed: dict[str, Any] | None
) -> None:
    graph = seen(between, **attributes)
    if changed is None:
        with pytest.raises(CutRefusedError):
            half(graph)
        return
    own = {path: value for path, value in half(graph).attributes.items() if "features" not in path}
    assert own == changed


@pytest.mark.parametrize(
    "between",
    [
        lambda m, h: h.view(3, 4, 2).flatten(1),
        lambda m, h: torch.cat(h.split(4, 1), 1),
        lambda m, h: torch.cat([h[:, 4:], h[:, :4]], 1),
        lambda m, h: h + torch.zeros(3, 8),
        lambda m, h: h if h.shape[1] == 8 else h * 2,
        lambda m, h: functional.group_norm(h, 4),
        lambda m, h: h + functional.pad(h.narrow(1, 0, m.groups), (0, 4)),
        lambda m, h: h.view(3, int(str(m.groups)), -1).flatten(1),
    ],
)
def test_a_number_written_in_the_code_is_refused_with_its_line(
    between: Callable[[Any, Tensor], Tensor],
) -> None:
    graph = seen(between, groups=4)
    with pytest.raises(CutRefusedError, match="written in the code") as caught:
        half(graph)
    assert caught.value.source == line(between)
    assert caught.value.source in str(caught.value)
    assert caught.value.units
    assert set(caught.value.units) <= {unit for block in graph.blocks for unit in block.units[1::2]}


@pytest.mark.parametrize(
    "between",
    [
        lambda m, h: h.relu() if h.shape[1] < 6 else h * 2,
        lambda m, h: h.relu() if h.shape[1] >= 6 else h,
        lambda m, h: h.relu() if h.shape[1] % 4 else h * 2,
        lambda m, h: h.relu() if h.shape[1] == m.other else h,
    ],
)
def test_a_branch_must_come_out_as_before(between: Callable[[Any, Tensor], Tensor]) -> None:
    graph = seen(between, other=6)
    with pytest.raises(CutRefusedError, match="the same outcome") as caught:
        _ = [graph.cut(range(gone)) for gone in (1, 2, 3)]
    assert caught.value.source == line(between)


def test_a_number_that_may_stay_is_no_obstacle() -> None:
    graph = seen(lambda m, h: h.view(3, -1, 2).flatten(1))
    assert len(graph.units) == 4
    assert half(graph).tensors["first.weight"][0] == [0, 1, 4, 5]


def test_a_broadcast_that_meets_nothing_may_be_of_any_size() -> None:
    def between(m: Any, h: Tensor) -> Tensor:
        m.seen = h.mean(1)[:, None].expand(3, m.groups)  # asked for and never used
        return h.view(3, m.groups, -1).flatten(1)

    assert half(seen(between, groups=4)).attributes["groups"] == 2


def test_attention_as_a_function_has_its_sizes_read() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width, self.heads = 8, 4
            self.embed, self.last = nn.Linear(5, 8), nn.Linear(8, 2)
            self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            h = self.embed(x)
            mask = torch.zeros(h.shape[1] * self.heads, h.shape[0], h.shape[0])
            bias = torch.cat((self.q.bias, self.k.bias, self.v.bias))
            out, _ = functional.multi_head_attention_forward(
                h, h, h, self.width, self.heads, torch.empty(0), bias, None, None, False, 0.0,
                self.out.weight, self.out.bias, training=False, attn_mask=mask, use_separate_proj_weight=True,
                q_proj_weight=self.q.weight, k_proj_weight=self.k.weight, v_proj_weight=self.v.weight,
            )  # fmt: skip
            return self.last(out)

    graph = watch(Layer().eval(), torch.randn(3, 2, 5))
    chosen, tied = graph.balanced([unit for block in graph.blocks for unit in block.units[1::2]])
    cut = graph.cut(chosen)
    assert not tied
    assert (cut.attributes["width"], cut.attributes["heads"]) == (4, 2)
    assert len(cut.tensors["q.weight"][0]) == len(cut.tensors["embed.weight"][0]) == 4
    with pytest.raises(CutRefusedError, match="multi_head_attention_forward"):
        graph.cut(graph.blocks[0].units[:2])  # the width alone


def test_one_attribute_cannot_be_two_sizes() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = 8
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.a(x) + torch.zeros(self.width), self.b(x) + torch.zeros(self.width)
            return self.c(torch.cat([a, b], 1))

    graph = watch(Two(), torch.randn(3, 4))
    first, second = graph.blocks
    assert graph.cut([*first.units[:3], *second.units[:3]]).attributes["width"] == 5
    with pytest.raises(CutRefusedError) as caught:
        graph.cut([*first.units[:3], *second.units[:2]])
    assert set(caught.value.units) == {*first.units[:3], *second.units[:2]}


def test_chunks_must_stay_equal() -> None:
    graph = seen(lambda m, h: torch.cat([part * (i + 1) for i, part in enumerate(h.chunk(2, 1))], 1))
    first, second = graph.blocks
    assert len(graph.cut([first.units[0], second.units[3]]).tensors["first.weight"][0]) == 6
    with pytest.raises(CutRefusedError, match=r"chunk at test_sizes\.py"):
        graph.cut(first.units[:2])


def test_a_shared_object_is_set_once_and_its_other_paths_are_named() -> None:
    class Part(nn.Module):
        def __init__(self, config: Config) -> None:
            super().__init__()
            self.config = config
            self.layer = nn.Linear(config.width, config.width)

        def forward(self, x: Tensor) -> Tensor:
            return (
                self.layer(x).view(-1, self.config.heads, self.config.width // self.config.heads).flatten(1)
            )

    config = Config(8, 4)
    model = nn.Sequential(nn.Linear(4, 8), Part(config), Part(config), nn.Linear(8, 2))
    graph = watch(model, torch.randn(3, 4))
    cut = half(graph)
    assert cut.attributes["1.config.heads"] == 2
    assert cut.attributes["1.config.width"] == 4
    assert cut.shared["1.config.heads"] == ["2.config.heads"]
    assert not any(path.startswith("2.config") for path in cut.attributes)
    assert (type(config.heads), config.heads, config.name) == (int, 4, "small")


@pytest.mark.parametrize(
    "between",
    [
        lambda m, h: h / math.sqrt(h.shape[1]),
        lambda m, h: h * h.size(1) ** -0.5,
        lambda m, h: h * (1 / h.shape[-1]),
        lambda m, h: h / h.numel(),
        lambda m, h: h / h.shape[1],
        lambda m, h: h.mul(h.shape[1]),
    ],
)
def test_a_length_that_is_reckoned_with_is_pinned(between: Callable[[Any, Tensor], Tensor]) -> None:
    graph = seen(between)
    assert not graph.units
    pin = next(pin for pin in graph.pins() if pin.tensor == "first.bias")
    assert pin.why == "its length is used as a number"
    assert pin.source == line(between)


def test_an_attribute_that_is_reckoned_with_may_not_change() -> None:
    graph = seen(lambda m, h: h.view(3, m.heads, -1).flatten(1) / m.heads, heads=4)
    with pytest.raises(CutRefusedError, match="arithmetic"):
        half(graph)


def test_numbers_kept_by_the_model_are_plain_again() -> None:
    kept: list[Any] = []
    model = Net(lambda m, h: (kept.extend([h.shape, m.groups, h.shape[1] // m.groups]), h)[1], groups=4)
    watch(model, torch.randn(3, 4))
    shape, groups, ratio = kept
    assert (shape[1] + 1, groups * 2, ratio, groups == 4) == (9, 8, 2, True)
    assert type(groups + 1) is int
    assert pickle.loads(pickle.dumps(groups)) == 4  # noqa: S301
    assert type(pickle.loads(pickle.dumps(groups))) is int  # noqa: S301


@given(st.data())
def test_traced_arithmetic_is_arithmetic(data: st.DataObject) -> None:
    """Any chain of operations has the value plain ints have, and its expression evaluates to it."""
    book = Book()
    book.leaves.append(Leaf("n", None, 12, 12))
    value: int = traced(12, Attribute(0), book)
    plain = 12
    for _ in range(data.draw(st.integers(1, 6))):
        op = data.draw(st.sampled_from(["+", "-", "*", "//", "%"]))
        other, swap = data.draw(st.integers(1, 9)), data.draw(st.booleans())
        if swap and op in ("//", "%") and plain == 0:
            continue
        pair = (other, value) if swap else (value, other)
        reference = (other, plain) if swap else (plain, other)
        run = {
            "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b,
            "//": lambda a, b: a // b, "%": lambda a, b: a % b,
        }[op]  # fmt: skip
        value, plain = run(*pair), run(*reference)
    assert isinstance(value, Traced)
    assert int(value) == plain
    assert evaluate(expression_of(value), book.leaves, {}, lambda axis, size: size) == plain


def test_a_traced_number_passes_for_an_int() -> None:
    number = traced(6, Length(None, 6), Book())
    assert isinstance(number, int)
    assert hash(number) == hash(6)
    assert {6: "six"}[number] == "six"
    assert list(range(number)) == [0, 1, 2, 3, 4, 5]
    assert f"{number}" == "6"
    assert number / 4 == 1.5
    assert 3**number == 729
    assert -number == -6
    assert SimpleNamespace(n=number) == SimpleNamespace(n=6)
    assert torch.zeros(number).shape == (6,)
