"""Workers in one process: modes that carry the same numbers train the same network, bit for bit."""

import pytest

from gracile.errors import UsageError
from gracile.train import Workers, classification, fit


@pytest.fixture
def trained(digits, mlp):
    def train(*methods):
        model = mlp()
        fit(
            model,
            digits,
            classification(),
            epochs=1,
            batch_size=32,
            ghost_batch=8,
            methods=methods,
            device="cpu",
            progress=False,
        )
        return model

    return train


@pytest.mark.parametrize(("one", "other"), [("gather", "exact"), ("base3", "ternary")])
def test_modes_that_carry_the_same_numbers_train_the_same_network(trained, same, one, other):
    same(trained(Workers(4, one, seed=1)), trained(Workers(4, other, seed=1)))


def test_single_precision_is_plain_training(trained, same):
    same(trained(Workers(4, "fp32")), trained())


@pytest.mark.parametrize("mode", ["exact", "four-bit", "ternary", "fp16"])
def test_the_seed_decides_and_every_mode_differs(trained, same, mode):
    first = trained(Workers(4, mode, seed=1))
    same(first, trained(Workers(4, mode, seed=1)))
    others = [trained()] if mode == "fp16" else [trained(), trained(Workers(4, mode, seed=2))]
    for other in others:
        with pytest.raises(AssertionError):
            same(first, other)


def test_as_many_parts_as_workers(trained):
    with pytest.raises(UsageError, match="ghost_batch"):
        trained(Workers(3))
