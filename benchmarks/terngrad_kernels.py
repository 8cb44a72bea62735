"""Gradients packed and unpacked by compiled kernels, beside torch doing the same, in turns.

    python benchmarks/terngrad_kernels.py

Every step of an exchange is measured on its own, for every instruction set, in memory that is there before.
`torch` is what one writes with tensor operations (`torch.rand`, comparisons, shifts of bytes), temporaries
included; `twin` is what gracile falls back to without a compiler, with the bits of the kernels, and is timed
once. GB/s are bytes of the gradient in single precision over seconds, whatever a step reads and writes.

That nothing is allocated in steady state is read from the process's page faults: malloc is told to take
from the system whatever has 64 KiB or more, so all that is made anew lies in new pages. Five calls after a
first one must have fewer than one array of that size would (Python takes one now and then); those of
`torch` are counted as well, and show that what is made is seen. Linux only.
"""

from __future__ import annotations

import ctypes
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
import typer
from record import record
from rich.console import Console
from rich.progress import track
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
    mean_,
    round_,
    scaler,
    sum_bits,
    ternarize_,
    to_base3_,
    words,
)

RANKS, SCALE = 4, 2.5e-3
# What a rank does to all of its numbers; of the sums it makes only its share.
MAIN = ("scale and clip", "ternarize, pack 2 bits", "unpack a sum")
MOST_S, LEAST = 15e-3, 12.0  # seconds of these three, GB/s of the second, with AVX-512
ARRAY = 1 << 16  # bytes
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # of malloc.h
Step = Callable[[str], object]


@dataclass(frozen=True)
class Memory:
    """A gradient, messages, and where results go."""

    x: Tensor
    messages: list[Tensor]
    sums: Tensor
    four: Tensor
    three: Tensor
    two: Tensor
    out: Tensor

    @classmethod
    def of(cls, numbers: int) -> Memory:
        """Gradients from a normal distribution, and what four workers send of them."""
        x = torch.randn(numbers, generator=torch.Generator().manual_seed(0)) * 1e-3
        messages = [torch.empty(words(numbers), dtype=torch.int32) for _ in range(RANKS)]
        for rank, message in enumerate(messages):
            ternarize_(message, x, SCALE, Random(0, lane=rank))
        sums, four = (torch.empty(words(numbers, w), dtype=torch.int32) for w in (sum_bits(RANKS), 4))
        add_(sums, messages)
        three = torch.empty(base3_words(words(numbers)), dtype=torch.int32)
        to_base3_(three, messages[0])
        return cls(x, messages, sums, four, three, torch.empty_like(messages[0]), torch.zeros(numbers))


def compiled(m: Memory) -> dict[str, Step]:
    """Steps as functions of the instruction set."""
    width = sum_bits(RANKS)
    return {
        "scale and clip": lambda on: scaler(m.x, kernel=on),
        "ternarize, pack 2 bits": lambda on: ternarize_(m.two, m.x, SCALE, Random(1), kernel=on),
        "round, pack 4 bits": lambda on: round_(m.four, m.x, SCALE, Random(1), kernel=on),
        "sum of 4, packed": lambda on: add_(m.sums, m.messages, on),
        "unpack a sum": lambda on: decode_(
            m.out, m.sums, width=width, offset=RANKS, factor=SCALE / RANKS, kernel=on
        ),
        "unpack 2 bits": lambda on: decode_(m.out, m.messages[0], width=2, offset=1, factor=SCALE, kernel=on),
        "mean of 4, unpacked": lambda on: mean_(m.out, m.messages, SCALE / RANKS, on),
        "2 bits to base 3": lambda on: to_base3_(m.three, m.messages[0], on),
        "base 3 to 2 bits": lambda on: from_base3_(m.two, m.three, on),
    }


def on_torch(m: Memory) -> dict[str, Callable[[], object]]:
    """The same with tensor operations; four digits of 2 bits, or five to base 3, in a byte."""
    packed = [_pack(_ternary(m.x), 2) for _ in range(RANKS)]
    sums = _pack(sum(_unpack(p, 2) for p in packed), 4)
    three = _base3(packed[0])
    return {
        "scale and clip": lambda: float(torch.minimum(2.5 * m.x.square().mean().sqrt(), m.x.abs().max())),
        "ternarize, pack 2 bits": lambda: _pack(_ternary(m.x), 2),
        "round, pack 4 bits": lambda: _pack(_fifteen(m.x), 4),
        "sum of 4, packed": lambda: _pack(sum(_unpack(p, 2) for p in packed), 4),
        "unpack a sum": lambda: (_unpack(sums, 4).float() - RANKS) * (SCALE / RANKS),
        "unpack 2 bits": lambda: (_unpack(packed[0], 2).float() - 1) * SCALE,
        "mean of 4, unpacked": lambda: (sum(_unpack(p, 2) for p in packed).float() - RANKS) * (SCALE / RANKS),
        "2 bits to base 3": lambda: _base3(packed[0]),
        "base 3 to 2 bits": lambda: _pack(_from_base3(three), 2),
    }


def _ternary(x: Tensor) -> Tensor:
    u = torch.rand_like(x) * SCALE
    return (1 + (u < x).to(torch.int8) - (u < -x).to(torch.int8)).to(torch.uint8)


