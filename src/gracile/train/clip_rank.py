"""Lower the ranks of factorized layers while training, step by step, as far as the weights allow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

from torch import Tensor, nn
from torch.optim import Optimizer

from gracile.algebra import clip_rank_, live_rank, truncate_rank_
from gracile.errors import FileError, UsageError
from gracile.reduce import pairs
from gracile.train import ranks
from gracile.train.method import Method, Run


@final
class ClipRank(Method):
    """Clip the rank of every factorized layer every so many steps (C18 (Group Scissor)).

    Start from a network that was factorized at full rank, with :func:`gracile.reduce.factorize`. Every
    ``every`` steps the product W = mix · basis of each pair keeps its first K components, where K is the
    smallest rank with sum_{k>K} s_k² / sum_k s_k² <= epsilon, and training goes on. Training turns what is
    left towards the lower rank, and so the rank falls further than by one cut: it never grows again.

    Components that are clipped are zero in both factors, get no gradient and are held at zero, so nothing
    changes its shape; in the end :func:`gracile.reduce.remove` takes them out. When a rank falls the
    optimizer forgets what it knows of the two factors: they have new coordinates. A momentum could be turned
    into these, but not the squares that adaptive optimizers keep, and a rank falls a few times only.

    With epsilon 0 training is bit-identical to plain training.

    Args:
        epsilon: share of the energy of a layer that one clipping may lose, 0 <= epsilon < 1.
        every: optimizer steps between clippings.
        layers: paths of factorized layers; all that there are by default.

    Raises:
        UsageError: numbers out of range; when training starts, a layer that is no pair of basis and mix.

    Source: C18 (Group Scissor); see :func:`gracile.algebra.clip_rank_` for where it deviates.

    >>> import torch
    >>> model = nn.Sequential(nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3)))
    >>> for layer in model[0]:
    ...     _ = layer.weight.data.copy_(torch.diag(torch.tensor([2.0, 1.0, 0.1])))
    >>> run = Run(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=1)
    >>> method = ClipRank(epsilon=0.03, every=1)
    >>> method.start(run); method.after_step(run); method.ranks
    {'0': 2}
    """

    def __init__(self, epsilon: float = 0.03, every: int = 100, layers: Iterable[str] | None = None) -> None:
        self.epsilon, self.every = epsilon, every
        self.layers = None if layers is None else tuple(layers)
        self.ranks: dict[str, int] = {}
        self._held: dict[str, int] = {}  # what was clipped here, whose living components come first
        if not 0 <= epsilon < 1:
            raise UsageError("ClipRank", got=f"epsilon={epsilon}", expected="0 <= epsilon < 1")
        if type(every) is not int or every < 1:
            raise UsageError("ClipRank", got=f"every={every}", expected="1 step or more")

    def start(self, run: Run) -> None:
        found = pairs(run.model)
        names = tuple(found) if self.layers is None else self.layers
        missing = [name for name in names if name not in found]
        if missing or not names:
            raise UsageError(
                "ClipRank",
                got=f"'{missing[0]}', which is not factorized"
                if missing
                else "a model without factorized layers",
                expected=f"one of {', '.join(found) or 'none'}"[:400],
                hint="gracile.reduce.factorize(model, ranks) with full ranks first",
            )
        self.ranks = {name: live_rank(*_factors(found[name])) for name in names}
        self._held = {}

    def finish(self, run: Run) -> None:
        """Tell the ranks of the selected weights, which may be those of an earlier epoch."""
        self.ranks = {name: live_rank(*_factors(run.model.get_submodule(name))) for name in self.ranks}

    def after_step(self, run: Run) -> None:
        if not self.epsilon or (run.step + 1) % self.every:
            return
        for name in self.ranks:
            mix, basis, groups = _factors(run.model.get_submodule(name))
            before = live_rank(mix, basis, groups)
            clip_rank_(mix, basis, self.epsilon, groups)
            # Every processor rounds in its own way, and ranks have to stay equal to the bit.
            ranks.share_((mix, basis), run.ranks)
            self.ranks[name] = live_rank(mix, basis, groups)
            if self.ranks[name] < before:
                self._held[name] = self.ranks[name]
                forget_(run.optimizer, mix)
                forget_(run.optimizer, basis)

    def mask(self, run: Run) -> None:
        for name, rank in self._held.items():
            mix, basis, groups = _factors(run.model.get_submodule(name))
            truncate_rank_(mix, basis, rank, groups)

    def state_dict(self) -> dict[str, Any]:
        return {
            "epsilon": float(self.epsilon),
            "every": self.every,
            "ranks": dict(self.ranks),
            "held": dict(self._held),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raise UsageError for other settings or layers, FileError when it is no state of this method."""
        mine = {"epsilon": float(self.epsilon), "every": self.every}
        for name, value in mine.items():
            if state.get(name) != value:
                raise UsageError(
                    "resuming ClipRank",
                    got=f"{name} {value}",
                    expected=f"{state.get(name)}, as the run was started",
                    hint="use another folder for another run",
                )
        found, held = state.get("ranks"), state.get("held")
        if not _fit(found, self.ranks) or not _fit(held, self.ranks) or found.keys() != self.ranks.keys():
            raise FileError(
                "restoring ClipRank",
                got="other state",
                expected=f"a rank for each of {', '.join(self.ranks)}",
            )
        self.ranks, self._held = dict(found), dict(held)


def forget_(optimizer: Optimizer, parameter: Tensor) -> None:
    """Let the optimizer know no more of a parameter than on the first step.

    >>> import torch
    >>> weight = nn.Parameter(torch.ones(2))
    >>> adam = torch.optim.Adam([weight]); weight.grad = torch.ones(2); adam.step()
    >>> forget_(adam, weight); len(adam.state)
    0
    """
    state = optimizer.state.get(parameter, {})
    if state.keys() <= {"momentum_buffer"}:  # fused SGD wants one of all parameters or of none
        if isinstance(state.get("momentum_buffer"), Tensor):
            state["momentum_buffer"].zero_()
    else:
        del optimizer.state[parameter]


def _factors(pair: nn.Module) -> tuple[Tensor, Tensor, int]:
    basis, mix = pair.get_parameter("0.weight"), pair.get_parameter("1.weight")
    return mix, basis, int(getattr(pair.get_submodule("1"), "groups", 1))


def _fit(found: object, known: Mapping[str, int]) -> bool:
    return isinstance(found, Mapping) and all(
        name in known and type(rank) is int and 0 <= rank <= known[name] for name, rank in found.items()
    )
