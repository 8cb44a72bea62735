"""Let the filters of a layer attract each other, so that it can be factorized with a lower rank."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, final

from torch import nn

from gracile.algebra import Attraction, add_force_, filters, mean_cosine
from gracile.errors import UsageError
from gracile.train.method import Method, Run
from gracile.train.schedule import Schedule, constant

LOOK_EVERY = 20
"""Steps between looks for collapsed layers: each makes a GPU wait."""


@final
class Force(Method):
    """Turn the filters of each layer towards each other while training (C5 (force regularization)).

    g' = g + strength * -dW after clipping and inside the momentum, with the force dW of
    :func:`gracile.algebra.add_force_`. Filters turn and keep their length.

    A strong force turns all filters of a layer into one, and a layer of rank 1 has nothing left to say. So
    the mean cosine between the filters of a layer is looked at, and past ``limit`` the force of this layer
    stops for good, or a warning is given. A strong force that stops so early leaves the loss the rest of
    the run to spread the filters again, around their common direction (measured in the card of C5).

    Strength 0 leaves training bit-identical. In ``adaptive`` scale the force is as long as the gradient it
    finds, to which the methods before it in the list may have added.

    Args:
        attractions: which filters attract each other, and how strongly; see :func:`attractions_of`.
        every: steps from one force to the next, which is that many times as strong. By default 1, and
            4 where an attraction is ``l1``, whose products with all pairs of filters cost 9 % of a training
            step of ResNet-18: filters turn slowly, so that little changes but the cost.
        schedule: multiplies all strengths, e.g. ``until(0.8)`` to let the loss have the last word.
        limit: mean cosine between the filters of a layer that has collapsed, in (0, 1].
        collapsed: what is done then: ``stop`` the layer's force, or ``warn``, once, and go on.

    Raises:
        UsageError: an unknown word, a number outside its range; a wrong name is told when training starts.

    >>> import torch
    >>> from gracile.algebra import filters
    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    >>> run = Run(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=1)
    >>> method = Force([Attraction(filters("weight"), 1.0)])
    >>> method.start(run); method.gradients(run); model.weight.grad
    tensor([[ 0.0000, -1.0000],
            [-0.5000,  0.0000]])
    """

    def __init__(
        self,
        attractions: Iterable[Attraction],
        *,
        every: int | None = None,
        schedule: Schedule | None = None,
        limit: float = 0.95,
        collapsed: Literal["stop", "warn"] = "stop",
    ) -> None:
        self.attractions = tuple(attractions)
        if every is None:
            every = 4 if any(a.kind == "l1" for a in self.attractions) else 1
        self.every, self.schedule = every, schedule or constant()
        self.limit, self.reaction = limit, collapsed
        self._collapsed = [False] * len(self.attractions)
        if collapsed not in ("stop", "warn"):
            raise UsageError("Force", got=f"collapsed={collapsed!r}", expected="'stop' or 'warn'")
        if not isinstance(every, int) or every < 1:
            raise UsageError("Force", got=f"every={every!r}", expected="1 or more steps")
        if not 0 < limit <= 1:
            raise UsageError("Force", got=f"limit={limit}", expected="a cosine in (0, 1]")

    @property
    def collapsed(self) -> list[str]:
        """The tensors whose filters have been found collapsed."""
        return [_name(a) for a, found in zip(self.attractions, self._collapsed, strict=True) if found]

    def start(self, run: Run) -> None:
        """Measure all layers once, so that a wrong name or pattern is told before training."""
        self._collapsed = [False] * len(self.attractions)
        parameters = run.parameters
        for attraction in self.attractions:
            mean_cosine(attraction.grouping.of(parameters), attraction.banks)

    def gradients(self, run: Run) -> None:
        factor = self.schedule(run.progress) * self.every
        scaled = [replace(a, strength=factor * a.strength) for a in self.attractions]
        if not any(a.strength for a in scaled):
            return
        if run.step % LOOK_EVERY == 0:
            self._look(run)
        if run.step % self.every:
            return
        still = [
            attraction
            for attraction, collapsed in zip(scaled, self._collapsed, strict=True)
            if not (collapsed and self.reaction == "stop")
        ]
        add_force_(still, run.parameters)

    def state_dict(self) -> dict[str, Any]:
        return {
            "strengths": [float(attraction.strength) for attraction in self.attractions],
            "kinds": [f"{a.kind} {a.pairs} {a.scale}" for a in self.attractions],
            "every": self.every,
            "collapsed": list(self._collapsed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back which layers have collapsed; raise UsageError when the run had other forces."""
        for name in ("strengths", "kinds", "every"):
            if state.get(name) != self.state_dict()[name]:
                raise UsageError(
                    "resuming Force",
                    got=f"{name} {self.state_dict()[name]}",
                    expected=f"{state.get(name)}, as the run was started",
                    hint="use another folder for another run",
                )
        self._collapsed = [bool(found) for found in state["collapsed"]]

    def _look(self, run: Run) -> None:
        parameters = run.parameters
        for number, attraction in enumerate(self.attractions):
            if self._collapsed[number] or not attraction.strength:
                continue
            cosine = mean_cosine(attraction.grouping.of(parameters), attraction.banks).item()
            if cosine <= self.limit:
                continue
            self._collapsed[number] = True
            if self.reaction == "warn" and run.rank == 0:
                warnings.warn(
                    f"the filters of '{_name(attraction)}' have collapsed at step {run.step}: mean cosine "
                    f"{cosine:.3f} is above {self.limit}; lower the strength",
                    stacklevel=2,
                )


