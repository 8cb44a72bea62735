"""What a network costs on this machine: wall-clock time, measured so that it can be believed."""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import nn

from gracile.errors import UsageError

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

Array = np.ndarray[Any, np.dtype[np.float64]]
Call = Callable[[], object]
Timer = Callable[[Call, int], float]
"""Seconds that a number of calls in a row take."""

_SAMPLE_S = 2e-3  # long against the clock's resolution and a context switch
_MOST_REPEATS = 1_000_000
_TRIES = 5
_RESAMPLES = 2000


@final
@dataclass(frozen=True)
class Timing:
    """Measured latency of one candidate, in seconds for one call.

    Attributes:
        name: of the candidate.
        median_s, lower_s, upper_s: median and quartiles over the rounds.
        speedup: median of the first candidate over this one's.
        speedup_lower, speedup_upper: 95 % bootstrap interval of ``speedup``, rounds resampled in pairs.
        repeats: calls in one sample.
        disturbed: samples during which the system ran something else on this processor, even after
            repeating them.
        samples_s: every round's time, in order.
        threads: that torch was allowed to use.
        device: where the inputs were.
    """

    name: str
    median_s: float
    lower_s: float
    upper_s: float
    speedup: float
    speedup_lower: float
    speedup_upper: float
    repeats: int
    disturbed: int
    samples_s: tuple[float, ...]
    threads: int
    device: str


