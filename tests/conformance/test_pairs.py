"""Every method together with every other: it trains, stays finite, and resumes to the bit.

The rows are those of test_methods.py, so a new method is in all its pairs without a line here.
"""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from test_methods import ROWS, Interrupt, bits, network, train
from torch import nn

from gracile.reduce import factorize

PAIRS = list(combinations(ROWS, 2))


def common(zeros: bool = True) -> nn.Module:
    """A network that has what each of the methods works on: two dense layers, and a factored one."""
    torch.manual_seed(5)
    return factorize(nn.Sequential(*network(zeros), nn.ReLU(), nn.Linear(10, 10)), {"5": 10})


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0].name}+{pair[1].name}")
@pytest.mark.filterwarnings("ignore:the filters of .* have collapsed")
def test_two_methods_train_together_and_resume_exactly(pair, tmp_path):
    whole = common()
    train(whole, *(row.active() for row in pair), Interrupt(-1))
    assert all(tensor.isfinite().all() for tensor in whole.state_dict().values())
    with pytest.raises(KeyboardInterrupt):
        train(common(), *(row.active() for row in pair), Interrupt(17), folder=tmp_path)
    resumed = common(zeros=False)
    train(resumed, *(row.active() for row in pair), Interrupt(-1), folder=tmp_path)
    assert bits(whole) == bits(resumed)


def test_all_methods_at_strength_zero_are_plain_training():
    plain, together = common(zeros=False), common(zeros=False)
    train(plain)
    train(together, *(row.neutral() for row in ROWS))
    assert bits(plain) == bits(together)
