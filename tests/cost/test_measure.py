"""Wall-clock measurement, judged with clocks whose truth is known."""

from __future__ import annotations

import gc
import sys
import time

import msgspec
import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from torch import nn

from gracile.cost import Environment, Timing, environment, measure
from gracile.cost.environment import _facts, _listed
from gracile.errors import UsageError


class FakeClock:
    """A machine that takes known times, with noise that strikes whole rounds."""

    def __init__(self, seconds: dict[str, float], drift: float = 0.0, noise: float = 0.0) -> None:
        self.candidates = {name: (lambda name=name: name) for name in seconds}
        self.seconds, self.drift, self.noise = seconds, drift, noise
        self.generator = np.random.default_rng(0)
        self.calls: list[tuple[str, int]] = []

    def __call__(self, call, repeats: int) -> float:
        name = call()
        self.calls.append((name, repeats))
        slow = 1 + self.drift * len(self.calls) + self.noise * self.generator.random()
        return self.seconds[name] * slow * repeats


def test_exact_clock_gives_exact_figures() -> None:
    clock = FakeClock({"dense": 0.02, "reduced": 0.005})
    timings = measure(clock.candidates, rounds=7, timer=clock)
    assert list(timings) == ["dense", "reduced"]
    assert timings["dense"].speedup == timings["dense"].speedup_lower == 1.0
    reduced = timings["reduced"]
    assert reduced.median_s == reduced.lower_s == reduced.upper_s == pytest.approx(0.005)
    assert reduced.speedup == pytest.approx(4.0)
    assert reduced.speedup_lower == reduced.speedup_upper == pytest.approx(4.0)
    assert len(reduced.samples_s) == 7


def test_short_calls_are_repeated_until_a_sample_lasts() -> None:
    clock = FakeClock({"long": 0.5, "short": 1e-6})
    timings = measure(clock.candidates, rounds=5, timer=clock)
    assert timings["long"].repeats == 1
    assert timings["short"].repeats * 1e-6 >= 2e-3
    assert timings["short"].median_s == pytest.approx(1e-6)


def test_a_clock_that_never_moves_ends() -> None:
    clock = FakeClock({"nothing": 0.0})
    assert measure(clock.candidates, rounds=5, timer=clock)["nothing"].repeats == 1_000_000


