"""The study judges others, so it is judged here: planted mistakes, hangs and deaths must be found."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from reducible.architecture import Architecture, Built
from reducible.check import against_masked, masked
from reducible.readying import fresh, jitter, ready
from reducible.trial import Trial, attempt
from torch import Tensor, nn

from gracile.graph import Cut
from gracile.reduce import apply_
from reducible import ledger, study, table


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.n(self.a(x)).relu()).mean((2, 3))


@torch.no_grad()
def test_scales_are_jittered_a_little_and_zeros_fully():
    model = nn.Module()
    model.gain = nn.Parameter(torch.ones(2000, 1, 1, 1))
    model.unlearned = nn.Parameter(torch.zeros(200, 10))
    before = torch.randn(20, 10)
    model.learned = nn.Parameter(before.clone())
    jitter(model, 0)
    assert 0.08 < float(model.gain.std()) < 0.12
    assert abs(float(model.gain.mean()) - 1) < 0.02
    assert 0.28 < float(model.unlearned.std()) < 0.35  # one over the root of ten
    assert torch.equal(model.learned, before)


class Layered(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4))


class Deeper(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(*(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)))


def architecture(make: type[nn.Module], *shape: int) -> Architecture:
    def build(batch: int) -> Built:
        torch.manual_seed(0)
        return Built(make(), (torch.randn(batch, *shape),))

    return Architecture(make.__name__, "test", "test", build)


SMALL = architecture(Small, 3, 8, 8)
CUT = Cut(
    {
        **{f"n.{name}": {0: [0, 2, 5]} for name in ("weight", "bias", "running_mean", "running_var")},
        "a.weight": {0: [0, 2, 5]},
        "a.bias": {0: [0, 2, 5]},
        "b.weight": {1: [0, 2, 5]},
    }
)


def reduced(cut: Cut) -> tuple[Built, nn.Module]:
    built, again = SMALL.build(2), SMALL.build(2)
    ready(built, 0)
    ready(again, 0)
    apply_(again.model, cut)
    return built, again.model


def test_a_sound_network_is_reduced() -> None:
    trial = attempt(SMALL)
    assert (trial.outcome, trial.kind, trial.check) == ("ok", "exact", "masked")
    assert (trial.units, trial.removed, trial.blocks, trial.reached, trial.rounds) == (8, 4, 1, 1, 1)
    assert trial.parameters == 8 * 28 + 16 + 4 * 73
    assert trial.left == pytest.approx((4 * 28 + 8 + 4 * 37) / trial.parameters)
    assert trial.check_error is not None
    assert trial.check_error <= 1e-5
    assert trial.changed is not None
    assert trial.changed > 1e-3


def test_a_renormalized_network_is_checked_strictly() -> None:
    trial = attempt(architecture(Layered, 6), strict=True)
    assert (trial.outcome, trial.kind, trial.check) == ("ok", "renormalized", "")
    assert trial.left_keep is None  # a norm is on its only path
    assert any("norms='keep'" in refusal for refusal in trial.refusals)


def test_a_network_with_a_path_without_a_norm_is_checked_strictly() -> None:
    trial = attempt(architecture(Deeper, 6), strict=True)
    assert (trial.outcome, trial.kind, trial.check) == ("ok", "renormalized", "kept")
    assert trial.left is not None
    assert trial.left_keep is not None
    assert trial.left < trial.left_keep < 1


def test_a_planted_mistake_is_found() -> None:
    built, right = reduced(CUT)
    assert against_masked(built.model, right, CUT.tensors, built)[0] <= 1e-5
    other = Cut({**CUT.tensors, "b.weight": {1: [0, 2, 4]}})
    _, wrong = reduced(other)
    assert min(against_masked(built.model, wrong, CUT.tensors, built)) > 1e-2


def test_masking_zeroes_exactly_what_is_gone() -> None:
    built, _ = reduced(CUT)
    full = masked(built.model, CUT.tensors)
    assert not full.get_parameter("a.weight")[[1, 3, 4, 6, 7]].any()
    assert torch.equal(
        full.get_parameter("a.weight")[[0, 2, 5]], built.model.get_parameter("a.weight")[[0, 2, 5]]
    )


def test_nothing_is_constant_and_statistics_are_calibrated() -> None:
    built = SMALL.build(2)
    nn.init.zeros_(built.model.get_parameter("b.weight"))
    ready(built, 0)
    assert built.model.get_parameter("b.weight").std() > 0
    assert built.model.get_buffer("n.running_var").std() > 0
    assert not built.model.training
    assert not torch.equal(fresh(built, 1)[0][0], fresh(built, 2)[0][0])


def test_an_architecture_that_does_not_run_is_said_so() -> None:
    trial = attempt(architecture(Small, 5, 8, 8))
    assert trial.outcome == "cannot build"
    assert "channels" in trial.reason


def _sleeps(batch: int) -> Built:
    time.sleep(60)
    raise AssertionError


def _dies(batch: int) -> Built:
    os._exit(3)


def test_hangs_and_deaths_end_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "LIMIT_S", 1.0)
    sleeper, dying = (Architecture(f.__name__, "test", "test", f) for f in (_sleeps, _dies))
    trials = {t.name: t for t in study.tried([sleeper, dying], jobs=2, strict=False)}
    assert trials["_sleeps"].outcome == "timeout"
    assert trials["_dies"].outcome == "failed"
    assert "exit code 3" in trials["_dies"].reason


def test_the_last_line_of_a_name_counts_and_a_broken_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    ledger.append(path, Trial("net", "test", "family", "failed"))
    ledger.append(path, Trial("net", "test", "family", "ok", left=0.25))
    with path.open("a") as file:
        file.write('{"name": "cut o')
    known = ledger.read(path)
    assert [t.outcome for t in known.values()] == ["ok"]
    ledger.rewrite(path, known.values())
    assert len(path.read_text().splitlines()) == 1


def test_the_page_tells_what_was_wrong(tmp_path: Path) -> None:
    trials = [
        Trial("a", "test", "one", "ok", left=0.3, error=1e-7, own_s=0.5, check="masked", check_error=2e-7),
        Trial("b", "test", "one", "wrong", reason="differs | by much"),
        Trial("c", "test", "two", "refused", reason="a size in net.py:3"),
        Trial("d", "test", "two", "cannot build"),
    ]
    table.write(tmp_path / "page.md", trials)
    page = (tmp_path / "page.md").read_text()
    assert "3 architectures: 1 reduced (33.3%), 1 refused, 1 wrong" in page
    assert "| one | 2 | 1 | 0 | 1 | 0.30 |" in page
    assert "differs \\| by much" in page
    assert "net.py:3" in page
