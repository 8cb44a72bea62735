"""Prune only where it makes the network faster: guided sparsity learning (C23)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor

from gracile.algebra import elements
from gracile.cost import Roof, densities
from gracile.errors import FileError, UsageError
from gracile.train.freeze import Freeze
from gracile.train.method import Method, Run

Standing = Literal["dense", "pruning", "reached", "restored"]
Pruning = Callable[[str], Sequence[Method]]
"""Makes the methods that prune one weight, from its name."""


@final
class Guided(Method):
    """Run pruning methods on the layers that a roofline projects to gain, and on those only.

    At the start a layer whose projected speed-up exceeds 1 at no density is left dense. Then, after every
    ``every`` epochs, the density x of each layer that is being pruned is compared with its useful range:

    - x <= lower bound: fewer weights would hardly help. Pruning stops and the zeros stay (``reached``).
    - x > upper bound and settled, that is changed by less than ``settled`` in each of ``patience``
      comparisons in a row: it will not become fast. Pruning stops and the layer gets back the dense weights
      that it had when training started (``restored``), so that what it could lose in accuracy for nothing
      is not lost.

    The rest of the run is training with what came out. How a layer is pruned is up to the methods::

        lambda name: [Structure([Term(elements(name), Lasso(), 1e-4)])]  # L1 and a threshold: GESL
        lambda name: [Surgery([name], Threshold(0.03))]  # dynamic network surgery: GDNS

    Groups work as well, as long as the engine behind the roofline makes use of them.

    Args:
        layers: rows of :func:`gracile.cost.roofline`.
        prune: makes the methods for a weight, from its name.
        every: epochs between comparisons.
        settled: change of the density that counts as none.
        patience: comparisons without a change before a layer is given up.

    Raises:
        UsageError: a number out of its range; when training starts, bounds that are unknown or a weight that
            is none of the network's.

    Source: C23 (direct sparse convolutions), section 2.3. When the comparisons take place and what counts as
    settled is not stated there.

    >>> from gracile.algebra import Threshold
    >>> from gracile.cost import machines
    >>> from gracile.train.surgery import Prune
    >>> model = torch.nn.Conv1d(2, 2, 1)
    >>> row = Roof("", "weight", 1e9, 1e5, 16, machines()["xeon-e5-2697v4"])
    >>> guided = Guided([row], lambda name: [Prune([name], Threshold(0.0))])
    >>> run = Run(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=8); guided.start(run)
    >>> _ = model.weight.data.zero_(); guided.after_epoch(run, {}); guided.standing
    {'weight': 'reached'}
    """

    def __init__(
        self,
        layers: Iterable[Roof],
        prune: Pruning,
        *,
        every: int = 1,
        settled: float = 0.01,
        patience: int = 3,
    ) -> None:
        self.layers = {row.weight: row for row in layers}
        self.prune, self.every, self.settled, self.patience = prune, every, settled, patience
        if every < 1 or patience < 1 or not settled >= 0:
            raise UsageError(
                "Guided",
                got=f"every={every}, patience={patience}, settled={settled}",
                expected="1 or more epochs and comparisons, and a change of 0 or more",
            )
        self.standing: dict[str, Standing] = {}
        self.densities: dict[str, float] = {}
        """At the last comparison, by the weight's name."""
        self._methods: dict[str, Sequence[Method]] = {}
        self._dense: dict[str, Tensor] = {}
        self._unchanged: dict[str, int] = {}

    def start(self, run: Run) -> None:
        self._run = run
        parameters = run.parameters
        unknown = [name for name in self.layers if name not in parameters]
        if unknown:
            raise UsageError(
                "Guided",
                got=f"'{unknown[0]}', no parameter of {type(run.model).__name__}",
                expected="rows of roofline(model, ...) for this model",
            )
        self.standing = {name: "pruning" if row.worthwhile else "dense" for name, row in self.layers.items()}
        pruned = [name for name, standing in self.standing.items() if standing == "pruning"]
        self._dense = {name: parameters[name].detach().clone() for name in pruned}
        self._unchanged = dict.fromkeys(pruned, 0)
        self.densities = densities(run.model, self.layers)
        self._methods = {name: tuple(self.prune(name)) for name in pruned}
        for method in self._all():
            method.start(run)

    def before_forward(self, run: Run) -> None:
        for method in self._all():
            method.before_forward(run)

    def after_forward(self, run: Run) -> None:
        for method in self._all():
            method.after_forward(run)

    def loss(self, run: Run, loss: Tensor) -> Tensor:
        for method in self._all():
            loss = method.loss(run, loss)
        return loss

    def undo(self, run: Run) -> None:
        for method in reversed(self._all()):
            method.undo(run)

    def after_backward(self, run: Run) -> None:
        for method in self._all():
            method.after_backward(run)

    def gradients(self, run: Run) -> None:
        for method in self._all():
            method.gradients(run)

    def after_step(self, run: Run) -> None:
        for method in self._all():
            method.after_step(run)

    def mask(self, run: Run) -> None:
        for method in self._all():
            method.mask(run)

    def after_epoch(self, run: Run, metrics: Mapping[str, float]) -> None:
        for method in self._all():
            method.after_epoch(run, metrics)
        if run.epoch % self.every == 0:
            now = densities(run.model, self.layers)
            for name in [name for name, standing in self.standing.items() if standing == "pruning"]:
                self._compare(run, name, now[name])
            self.densities = densities(run.model, self.layers)

    def finish(self, run: Run) -> None:
        for method in self._all():
            method.finish(run)
        self.densities = densities(run.model, self.layers)

    def state_dict(self) -> dict[str, Any]:
        return {
            "settings": [self.every, float(self.settled), self.patience],
            "standing": dict(self.standing),
            "densities": {name: float(density) for name, density in self.densities.items()},
            "unchanged": dict(self._unchanged),
            "dense": dict(self._dense),
            "methods": {name: [m.state_dict() for m in methods] for name, methods in self._methods.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what was stored; UsageError for other settings, FileError for other layers."""
        mine = self.state_dict()
        if state.get("settings") != mine["settings"]:
            raise UsageError(
                "resuming Guided",
                got=f"every, settled, patience = {mine['settings']}",
                expected=f"{state.get('settings')}, as the run was started",
                hint="use another folder for another run",
            )
        if set(state.get("standing", ())) != set(self.layers):
            raise FileError("restoring Guided", got="other layers", expected=", ".join(self.layers))
        self.standing, self.densities = dict(state["standing"]), dict(state["densities"])
        self._unchanged = dict(state["unchanged"])
        places = {name: p.device for name, p in self._run.parameters.items()}
        self._dense = {name: tensor.to(places[name]) for name, tensor in state["dense"].items()}
        for name in list(self._methods):
            if self.standing[name] != "pruning":
                self._methods[name] = self._after(self._run, name)
            for method, part in zip(self._methods[name], state["methods"].get(name, ()), strict=True):
                method.load_state_dict(part)

    def _all(self) -> list[Method]:
        return [method for methods in self._methods.values() for method in methods]

    def _compare(self, run: Run, name: str, density: float) -> None:
        """Decide whether pruning of one weight goes on."""
        row = self.layers[name]
        same = abs(density - self.densities[name]) < self.settled
        self._unchanged[name] = self._unchanged[name] + 1 if same else 0
        if density <= row.lower:
            self._stop(run, name, "reached")
        elif density > row.upper and self._unchanged[name] >= self.patience:
            self._stop(run, name, "restored")

    @torch.no_grad()
    def _stop(self, run: Run, name: str, standing: Standing) -> None:
        self.standing[name] = standing
        dense, parameter = self._dense.pop(name), run.parameters[name]
        if standing == "restored" and ((parameter == 0) & (dense != 0)).any():
            parameter.copy_(dense)
        self._methods[name] = self._after(run, name)

    def _after(self, run: Run, name: str) -> Sequence[Method]:
        """What keeps the zeros of a weight whose pruning has stopped."""
        if self.standing[name] != "reached":
            return ()
        freeze = Freeze([elements(name)])
        freeze.start(run)
        return (freeze,)
