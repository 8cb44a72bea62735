"""Slices of one tensor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Kept = dict[int, Tensor]  # dimension -> indices that stay
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def take(tensor: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    """Copy of ``tensor`` with the given indices of the given dimensions, in its own memory and its layout."""
    if not kept:
        return tensor.clone()
    part = tensor
    for dim in sorted(kept, key=lambda d: len(kept[d]) / tensor.shape[d]):  # largest reduction first
        part = part.index_select(dim, kept[dim].to(tensor.device))
    layout = _CHANNELS_LAST.get(tensor.ndim)
    if layout and tensor.is_contiguous(memory_format=layout) and not tensor.is_contiguous():
        part = part.contiguous(memory_format=layout)
    return part
