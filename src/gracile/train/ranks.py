"""Many processes that train one network, as ``torchrun`` starts them; one process is the special case.

Every function works in both cases, so the training loop has no branches for them.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(minutes=10)
"""How long a rank waits for the others before it gives up with an error."""


def default_device() -> torch.device:
    """The GPU that ``torchrun`` assigned to this process, the first GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def join(device: torch.device) -> tuple[int, int]:
    """Join the processes that ``torchrun`` started (NCCL on GPUs, gloo on CPUs); return (rank, ranks).

    A process group that exists already is used. One that is made here stays until the program
    ends: ranks that leave and meet again at the same address may miss each other.

    >>> join(torch.device("cpu"))
    (0, 1)
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_available():
        return 0, 1
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return 0, 1
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        atexit.register(leave)
    return dist.get_rank(), dist.get_world_size()


def leave() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wrap(model: nn.Module, device: torch.device, ranks: int) -> nn.Module:
    """``model`` itself, or DistributedDataParallel around it, which starts from rank 0's weights."""
    if ranks == 1:
        return model
    return nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def apart(model: nn.Module) -> AbstractContextManager[None]:
    """Within it a backward pass averages nothing over ranks; the next one outside averages the sum."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return cast(AbstractContextManager[None], model.no_sync())
    return nullcontext()


def add_(values: Tensor, ranks: int) -> Tensor:
    """Sum ``values`` over all ranks, in place."""
    if ranks > 1:
        dist.all_reduce(values)
    return values


def least_(values: Tensor, ranks: int) -> Tensor:
    """Minimum of ``values`` over all ranks, in place."""
    if ranks > 1:
        dist.all_reduce(values, dist.ReduceOp.MIN)
    return values


def beside(own: Tensor, ranks: int) -> Tensor:
    """The rows of every rank, in order of rank; those of this rank keep their gradient, the others have none.

    What is computed from it is the same on all ranks. Each rank then has its part of the gradient: times
    ``ranks`` and averaged over them, as the gradients of a step are, the parts make the whole.

    Args:
        own: as many rows on every rank.
        ranks: processes that train together.

    >>> beside(torch.ones(2, 3), ranks=1).shape
    torch.Size([2, 3])
    """
    if ranks == 1:
        return own
    rows = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(ranks)]
    dist.all_gather(rows, own.detach().contiguous())
    rows[dist.get_rank()] = own
    return torch.cat(rows)


def share_buffers_(model: nn.Module, ranks: int) -> None:
    """Give every rank the buffers of rank 0 (batch-norm statistics), before they are evaluated or saved."""
    share_(model.buffers(), ranks)


@torch.no_grad()
def share_(tensors: Iterable[Tensor], ranks: int) -> None:
    """Give every rank the values that rank 0 has, in place."""
    for tensor in tensors if ranks > 1 else ():
        together = tensor.detach().contiguous()
        dist.broadcast(together, src=0)
        if together.data_ptr() != tensor.data_ptr():
            tensor.copy_(together)


def gather(content: bytes, device: torch.device, ranks: int) -> list[bytes]:
    """The ``content`` of every rank, in order of rank. Plain bytes: nothing is pickled.

    >>> gather(b"state", torch.device("cpu"), ranks=1)
    [b'state']
    """
    if ranks == 1:
        return [content]
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(ranks)]
    dist.all_gather(sizes, torch.tensor([len(content)], device=device))
    longest = max(int(size) for size in sizes)
    padded = torch.frombuffer(bytearray(content.ljust(longest)), dtype=torch.uint8).to(device)
    received = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(received, padded)
    return [
        bytes(part[: int(size)].cpu().numpy().tobytes()) for part, size in zip(received, sizes, strict=True)
    ]
