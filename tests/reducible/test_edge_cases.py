"""Hand-written networks: half of every block goes and the rest is right, or the line in the way is named."""

from __future__ import annotations

import pytest
from reducible.architecture import Architecture
from reducible.edge_cases import ARCHITECTURES
from reducible.trial import attempt

# What must be refused, and a part of the reason that must be given.
REFUSED = {
    "size in a closure": "edge_sizes.py:",
}


def test_names_are_told_apart() -> None:
    names = [a.name for a in ARCHITECTURES]
    assert len(set(names)) == len(names) >= 200


@pytest.mark.filterwarnings("ignore:LSTM with projections", "ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_halved_or_refused(architecture: Architecture) -> None:
    trial = attempt(architecture, strict=True)
    if architecture.name in REFUSED:
        assert trial.outcome == "refused"
        assert REFUSED[architecture.name] in trial.reason
    else:
        assert trial.outcome == "ok", trial.reason
