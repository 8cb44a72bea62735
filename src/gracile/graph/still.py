"""Hold a model still: evaluation mode for one pass, and everything back as it was."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """Run the model in evaluation mode without gradients and without fused kernels that hide operators.

    Afterwards flags, plain attributes, registered tensors and the random state are what they were. Values
    written into buffers are the observer's to restore, because only it sees them being written.
    """
    modules = list(model.modules())
    saved = [(held, copy.copy(held)) for module in modules for held in _containers(module)]
    with ExitStack() as stack:
        if gc.isenabled():  # the pass makes no cycles, and one sweep through all of torch takes longer
            stack.callback(gc.enable)
            gc.disable()
        stack.enter_context(torch.inference_mode(False))  # where operators come whole, not in parts
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng())
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        if any(isinstance(module, (nn.RNNBase, nn.RNNCellBase)) for module in modules):
            # the public context manager sets other flags too, and warns about some
            stack.callback(torch._C._set_mkldnn_enabled, torch._C._get_mkldnn_enabled())
            torch._C._set_mkldnn_enabled(False)
        try:
            for module in modules:
                module.training = False
            yield
        finally:
            for held, before in saved:
                held.clear()
                held.extend(before) if isinstance(held, list) else held.update(before)


def _containers(module: nn.Module) -> list[Any]:
    """A module's attributes, and the lists, sets and dictionaries among them (its parameters, say)."""
    attributes = vars(module)
    return [attributes, *(value for value in attributes.values() if isinstance(value, (dict, list, set)))]
