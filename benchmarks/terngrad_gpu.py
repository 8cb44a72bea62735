"""Gradients packed and unpacked on a GPU by Triton, beside torch's operators with the same bits, in turns.

    python benchmarks/terngrad_gpu.py

Every step of an exchange on its own, in memory that is there before; `fp16` is a conversion there and back,
what the fp16 hook does on the device. GB/s are bytes of the gradient in single precision over seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from record import record
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gracile.algebra.philox import Random
from gracile.cost import measure
from gracile.wire import (
    add_,
    base3_words,
    decode_,
    from_base3_,
    kernels,
    round_,
    scaler,
    sum_bits,
    ternarize_,
    to_base3_,
    words,
)

RANKS, SCALE = 4, 2.5e-3


def main(
    millions: Annotated[int, typer.Option(help="numbers of the gradient")] = 25,
    rounds: Annotated[int, typer.Option(help="interleaved repetitions")] = 15,
) -> None:
    """Measure packing and unpacking of gradients on a GPU."""
    n, width = millions * 1_000_000, sum_bits(RANKS)
    x = torch.randn(n, device="cuda", generator=torch.Generator("cuda").manual_seed(0)) * 1e-3
    messages = [x.new_empty(words(n), dtype=torch.int32) for _ in range(RANKS)]
    for rank, message in enumerate(messages):
        ternarize_(message, x, SCALE, Random(0, lane=rank))
    sums, four = (x.new_empty(words(n, w), dtype=torch.int32) for w in (width, 4))
    three = x.new_empty(base3_words(words(n)), dtype=torch.int32)
    out, half = torch.empty_like(x), x.half()
    steps: dict[str, Any] = {
        "scale and clip": lambda on: scaler(x, kernel=on),
        "ternarize, pack 2 bits": lambda on: ternarize_(messages[0], x, SCALE, Random(1), kernel=on),
        "round, pack 4 bits": lambda on: round_(four, x, SCALE, Random(1), kernel=on),
        "sum of 4, packed": lambda on: add_(sums, messages, on),
        "unpack a sum": lambda on: decode_(
            out, sums, width=width, offset=RANKS, factor=SCALE / RANKS, kernel=on
        ),
        "2 bits to base 3": lambda on: to_base3_(three, messages[0], on),
        "base 3 to 2 bits": lambda on: from_base3_(messages[0], three, on),
    }
    table = Table(title=f"{millions} M numbers, {torch.cuda.get_device_name()}")
    for heading in ("step", *(f"{on}, ms" for on in kernels("cuda")), "faster", "GB/s", "fp16, ms"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    rows = []
    for name, step in steps.items():
        calls: dict[str, Callable[[Tensor], object]] = {
            on: lambda _, step=step, on=on: step(on) for on in kernels("cuda")
        }
        calls["fp16"] = lambda _: out.copy_(half.copy_(x))
        timings = measure(calls, x, rounds=rounds)
        seconds = {on: timing.median_s for on, timing in timings.items()}
        best = seconds[kernels("cuda")[-1]]
        rows.append({"step": name, "seconds": seconds, "gbytes_per_s": 4e-9 * n / best})
        shown = [f"{1e3 * seconds[on]:.3f}" for on in kernels("cuda")]
        faster = f"{seconds['torch'] / best:.0f}x"
        table.add_row(name, *shown, faster, f"{4e-9 * n / best:.0f}", f"{1e3 * seconds['fp16']:.3f}")
    Console(width=110).print(table)
    print("Figures:", record("terngrad_gpu", "python benchmarks/terngrad_gpu.py", {"rows": rows}).name)


if __name__ == "__main__":
    typer.run(main)
