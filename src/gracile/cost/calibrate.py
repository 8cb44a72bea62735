"""Measure the three numbers of the roofline on the machine at hand: arithmetic, memory, sparse engine."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path

import scipy.sparse
import torch
from torch import Tensor
from torch.nn import functional

from gracile.cost.measure import measure, time_on_thread, time_on_wall
from gracile.cost.roofline import Machine
from gracile.errors import UsageError

Engine = Callable[[Tensor], Callable[[Tensor], Tensor]]
"""Prepares a sparse matrix (out, in), given with its zeros, for products with matrices (in, columns)."""

Convolution = Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]
"""Prepares sparse filters (out, in, 3, 3), given with their zeros, for images like a second tensor,
(1, in, height, width), that are padded by one pixel."""

_DENSITY = 0.4  # where arithmetic is the limit and not memory
_OUT, _IN, _COLUMNS = 256, 1152, 784  # a middle layer: 128 to 256 channels, 3x3, 28x28 pixels
_FILTERS, _IMAGES = (_OUT, _IN // 9, 3, 3), (1, _IN // 9, 28, 28)  # the same layer, not lowered
_SQUARE = 1024
_LEAST_BYTES, _MOST_BYTES = 2**26, 2**29


def calibrate(
    engine: Engine | None = None,
    *,
    convolution: Convolution | None = None,
    threads: int = 1,
    limit_s: float = 20.0,
    name: str = "this machine",
) -> Machine:
    """Measure F by a dense product, B by a copy larger than the caches, alpha by a sparse product.

    On one thread, processor time counts, so that other programs disturb little; on several, wall-clock time.
    alpha = t_sparse F / (x C) at density x = 0.4, with random zeros: trained ones are a little kinder.
    It depends on the layer and the density; calibrate with the engine that will run the network.

    Args:
        engine: by default :func:`torch_csr`, or :func:`scipy_csr` where torch has no sparse product.
        convolution: an engine that convolves directly, measured in place of a product with lowered images,
            such as ``lambda w, x: gracile.runtime.kernels.Conv(w, size=tuple(x.shape[2:]), padding=1)``.
        threads: that torch may use.
        limit_s: about how long it may take.
        name: of the machine.

    Raises:
        UsageError: no time or threads, two engines, or one whose product is wrong.
    """
    if not limit_s > 0 or threads < 1:
        raise UsageError(
            "calibrating", got=f"limit_s={limit_s}, threads={threads}", expected="positive numbers"
        )
    if engine is not None and convolution is not None:
        raise UsageError("calibrating", got="engine and convolution", expected="one of them")
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(_OUT, _IN, generator=generator)
    weights = torch.where(torch.rand(_OUT, _IN, generator=generator) < _DENSITY, dense, 0.0)
    pixels = torch.randn(_IN, _COLUMNS, generator=generator)
    square = torch.randn(_SQUARE, _SQUARE, generator=generator)
    source = torch.ones(_bytes_to_copy() // 4)
    target = torch.zeros_like(source)
    sparse = _convolving(convolution, weights) if convolution else _multiplying(engine, weights, pixels)
    calls: dict[str, Callable[[], object]] = {
        "product": lambda: square @ square,
        "copy": lambda: target.copy_(source),
        "sparse": sparse,
    }
    rounds = _rounds(calls, limit_s)
    timings = measure(
        calls, rounds=rounds, threads=threads, timer=time_on_thread if threads == 1 else time_on_wall
    )
    flops_per_s = 2 * _SQUARE**3 / timings["product"].median_s
    work = 2.0 * _COLUMNS * int(weights.count_nonzero())
    return Machine(
        name,
        flops_per_s=flops_per_s,
        bytes_per_s=2 * source.nbytes / timings["copy"].median_s,
        alpha=timings["sparse"].median_s * flops_per_s / work,
        source=f"measured, {threads} threads, {rounds} rounds",
    )


def torch_csr(weights: Tensor) -> Callable[[Tensor], Tensor]:
    """torch's compressed rows times dense.

    >>> w = torch.tensor([[0.0, 2.0], [0.0, 0.0]]); torch_csr(w)(torch.ones(2, 1))
    tensor([[2.],
            [0.]])
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        rows = weights.to_sparse_csr()
    return lambda columns: rows @ columns


def scipy_csr(weights: Tensor) -> Callable[[Tensor], Tensor]:
    """scipy's compressed rows times dense, on one thread.

    >>> w = torch.tensor([[0.0, 2.0], [0.0, 0.0]]); scipy_csr(w)(torch.ones(2, 1))
    tensor([[2.],
            [0.]])
    """
    rows = scipy.sparse.csr_matrix(weights.numpy())
    return lambda columns: torch.from_numpy(rows @ columns.numpy())


def _multiplying(engine: Engine | None, weights: Tensor, pixels: Tensor) -> Callable[[], Tensor]:
    if engine is None:
        try:
            torch_csr(weights)(pixels)
            engine = torch_csr
        except RuntimeError:  # a build of torch without sparse products
            engine = scipy_csr
    return _checked(engine(weights), pixels, weights @ pixels)


def _convolving(engine: Convolution, weights: Tensor) -> Callable[[], Tensor]:
    filters = weights.view(_FILTERS)
    images = torch.randn(_IMAGES, generator=torch.Generator().manual_seed(1))
    return _checked(engine(filters, images), images, functional.conv2d(images, filters, padding=1))


def _checked(product: Callable[[Tensor], Tensor], given: Tensor, expected: Tensor) -> Callable[[], Tensor]:
    found = product(given)
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-3, atol=1e-2):
        raise UsageError(
            "calibrating",
            got=f"an engine whose product is not that of torch, of shape {tuple(found.shape)}",
            expected=f"that of the dense layer, of shape {tuple(expected.shape)}",
        )
    return lambda: product(given)


def _rounds(calls: dict[str, Callable[[], object]], limit_s: float) -> int:
    """As many rounds as fit: a call is warmed up and tried out about four times before."""
    for call in calls.values():
        call()
    start = time.perf_counter()
    for call in calls.values():
        call()
    return min(max(int(limit_s / (time.perf_counter() - start)) - 4, 5), 30)


def _bytes_to_copy() -> int:
    """Four times the largest cache, where the system tells its size."""
    sizes = [_LEAST_BYTES // 4]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        if text.endswith("K"):
            sizes.append(1024 * int(text[:-1]))
    return min(4 * max(sizes), _MOST_BYTES)