def measure(
    candidates: Mapping[str, Callable[..., object]],
    *inputs: Any,
    rounds: int = 30,
    threads: int = 1,
    seed: int = 0,
    timer: Timer | None = None,
) -> dict[str, Timing]:
    """Time every candidate on the same inputs, side by side.

    The candidates take turns: each round times all of them once, in a new random order, so that
    a machine that slows down slows all of them. A sample repeats the call until it lasts about
    2 ms, and is taken again (at most four times) if the system interrupted it to run something
    else: on a busy machine half of the samples would measure other programs. One round is thrown
    away as warm-up, garbage collection is off, gradients are off, and torch's thread count is set
    and restored. CUDA work is timed by events on its stream.

    Args:
        candidates: name -> network (in eval mode) or function; ratios refer to the first one.
        inputs: what each is called with.
        rounds: samples of each candidate, at least 5.
        threads: that torch may use.
        seed: of the order within rounds and of the bootstrap.
        timer: replaces the clock (tests, other devices).

    Raises:
        UsageError: no candidate, too few rounds or threads, or a network in training mode.

    >>> timings = measure({"slow": lambda: sum(range(99_999)), "fast": lambda: sum(range(99))}, rounds=5)
    >>> timings["fast"].speedup > 1.0
    True
    """
    _check(candidates, rounds, threads)
    device = next((str(i.device) for i in inputs if isinstance(i, torch.Tensor)), "cpu")
    timer = timer or (time_on_stream if device.startswith("cuda") else time_on_wall)
    calls = {name: _bind(function, inputs) for name, function in candidates.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    disturbed = dict.fromkeys(calls, 0)
    order = list(calls)
    shuffle = random.Random(seed).shuffle
    with quiet(threads), torch.inference_mode():
        repeats = {name: _calibrate(call, timer) for name, call in calls.items()}
        for turn in range(rounds + 1):
            shuffle(order)
            for name in order:
                seconds, calm = _sample(calls[name], repeats[name], timer)
                if turn:
                    samples[name].append(seconds)
                    disturbed[name] += not calm
    reference = samples[next(iter(samples))]
    return {
        name: _timing(name, own, reference, repeats[name], disturbed[name], threads, device, seed)
        for name, own in samples.items()
    }


def against(timings: Mapping[str, Timing], reference: str, seed: int = 0) -> dict[str, Timing]:
    """The same times with ratios to another of the candidates that took turns.

    Args:
        timings: what one call of :func:`measure` returned.
        reference: name of the candidate whose median becomes 1.
        seed: of the bootstrap.

    >>> timings = measure({"a": lambda: sum(range(99)), "b": lambda: sum(range(99_999))}, rounds=5)
    >>> against(timings, "b")["b"].speedup, against(timings, "b")["a"].speedup > 1.0
    (1.0, True)
    """
    samples = timings[reference].samples_s
    return {
        name: _timing(name, t.samples_s, samples, t.repeats, t.disturbed, t.threads, t.device, seed)
        for name, t in timings.items()
    }


def time_on_wall(call: Call, repeats: int) -> float:
    """Seconds that ``repeats`` calls take by the wall clock."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - start


def time_on_thread(call: Call, repeats: int) -> float:
    """Processor seconds of this thread for ``repeats`` calls: what else the machine runs is not in them.

    Only for work on one thread of a CPU; what other threads do for it would be missed.
    """
    start = time.thread_time()
    for _ in range(repeats):
        call()
    return time.thread_time() - start


def time_on_stream(call: Call, repeats: int) -> float:
    """Seconds that ``repeats`` calls take on the current CUDA stream, by its own events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _timing(
    name: str,
    own: Sequence[float],
    reference: Sequence[float],
    repeats: int,
    disturbed: int,
    threads: int,
    device: str,
    seed: int,
) -> Timing:
    lower, median, upper = statistics.quantiles(own, n=4, method="inclusive")
    ours, theirs = np.array(own), np.array(reference)
    # Rounds are drawn whole, so that what slowed both candidates in one round cancels out.
    draws = np.random.default_rng(seed).integers(len(ours), size=(_RESAMPLES, len(ours)))
    bounds = np.percentile(_ratio(theirs[draws], ours[draws]), (2.5, 97.5))
    return Timing(
        name,
        median_s=median,
        lower_s=lower,
        upper_s=upper,
        speedup=float(_ratio(theirs, ours)),
        speedup_lower=float(bounds[0]),
        speedup_upper=float(bounds[1]),
        repeats=repeats,
        disturbed=disturbed,
        samples_s=tuple(own),
        threads=threads,
        device=device,
    )


def _sample(call: Call, repeats: int, timer: Timer) -> tuple[float, bool]:
    """Seconds for one call, and whether nothing interrupted them, which only the wall clock can tell."""
    for _ in range(_TRIES):
        before = _interruptions()
        seconds = timer(call, repeats) / repeats
        if timer is not time_on_wall or _interruptions() == before:
            return seconds, True
    return seconds, False


def _interruptions() -> int:
    """How often the system took the processor from this process; 0 where it does not tell."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0


def _ratio(reference: Array, own: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):  # nothing over nothing is nan
        return np.median(reference, axis=-1) / np.median(own, axis=-1)


def _calibrate(call: Call, timer: Timer) -> int:
    timer(call, 1)  # the first call allocates, compiles and fills caches
    repeats = 1
    while (seconds := timer(call, repeats)) < _SAMPLE_S and repeats < _MOST_REPEATS:
        wanted = math.ceil(1.2 * repeats * _SAMPLE_S / max(seconds, 1e-9))
        repeats = min(max(wanted, 2 * repeats), 100 * repeats, _MOST_REPEATS)
    return repeats


def _bind(function: Callable[..., object], inputs: Sequence[Any]) -> Call:
    return lambda: function(*inputs)


@contextmanager
def quiet(threads: int) -> Iterator[None]:
    before, collecting = torch.get_num_threads(), gc.isenabled()
    gc.collect()
    gc.disable()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if collecting:
            gc.enable()


def _check(candidates: Mapping[str, Callable[..., object]], rounds: int, threads: int) -> None:
    if not candidates or rounds < 5 or threads < 1:
        raise UsageError(
            "measuring time",
            got=f"{len(candidates)} candidates, rounds={rounds}, threads={threads}",
            expected="at least one candidate, 5 rounds and 1 thread",
        )
    for name, candidate in candidates.items():
        if isinstance(candidate, nn.Module) and candidate.training:
            raise UsageError(
                "measuring time",
                got=f"'{name}' in training mode",
                expected="networks in eval mode",
                hint="call .eval(): dropout and batch-norm updates are no part of inference",
            )
