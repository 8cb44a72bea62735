"""Factorized networks on disk: bit-identical, in any order with cuts, and deaf to hostile records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gracile.errors import FileError
from gracile.graph import Cut
from gracile.reduce import Reduction, factorize, load, pairs, remove, save, smallest

X = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(1))
HALF = partial(smallest, fraction=0.5)


def fresh() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, bias=False),
        nn.Flatten(),
        nn.Linear(6 * 25, 10),
    )


def trained() -> nn.Module:
    torch.manual_seed(0)
    model = fresh()
    model(X)  # moves the running statistics
    return model.eval()


def factored() -> tuple[nn.Module, list[Cut | dict[str, int]]]:
    ranks = {"0": 3, "3": 4, "5": 2}
    return factorize(trained(), ranks), [ranks]


def factored_then_cut() -> tuple[nn.Module, list[Cut | dict[str, int]]]:
    model, steps = factored()
    reduction = remove(model, X, units=HALF)
    return reduction.model, [*steps, reduction.cut]


def cut_then_factored_twice() -> tuple[nn.Module, list[Cut | dict[str, int]]]:
    first: Reduction = remove(trained(), X, units=HALF)
    model = factorize(factorize(first.model, {"3": 2}), {"5": 2}, "svd")
    second = remove(model, X, units=HALF)
    last = {"5.0": 1}
    return factorize(second.model, last), [first.cut, {"3": 2}, {"5": 2}, second.cut, last]


MADE = [factored, factored_then_cut, cut_then_factored_twice]


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_bit_identical(make: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    model, steps = make()
    model.to(dtype)
    save(tmp_path, model, *steps)
    original = fresh()
    random = torch.get_rng_state()
    again = load(tmp_path, original).eval()
    assert torch.equal(random, torch.get_rng_state())
    assert str(again) == str(model)
    assert model.state_dict().keys() == again.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert tensor.dtype == again.state_dict()[name].dtype
    assert torch.equal(again(X.to(dtype)), model(X.to(dtype)))
    assert not pairs(original)
    again(X.to(dtype)).sum().backward()
    assert all(p.grad is not None for p in again.parameters())


def test_records_from_before_there_were_ranks_still_load(tmp_path: Path) -> None:
    model = trained()
    path = save(tmp_path, model)
    content = json.loads(path.read_text())
    del content["factored"]
    path.write_text(json.dumps(content))
    assert torch.equal(load(tmp_path, fresh()).eval()(X), model(X))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, steps = factored_then_cut()
    return save(tmp_path_factory.mktemp("models") / "net", model, *steps).parent


def _ranks(**ranks: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        content["factored"][0]["ranks"].update({name.replace("_", ""): r for name, r in ranks.items()})

    return change


HOSTILE: dict[str, Callable[[Any], None]] = {
    "nothing factored": lambda c: c.update(factored=[]),
    "left out": lambda c: c.pop("factored"),
    "twice": lambda c: c["factored"].append(c["factored"][0]),
    "a number": lambda c: c.update(factored=3),
    "null": lambda c: c.update(factored=None),
    "later": lambda c: c["factored"][0].update(after=1),
    "much later": lambda c: c["factored"][0].update(after=10**40),
    "too late": lambda c: c["factored"][0].update(after=2),
    "before the beginning": lambda c: c["factored"][0].update(after=-1),
    "never": lambda c: c["factored"][0].pop("after"),
    "one less": lambda c: c["factored"][0]["ranks"].pop("0"),
    "one more": lambda c: c["factored"].append({"after": 1, "ranks": {"0.0": 1}}),
    "too low a rank for the cut": _ranks(_3=1),
    "huge rank": _ranks(_3=10**12),
    "beyond all integers": _ranks(_3=10**40),
    "zero": _ranks(_3=0),
    "negative": _ranks(_3=-2),
    "text": _ranks(_3="4"),
    "fraction": _ranks(_3=4.5),
    "truth": _ranks(_3=True),
    "nothing": _ranks(_3=None),
    "nested": _ranks(_3=[4]),
    "no factorable layer": _ranks(_1=2),
    "no layer": _ranks(_9=2),
    "the root": lambda c: c["factored"][0]["ranks"].update({"": 2}),
    "a file": lambda c: c["factored"][0]["ranks"].update({"../../etc/passwd": 2}),
    "dunder": lambda c: c["factored"][0]["ranks"].update({"__class__": 2}),
    "a parameter": lambda c: c["factored"][0]["ranks"].update({"5.weight": 2}),
    "a long name": lambda c: c["factored"][0]["ranks"].update({"0" * 10**5: 2}),
    "one inside of another": lambda c: c["factored"][0]["ranks"].update({"5.0": 2}),
    "nested forever": lambda c: c["factored"].extend(
        {"after": 1, "ranks": {f"5{'.0' * n}": 1}} for n in range(1, 99)
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_records(case: str, saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "net")
    content = json.loads((folder / "structure.json").read_text())
    HOSTILE[case](content)
    (folder / "structure.json").write_text(json.dumps(content))
    model = fresh()
    before = str(model), {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(FileError):
        load(folder, model)
    assert str(model) == before[0]
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before[1].items())


def test_another_model_is_told_which_layer_it_lacks(saved: Path) -> None:
    with pytest.raises(FileError, match="factorizing"):
        load(saved, nn.Sequential(nn.ReLU()))
