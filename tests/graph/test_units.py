"""Units, blocks, groupings and cuts of small networks whose answer is known."""

from __future__ import annotations

import json

import msgspec
import pytest
import torch
from torch import Tensor, nn

from gracile.errors import RefusedError, UsageError
from gracile.graph import Cut, CutRefusedError, Graph, watch
from gracile.zoo import resnet20


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2)
    )


@pytest.fixture
def graph() -> Graph:
    return watch(mlp(), torch.randn(5, 4))


def test_a_unit_names_every_slice_that_goes_with_it(graph: Graph) -> None:
    unit = graph.units[2]
    assert (unit.id, unit.block) == (2, 0)
    assert {(s.tensor, s.dim, s.indices, s.role) for s in unit.slices} == {
        ("0.weight", 0, (2,), "out"),
        ("0.bias", 0, (2,), "out"),
        ("1.weight", 0, (2,), "out"),
        ("1.bias", 0, (2,), "out"),
        ("1.running_mean", 0, (2,), "out"),
        ("1.running_var", 0, (2,), "out"),
        ("3.weight", 1, (2,), "in"),
    }


def test_units_are_a_sequence(graph: Graph) -> None:
    assert len(graph.units) == 9
    assert [unit.id for unit in graph.units] == list(range(9))
    assert graph.units[-1].id == 8
    assert [unit.id for unit in graph.units[6:]] == [6, 7, 8]
    with pytest.raises(IndexError):
        graph.units[9]


def test_blocks_are_named_after_their_first_layer(graph: Graph) -> None:
    assert [(b.id, b.name, b.units) for b in graph.blocks] == [(0, "0", tuple(range(6))), (1, "3", (6, 7, 8))]


def test_the_grouping_has_one_group_for_every_unit(graph: Graph) -> None:
    tensors = dict(mlp().named_parameters())
    norms = graph.grouping().of(tensors).norms
    assert norms.shape == (9,)
    for unit in graph.units:
        squares = sum(
            tensors[part.tensor].select(part.dim, index).square().sum()
            for part in unit.slices
            if part.tensor in tensors
            for index in part.indices
        )
        torch.testing.assert_close(norms[unit.id], torch.sqrt(torch.as_tensor(squares)))


def test_a_grouping_of_some_blocks_leaves_the_others_empty(graph: Graph) -> None:
    tensors = dict(mlp().named_parameters())
    whole, part = graph.grouping().of(tensors), graph.grouping(blocks=[1]).of(tensors)
    assert part.sizes[:6].eq(0).all()
    torch.testing.assert_close(part.norms[6:], whole.norms[6:])


def test_a_cut_says_what_stays(graph: Graph) -> None:
    cut = graph.cut([0, 4, 7])
    assert cut.kept("0.weight", 0) == [1, 2, 3, 5]
    assert cut.kept("0.weight", 1) is None
    assert cut.tensors["3.weight"] == {0: [0, 2], 1: [1, 2, 3, 5]}
    assert cut.attributes == {
        "0.out_features": 4, "1.num_features": 4, "3.in_features": 4, "3.out_features": 2, "5.in_features": 2,
    }  # fmt: skip


def test_an_empty_cut_changes_nothing(graph: Graph) -> None:
    assert graph.cut([]) == Cut({}, {}, {})


def test_a_cut_is_plain_data(graph: Graph) -> None:
    cut = graph.cut([0, 7])
    text = msgspec.json.encode(cut)
    assert msgspec.json.decode(text, type=Cut) == cut
    assert all(type(i) is int for dims in cut.tensors.values() for kept in dims.values() for i in kept)
    assert json.loads(text)["attributes"]["0.out_features"] == 5


def test_a_dimension_is_never_emptied(graph: Graph) -> None:
    with pytest.raises(CutRefusedError, match="at least one index") as caught:
        graph.cut([6, 7, 8])
    assert isinstance(caught.value, RefusedError)
    assert caught.value.units == (6, 7, 8)


@pytest.mark.parametrize("number", [9, -1])
def test_units_that_do_not_exist_are_a_mistake(graph: Graph, number: int) -> None:
    with pytest.raises(UsageError, match="numbers from 0 to 8"):
        graph.cut([0, number])


def test_pinned_units_are_gone_from_the_copy_only(graph: Graph) -> None:
    fewer = graph.pin([0, 1], "wanted")
    assert (len(graph.units), len(fewer.units)) == (9, 7)
    assert fewer.steps is graph.steps
    pin = next(pin for pin in fewer.pins() if pin.tensor == "0.bias")
    assert (pin.held, pin.size, pin.why) == (2, 6, "wanted")
    assert fewer.cut([0]).kept("0.weight", 0) == [0, 1, 3, 4, 5]


def test_kept_indices_of_any_operand(graph: Graph) -> None:
    relu = next(step for step in graph.steps if step.op == "aten.relu.default")
    assert graph.kept(relu.outputs[0].labels[1], [1, 7]) == [0, 2, 3, 4, 5]
    assert graph.owners(relu.outputs[0].labels[1]).tolist() == [0, 1, 2, 3, 4, 5]
    assert graph.owners(relu.outputs[0].labels[0]) is None
    assert graph.kept(relu.outputs[0].labels[0], [1, 7]) is None


def test_blocks_of_a_concatenation_stay_apart() -> None:
    class Cat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(4, 5), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.cat([self.a(x), self.b(x)], 1))

    graph = watch(Cat(), torch.randn(2, 4))
    assert [(b.name, len(b.units)) for b in graph.blocks] == [("a", 3), ("b", 5)]
    assert graph.cut([0, 3]).tensors["c.weight"] == {1: [1, 2, 4, 5, 6, 7]}


def test_a_unit_with_several_indices_in_one_dimension() -> None:
    """A flattened image has height x width indices for every channel."""
    model = nn.Sequential(nn.Conv2d(1, 4, 2), nn.Flatten(), nn.Linear(16, 2))
    graph = watch(model, torch.randn(2, 1, 3, 3))
    parts = {part.tensor: part.indices for part in graph.units[1].slices}
    assert parts["2.weight"] == (4, 5, 6, 7)
    assert graph.grouping().of(dict(model.named_parameters())).sizes.tolist() == [4 + 1 + 8] * 4


def test_two_parts_of_one_layer_get_two_names() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.a, self.b = nn.Linear(4, 6), nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.both(x).chunk(2, 1)
            return self.a(a) + self.b(b)

    assert [b.name for b in watch(Halves(), torch.randn(2, 4)).blocks] == ["both", "both:2"]


def test_pins_give_shares() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return torch.cat([self.last(h), h[:, :2]], 1)

    graph = watch(Partly(), torch.randn(2, 4))
    assert len(graph.units) == 6
    pin = next(pin for pin in graph.pins() if pin.tensor == "last.weight" and pin.dim == 1)
    assert (pin.held, pin.size, pin.share, pin.why) == (2, 8, 0.25, "returned by the model")


def test_pins_name_the_line_of_the_network_and_not_of_a_library() -> None:
    sources = {
        pin.source.split(":")[0] for pin in watch(resnet20((3, 32, 32)), torch.zeros(1, 3, 32, 32)).pins()
    }
    assert sources <= {"resnet.py", ""}
    assert "resnet.py" in sources
