"""Networks that keep only the winners among their activations, in training and ever after (C13 (JPnet)).

A dynamic mask is not something that a method does for a while: the network needs it whenever it runs. So it
is a module, :class:`Winners`, which is put into the network behind an activation and stays there. The network
is then trained, saved, exported and counted as any other.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any, final

from torch import Tensor, nn

from gracile.algebra import keep_winners
from gracile.errors import UsageError
from gracile.train.task import Task, evaluate

_CANDIDATES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.12, 0.1, 0.08, 0.06, 0.04, 0.02)


@final
class Winners(nn.Module):
    """Passes the winners of every sample on, zeros for the others: :func:`gracile.algebra.keep_winners`.

    It has no parameters and no state, and does the same in training and in eval mode, but for one thing: a
    ``sample`` of the entries is drawn anew in training, as dropout draws, and fixed in eval mode. (With a
    fixed one in training as well, networks learn to please it: measured at winner rates 0.05 and 0.1 on
    layers of 300 and 100 neurons, 83 % instead of 91 %.) ``torch.export`` and ONNX see a top-k, a comparison
    and a fill.

    Args:
        rate: share of the entries of a sample that win, in (0, 1].
        sample: share of the entries from which the threshold is predicted; 1 finds it exactly.
        seed: of the choice of those in eval mode.

    Raises:
        UsageError: a share outside (0, 1].

    >>> import torch
    >>> Winners(0.25)(torch.tensor([[1.0, -4.0, 2.0, 0.0]]))
    tensor([[ 0., -4.,  0.,  0.]])
    """

    def __init__(self, rate: float, sample: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        for name, value in (("rate", rate), ("sample", sample)):
            if not 0.0 < value <= 1.0:  # also true for NaN
                raise UsageError("Winners", got=f"{name}={value}", expected="a share in (0, 1]")
        self.rate, self.sample, self.seed = rate, sample, seed

    def forward(self, activations: Tensor) -> Tensor:
        """Map ``(samples, ...)`` to the same shape."""
        return keep_winners(activations, self.rate, self.sample, None if self.training else self.seed)

    def extra_repr(self) -> str:
        """What distinguishes one from another when the network is printed."""
        return f"rate={self.rate}" + (f", sample={self.sample}" if self.sample < 1 else "")


def insert_winners(
    model: nn.Module, rates: Mapping[str, float], *, sample: float = 1.0, dropout: float = 0.0
) -> None:
    """Put :class:`Winners` behind modules of ``model``, in place.

    Args:
        model: its activations are modules, such as ``nn.ReLU()``.
        rates: winner rate by the module's path; first layers want larger ones.
        sample: share of the entries from which thresholds are predicted (C13: 0.1).
        dropout: c > 0 puts dropout of probability c * sqrt(rate) behind the mask (C13: 0.5): where few
            neurons are left, fewer can be spared.

    Raises:
        UsageError: a path that is none of the model's, a module with parameters, a share outside (0, 1].

    >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> insert_winners(model, {"1": 0.25}, dropout=0.5); model[1]
    Sequential(
      (0): ReLU()
      (1): Winners(rate=0.25)
      (2): Dropout(p=0.25, inplace=False)
    )
    """
    if not 0.0 <= dropout < 1.0:
        raise UsageError("inserting winners", got=f"dropout={dropout}", expected="a factor in [0, 1)")
    insert_after(
        model,
        {
            name: [Winners(rate, sample), *([nn.Dropout(dropout * math.sqrt(rate))] if dropout else [])]
            for name, rate in rates.items()
        },
    )


def insert_after(model: nn.Module, modules: Mapping[str, Iterable[nn.Module]]) -> None:
    """Replace modules by ``nn.Sequential(module, *new)``, in place and in the mode of the module.

    For instance a static threshold, ``insert_after(model, {"relu1": [nn.Hardshrink(0.1)]})``.

    Args:
        model: the network.
        modules: what is to follow, by the path of a module without parameters: those would get other names.

    Raises:
        UsageError: a path that is none of the model's, or a module with parameters or buffers.
    """
    known = dict(model.named_modules(remove_duplicate=False))
    for name in modules:
        if not name or name not in known:
            raise UsageError(
                "inserting modules",
                got=f"'{name}', no module inside {type(model).__name__}",
                expected=f"one of {', '.join(n for n, m in known.items() if n and not m.state_dict())}",
                hint="make functional activations modules: nn.ReLU() in place of functional.relu",
            )
        if known[name].state_dict():
            raise UsageError(
                "inserting modules",
                got=f"'{name}', a {type(known[name]).__name__} with parameters or buffers",
                expected="an activation, whose insertion renames no parameter",
                hint="make the activation behind it a module, such as nn.ReLU()",
            )
    for name, new in modules.items():
        parent, _, own = name.rpartition(".")
        chain = nn.Sequential(known[name], *new).train(known[name].training)
        setattr(model.get_submodule(parent), own, chain)


def winner_rates(
    model: nn.Module,
    data: Any,
    task: Task,
    names: Iterable[str],
    *,
    allowed: float,
    candidates: Iterable[float] = _CANDIDATES,
    sample: float = 1.0,
    batch_size: int = 256,
) -> dict[str, float]:
    """For each module alone the smallest winner rate that costs less than ``allowed`` of the score.

    Candidates are tried from the largest on until one costs too much. All layers together cost more than
    each alone, and fine-tuning wins most of it back (C13 (JPnet): 2 % of accuracy for each).

    Args:
        model: trained; it is not changed.
        data: validation data, never test data.
        task: whose score is meant.
        names: paths of activations.
        allowed: score that may be lost, 0.02 for two points of accuracy.
        candidates: winner rates to try, in (0, 1].
        sample, batch_size: as in :func:`insert_winners` and :func:`gracile.train.evaluate`.

    Returns:
        A rate for each name; 1 where every candidate costs too much.

    Raises:
        UsageError: an unknown path, ``allowed`` that is not positive, a rate outside (0, 1].
    """
    if not allowed > 0:
        raise UsageError("finding winner rates", got=f"allowed={allowed}", expected="more than 0")
    dense = evaluate(model, data, task, batch_size).score
    rates = {}
    for name in names:
        network = copy.deepcopy(model)
        insert_winners(network, {name: 1.0}, sample=sample)
        masks = network.get_submodule(name)
        rates[name] = 1.0
        for rate in sorted(candidates, reverse=True):
            masks[1] = Winners(rate, sample).eval()  # type: ignore[index, operator]
            found = evaluate(network, data, task, batch_size).score
            lost = dense - found if task.better == "higher" else found - dense
            if not lost < allowed:
                break
            rates[name] = rate
    return rates