def attractions_of(
    model: nn.Module,
    strength: float,
    *,
    layers: Iterable[str] | None = None,
    kind: Literal["l2", "l1"] = "l2",
    pairs: Literal["mean", "sum"] = "mean",
    scale: Literal["fixed", "adaptive"] = "fixed",
) -> list[Attraction]:
    """The attractions of a network: one for each layer, within the groups of a grouped convolution.

    Args:
        model: any network.
        strength: of all layers, see :class:`gracile.algebra.Attraction`.
        layers: names of modules with a weight. By default all trained convolutions but the first, as C5 does;
            C5 also leaves out the shortcuts of a residual network.
        kind: ``l2`` or ``l1``.
        pairs: ``mean`` or ``sum``.
        scale: ``fixed`` or ``adaptive``.

    Raises:
        UsageError: a name of no such module, or a model without a second convolution and no ``layers``.

    >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Linear(8, 2))
    >>> [(a.grouping.views[0].tensor, a.banks) for a in attractions_of(model, 0.01)]
    [('2.weight', 2)]
    """
    modules = dict(model.named_modules())
    convolutions = [name for name, module in modules.items() if isinstance(module, nn.modules.conv._ConvNd)]
    names = (
        [name for name in convolutions[1:] if _attracts(modules[name])] if layers is None else list(layers)
    )
    for name in names:
        if not _has_filters(modules.get(name)):
            raise UsageError(
                "force regularization",
                got=f"layer '{name}'",
                expected="a module whose weight has a row for each output",
                hint="names are those of model.named_modules()",
            )
    if not names:
        raise UsageError(
            "force regularization",
            got="no layer",
            expected="two or more convolutions",
            hint="name the layers, e.g. layers=['fc1']",
        )
    return [
        Attraction(
            filters(f"{name}.weight"), strength, kind, pairs, scale, int(getattr(modules[name], "groups", 1))
        )
        for name in names
    ]


def _attracts(module: nn.Module) -> bool:
    """Whether its filters can turn towards each other: in a depthwise convolution each is alone."""
    return _has_filters(module) and module.weight.requires_grad and module.out_channels > module.groups


def _has_filters(module: nn.Module | None) -> bool:
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)  # its rows are inputs
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() > 1 and not transposed


def _name(attraction: Attraction) -> str:
    return ", ".join(view.tensor for view in attraction.grouping.views)
