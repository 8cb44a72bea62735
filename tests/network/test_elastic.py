"""A rank is killed under torchrun on two machines, and training ends as if it had not been."""

from __future__ import annotations

import pytest
from network.bed import missing
from network.elastic import survive

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing() or "runs")]


def test_a_killed_rank_changes_nothing(tmp_path):
    found = survive(tmp_path, nodes=2, epochs=2, count=1, seed=3)
    assert found["identical"]
    assert found["same_standing"]
    assert len(found["resumed_s"]) == 1