def _fifteen(x: Tensor) -> Tensor:
    return ((x * (7 / SCALE)).clamp(-7, 7) + 7 + torch.rand_like(x)).clamp(max=14).to(torch.uint8)


def _pack(digits: Tensor, width: int) -> Tensor:
    parts = digits.view(8 // width, -1)
    found = parts[0].clone()
    for i, part in enumerate(parts[1:], start=1):
        found |= part << (width * i)
    return found


def _unpack(packed: Tensor, width: int) -> Tensor:
    return torch.cat([packed >> width * i & (1 << width) - 1 for i in range(8 // width)])


def _base3(packed: Tensor) -> Tensor:
    digits = _unpack(packed, 2)
    parts = digits[: len(digits) // 5 * 5].view(5, -1)
    return parts[0] + 3 * parts[1] + 9 * parts[2] + 27 * parts[3] + 81 * parts[4]


def _from_base3(packed: Tensor) -> Tensor:
    return torch.cat([packed // 3**i % 3 for i in range(5)])


def new_pages(call: Callable[[], object], calls: int = 5) -> int:
    """Pages of memory that were new to the process in some calls after the first."""
    call()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(calls):
        call()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def map_from(size: int) -> None:
    """Let malloc take whatever is at least this large from the system, and give it back."""
    malloc = ctypes.CDLL(None)
    if not (malloc.mallopt(M_MMAP_THRESHOLD, size) and malloc.mallopt(M_TRIM_THRESHOLD, 2 * size)):
        raise OSError("mallopt refused")


def main(
    millions: Annotated[
        int, typer.Option(help="numbers of the gradient; a multiple of 5 and 4 for torch")
    ] = 25,
    rounds: Annotated[int, typer.Option(help="interleaved repetitions")] = 15,
) -> None:
    """Measure packing and unpacking of gradients on one core."""
    torch.set_num_threads(1)
    numbers = millions * 1_000_000
    map_from(ARRAY)
    memory = Memory.of(numbers)
    sets = kernels()[1:]
    columns = (*sets, "torch")
    steps, rival = compiled(memory), on_torch(memory)
    calls = {
        name: {"torch": rival[name], **{on: partial(step, on) for on in sets}} for name, step in steps.items()
    }
    # Before anything large was made and freed, which malloc would give out again.
    pages = {name: {on: new_pages(every[on]) for on in columns} for name, every in calls.items()}
    map_from(32 << 20)  # where malloc ends up by itself
    rows: list[dict[str, Any]] = []
    for name, step in track(steps.items(), description="steps"):
        timings = measure(calls[name], rounds=rounds)
        began = time.perf_counter()
        step("torch")  # the twin
        rows.append(
            {
                "step": name,
                "seconds": {on: timings[on].median_s for on in columns},
                "twin_s": time.perf_counter() - began,
                "faster": {on: timings[on].speedup for on in sets},
                "new_pages": pages[name],
            }
        )
    Console(width=150).print(_table(rows, columns, numbers))
    seconds = {row["step"]: row["seconds"] for row in rows}
    together = {on: sum(seconds[step][on] for step in MAIN) for on in columns}
    packing = {on: 4e-9 * numbers / seconds[MAIN[1]][on] for on in columns}
    for on in columns:
        print(f"{on}: {' + '.join(MAIN)} = {1e3 * together[on]:.1f} ms; packs {packing[on]:.1f} GB/s")
    allocated = {on: sum(row["new_pages"][on] for row in rows) for on in columns}
    print(f"New pages in steady state: {allocated}")
    figures = {
        "numbers": numbers,
        "rows": rows,
        "together_s": together,
        "packing_gbytes_per_s": packing,
        "new_pages": allocated,
        "holds": {
            f"{1e3 * MOST_S:g} ms together": min(together.values()) <= MOST_S,
            f"packs {LEAST:g} GB/s": max(packing.values()) >= LEAST,
            "nothing allocated": all(row["new_pages"][on] < ARRAY // 4096 for row in rows for on in sets),
            "seen where torch allocates": all(row["new_pages"]["torch"] for row in rows),
        },
    }
    print("Criteria:", figures["holds"])
    command = f"python benchmarks/terngrad_kernels.py --millions {millions}"
    print("Figures:", record("terngrad_kernels", command, figures).name)


def _table(rows: list[dict[str, Any]], columns: tuple[str, ...], numbers: int) -> Table:
    table = Table(title=f"{numbers / 1e6:g} M numbers, 1 thread; ms, GB/s of single precision")
    for heading in ("step", *columns, "faster", "twin ms", "new pages, torch"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    for row in rows:
        cells = [f"{1e3 * s:.2f}, {4e-9 * numbers / s:.1f}" for s in row["seconds"].values()]
        pages = row["new_pages"]
        made = f"{sum(pages.values()) - pages['torch']}, {pages['torch']}"
        faster = max(row["faster"].values())
        table.add_row(row["step"], *cells, f"{faster:.0f}x", f"{1e3 * row['twin_s']:.0f}", made)
    return table


if __name__ == "__main__":
    typer.run(main)
