"""Training as many machines would do it, tried on one: what few bits on the wire do to the accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor

from gracile.algebra.philox import Random
from gracile.errors import UsageError
from gracile.train.method import Method, Run
from gracile.wire import scaler
from gracile.wire.messages import average
from gracile.wire.modes import Mode
from gracile.wire.parts import Layer


@final
class Workers(Method):
    """Take the parts of a batch for the batches of workers, and average their gradients as a hook would.

    With ``fit(batch_size=64, ghost_batch=16, methods=[Workers(4)])`` four workers have 16 samples each. The
    numbers are those that :func:`gracile.train.terngrad_hook` makes of the same gradients on as many ranks.

    Args:
        workers: how many, 1 or more: the parts of a batch.
        mode: see :mod:`gracile.wire.modes`; ``fp32`` changes nothing.
        clip: scale in root mean squares; ``None`` for the largest number.
        scale: for every layer its own, or one for the whole model.
        smallest: tensors of fewer numbers travel in single precision.
        exempt: names of parameters that do so too, or beginnings of them.
        seed: of the random numbers.

    Raises:
        UsageError: arguments that make no sense, or a batch of another number of parts.

    Source: C4 (TernGrad).

    >>> from gracile.train import Splits, classification, fit
    >>> from torch.utils.data import TensorDataset
    >>> _ = torch.manual_seed(0)
    >>> data = TensorDataset(torch.eye(4).repeat(8, 1), torch.arange(4).repeat(8))
    >>> history = fit(torch.nn.Linear(4, 4), Splits(data, data, data), classification(), epochs=9,
    ...               batch_size=8, ghost_batch=4, methods=[Workers(2)], device="cpu", progress=False)
    >>> history.test.score
    1.0
    """

    def __init__(
        self,
        workers: int,
        mode: Mode = "exact",
        *,
        clip: float | None = 2.5,
        scale: Literal["layer", "model"] = "layer",
        smallest: int = 1,
        exempt: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        _require("workers", workers >= 1, workers, "1 or more")
        _require("mode", mode in get_args(Mode), mode, f"one of {', '.join(get_args(Mode))}")
        _require("clip", clip is None or clip > 0, clip, "a positive number or None")
        _require("scale", scale in ("layer", "model"), scale, "'layer' or 'model'")
        Random(seed)  # raises where it is none
        self.workers, self.mode, self.clip, self.scale = workers, mode, clip, scale
        self.smallest, self.exempt, self.seed = smallest, tuple(exempt), seed
        self._layers: dict[Layer, Tensor] = {}
        self._given: list[dict[Layer, Tensor]] = []

    def start(self, run: Run) -> None:
        self._given, self._layers = [], {}
        for number, (name, p) in enumerate(run.model.named_parameters()):
            packed = p.numel() >= self.smallest and not name.startswith(self.exempt)
            self._layers[Layer(number, p.numel(), packed)] = p

    def after_backward(self, run: Run) -> None:
        if self.mode == "fp32":
            return
        # Gradients of a part are divided by the number of parts, as they are to be added up.
        taken = {n: p.grad for n, p in self._layers.items() if p.grad is not None}
        self._given.append(
            {n: g.detach().to("cpu", torch.float32).flatten() * self.workers for n, g in taken.items()}
        )
        if len(self._given) < self.workers:
            for g in taken.values():
                g.zero_()
            return
        found = average(
            self._given, self.mode, Random(self.seed, step=run.step), clip=self.clip, scales=self._scales()
        )
        self._given = []
        for layer, g in taken.items():
            g.copy_(found[layer].view_as(g))

    def gradients(self, run: Run) -> None:
        _require("workers", not self._given, self.workers, "as many as a batch has parts (ghost_batch)")

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def load_state_dict(self, state: Any) -> None:
        self.seed = int(state["seed"])

    def _scales(self) -> dict[Layer, float] | None:
        if self.scale == "layer":
            return None
        every = torch.stack([torch.cat([g[n] for n in g if n.packed]) for g in self._given])
        one = max(scaler(gradients, self.clip) for gradients in every)
        return {layer: one for layer in self._given[0] if layer.packed}


def _require(name: str, fine: bool, got: object, expected: str) -> None:
    if not fine:
        raise UsageError("averaging over workers", got=f"{name}={got!r}", expected=expected)