def test_every_round_has_every_candidate_in_changing_order() -> None:
    clock = FakeClock(dict.fromkeys("abc", 0.01))
    measure(clock.candidates, rounds=20, timer=clock)
    names = [name for name, _ in clock.calls][-60:]
    rounds = ["".join(names[i : i + 3]) for i in range(0, 60, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    assert len(set(rounds)) > 2
    again = FakeClock(dict.fromkeys("abc", 0.01))
    measure(again.candidates, rounds=20, timer=again)
    assert again.calls == clock.calls


def test_drift_hits_all_candidates_alike() -> None:
    clock = FakeClock({"dense": 0.02, "reduced": 0.01}, drift=0.05)
    reduced = measure(clock.candidates, rounds=31, timer=clock)["reduced"]
    assert max(reduced.samples_s) > 2 * min(reduced.samples_s)
    assert reduced.speedup == pytest.approx(2.0, rel=0.05)


def test_the_interval_holds_the_truth_and_shows_noise() -> None:
    clock = FakeClock({"dense": 0.03, "reduced": 0.01}, noise=0.5)
    reduced = measure(clock.candidates, rounds=40, timer=clock)["reduced"]
    assert reduced.lower_s < reduced.median_s < reduced.upper_s
    assert reduced.speedup_lower <= 3.0 <= reduced.speedup_upper
    assert reduced.speedup_lower < reduced.speedup < reduced.speedup_upper
    assert (reduced.speedup_upper - reduced.speedup_lower) < 1.0


def test_the_interval_is_that_of_scipy() -> None:
    clock = FakeClock({"dense": 0.03, "reduced": 0.01}, noise=0.5)
    dense, reduced = measure(clock.candidates, rounds=40, timer=clock).values()
    expected = bootstrap(
        (dense.samples_s, reduced.samples_s),
        lambda a, b, axis: np.median(a, axis=axis) / np.median(b, axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=9999,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert reduced.speedup_lower == pytest.approx(expected.low, rel=0.02)
    assert reduced.speedup_upper == pytest.approx(expected.high, rel=0.02)


def test_real_work_of_known_ratio() -> None:
    def work(times: int):
        return lambda: [sum(range(2000)) for _ in range(times)]

    timings = measure({"forty": work(40), "one": work(1)}, rounds=15)
    assert 4 < timings["one"].speedup < 400  # a busy machine may be off by ten


def test_settings_are_set_and_restored() -> None:
    seen = set()

    def look() -> None:
        seen.add((torch.get_num_threads(), torch.is_inference_mode_enabled(), gc.isenabled()))
        time.sleep(2e-3)

    before = torch.get_num_threads()
    timings = measure({"look": look}, rounds=5, threads=2)
    assert seen == {(2, True, False)}
    assert timings["look"].threads == 2
    assert (torch.get_num_threads(), gc.isenabled()) == (before, True)

    def fail() -> None:
        raise ValueError("from the candidate")

    with pytest.raises(ValueError, match="from the candidate"):
        measure({"fail": fail}, rounds=5, threads=2)
    assert (torch.get_num_threads(), gc.isenabled()) == (before, True)


def test_networks_get_the_inputs() -> None:
    model = nn.Linear(4, 2).eval()
    timing = measure({"model": model}, torch.zeros(3, 4), rounds=5)["model"]
    assert 0 < timing.lower_s <= timing.median_s <= timing.upper_s < 1
    assert timing.device == "cpu"


def test_misuse_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one candidate"):
        measure({})
    with pytest.raises(UsageError, match="rounds=1"):
        measure({"a": int}, rounds=1)
    with pytest.raises(UsageError, match="'net' in training mode"):
        measure({"net": nn.Dropout()}, torch.zeros(1))


def test_records_survive_json() -> None:
    clock = FakeClock({"dense": 0.02, "reduced": 0.005}, noise=0.1)
    timings = measure(clock.candidates, rounds=5, timer=clock)
    assert msgspec.json.decode(msgspec.json.encode(timings), type=dict[str, Timing]) == timings
    here = environment()
    assert msgspec.json.decode(msgspec.json.encode(here), type=Environment) == here


@pytest.mark.gpu
def test_cuda_work_is_timed_where_it_runs() -> None:
    if not torch.cuda.is_available():
        pytest.skip(reason="no CUDA device")
    small, large = (torch.zeros(n, n, device="cuda") for n in (256, 4096))
    timings = measure({"large": lambda _: large @ large, "small": lambda _: small @ small}, small, rounds=9)
    assert timings["large"].device.startswith("cuda")
    assert timings["small"].speedup > 20


def test_environment_tells_the_machine_but_not_whose_it_is(tmp_path) -> None:
    import platform

    here = environment()
    assert here.torch == torch.__version__
    assert here.processor
    assert here.cores >= 1
    text = msgspec.json.encode(here).decode()
    assert platform.node() not in text.split('"')
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: Some CPU\nflags\t\t: fpu sse4_2 avx2 fma\n\nmodel name\t: Other\n")
    facts = _facts(cpuinfo)
    assert facts["model name"] == "Some CPU"
    assert _listed(facts) == ["sse4.2", "avx2", "fma"]
    assert _facts(tmp_path / "missing") == {}


def test_interrupted_samples_are_taken_again_and_hopeless_ones_counted(monkeypatch):
    module = sys.modules["gracile.cost.measure"]
    clock = iter(range(10**6))
    monkeypatch.setattr(module, "_interruptions", lambda: next(clock))  # every sample is interrupted
    taken = []

    def wall(call, repeats):
        taken.append(repeats)
        return 1.0

    monkeypatch.setattr(module, "time_on_wall", wall)
    found = measure({"a": int}, rounds=5)["a"]
    assert found.disturbed == 5
    assert len(taken) == 2 + 6 * 5  # calibration, then six rounds of five tries
    monkeypatch.setattr(module, "_interruptions", lambda: 7)
    assert measure({"a": int}, rounds=5)["a"].disturbed == 0
