"""A second opinion on what masking means, which shares no code with the library."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from gracile.graph import Cut


@pytest.fixture
def masked() -> Callable[[nn.Module, Cut], nn.Module]:
    """(model, cut) -> full-size copy in which everything that the cut removes from parameters is zero."""

    def mask(model: nn.Module, cut: Cut) -> nn.Module:
        model = copy.deepcopy(model)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name in cut.tensors.keys() & parameters.keys():
                for dim, kept in cut.tensors[name].items():
                    if name.endswith("original1") and dim == 0:
                        continue  # a weight norm's direction: 0/0, and its magnitude is zero anyway
                    gone = [i for i in range(parameters[name].shape[dim]) if i not in set(kept)]
                    parameters[name].index_fill_(dim, torch.tensor(gone), 0)
        return model

    return mask
