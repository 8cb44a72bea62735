"""Where the time of one pass goes: wall-clock time of every layer, measured inside the running network.

A layer timed on its own finds its weights in the cache; in the network they come from memory. So the network
runs as it is, and clocks are read when its modules begin and end.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from torch import nn

from gracile.cost.measure import quiet

Run = Callable[[nn.Module], object]


def layer_times(
    networks: Mapping[Any, nn.Module], run: Run, *, rounds: int = 7, threads: int = 1, seed: int = 0
) -> dict[Any, dict[str, float]]:
    """Least seconds of every layer of every network, without the layers inside it.

    The networks take turns in a new random order each round, after one round that is thrown away. Whatever
    else a machine does only adds time, so of the rounds the least counts; and on one thread of a CPU the
    thread's own time is read, which stands still while others run. Over the layers of one network the
    seconds add up to about its latency; reading clocks adds microseconds to each.

    Args:
        networks: by name, in eval mode.
        run: calls one of them, e.g. ``lambda network: network(x)``.
        rounds: samples of each.
        threads: that torch may use.
        seed: of the order.

    >>> net = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 2))
    >>> times = layer_times({"net": net}, lambda network: network(torch.zeros(8, 300)))["net"]
    >>> list(times), times["0"] > times["1"]
    (['', '0', '1'], True)
    """
    samples: dict[Any, dict[str, list[float]]] = {name: defaultdict(list) for name in networks}
    order = list(networks)
    shuffle = random.Random(seed).shuffle
    with quiet(threads), torch.inference_mode():
        for turn in range(rounds + 1):
            shuffle(order)
            for name in order:
                with _clocked(networks[name], threads) as clock:
                    run(networks[name])
                for layer, seconds in clock.own.items() if turn else ():
                    samples[name][layer].append(seconds)
    return {
        name: {layer: min(found) for layer, found in sorted(layers.items())}
        for name, layers in samples.items()
    }


@final
class _Clock:
    """Time by layer, each moment counted once: for the innermost layer that is running."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.own: dict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._now, self._since = now, 0.0

    def enter(self, layer: str) -> None:
        self._turn()
        self._running.append(layer)

    def leave(self) -> None:
        self._turn()
        self._running.pop()

    def _turn(self) -> None:
        now = self._now()
        if self._running:
            self.own[self._running[-1]] += now - self._since
        self._since = now


@contextmanager
def _clocked(network: nn.Module, threads: int) -> Iterator[_Clock]:
    on_gpu = any(p.is_cuda for p in network.parameters())
    clock = _Clock(_time_on_gpu if on_gpu else time.thread_time if threads == 1 else time.perf_counter)
    with ExitStack() as stack:
        for name, module in network.named_modules():

            def begin(_module: nn.Module, _inputs: Any, name: str = name) -> None:
                clock.enter(name)

            def end(_module: nn.Module, _inputs: Any, _output: Any) -> None:
                clock.leave()

            stack.callback(module.register_forward_pre_hook(begin, prepend=True).remove)
            stack.callback(module.register_forward_hook(end).remove)
        yield clock


def _time_on_gpu() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()
