"""What stands in the place of a module that was removed whole: next to nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from gracile.errors import ShapeError, UsageError
from gracile.graph.bypass import nested
from gracile.graph.cut import Cut, Dropped

ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "": lambda x: x,
    "relu": torch.relu,
    "relu6": functional.relu6,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
}


class Stump(nn.Module):
    """What is left of a module.

    Its plain attributes are kept, and None in the place of parameters and buffers, because code around it
    may ask: ``layer.batch_first``, ``if attention.in_proj_bias is None``.

    Args:
        original: the module that goes.
        dropped: what is known of it.
    """

    shift: Tensor | None

    def __init__(self, original: nn.Module, dropped: Dropped) -> None:
        super().__init__()
        for name in (*original._parameters, *original._buffers):
            self.register_parameter(name, None)
        plain = (str, int, float, bool, type(None))
        vars(self).update({name: value for name, value in vars(original).items() if type(value) in plain})
        self._stump_given = dropped.given
        self._stump_rest = (None,) * (dropped.returned - 1) if dropped.returned else None
        tensors = [x for x in (*original.parameters(), *original.buffers()) if x.is_floating_point()]
        shift = None
        if dropped.shift is not None:
            shift = tensors[0].detach().new_zeros(dropped.shift) if tensors else torch.zeros(dropped.shift)
        self._parameters.pop("shift", None)
        self.register_buffer("shift", shift)

    def _given(self, args: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
        given = self._stump_given
        x: Tensor = args[given] if isinstance(given, int) else named[given]
        return x

    def _returned(self, y: Tensor) -> Any:
        return y if self._stump_rest is None else (y, *self._stump_rest)


@final
class Bypass(Stump):
    """y = act(x + shift) in the place of a block act(x + f(x)) whose f is that constant, or gone.

    >>> Bypass(nn.Linear(2, 2), Dropped("bypass"))(torch.ones(1, 2))
    tensor([[1., 1.]])
    """

    def __init__(self, original: nn.Module, dropped: Dropped) -> None:
        super().__init__(original, dropped)
        self._stump_activation = dropped.activation

    def forward(self, *args: Any, **named: Any) -> Any:
        """Takes whatever the original took; the same shape out as in."""
        x = self._given(args, named)
        y = x if self.shift is None else x + self.shift
        return self._returned(ACTIVATIONS[self._stump_activation](y))

    def extra_repr(self) -> str:
        return self._stump_activation


@final
class Silent(Stump):
    """y = shift in the place of a branch that is that constant, or gone (then zero).

    The result has the shape of what is given; if the branch changed it, it is one that broadcasts.

    >>> Silent(nn.Linear(2, 2), Dropped("silent"))(torch.ones(1, 2))
    tensor([[0., 0.]])
    """

    def __init__(self, original: nn.Module, dropped: Dropped) -> None:
        super().__init__(original, dropped)
        self._stump_full = dropped.kind == "silent"

    def forward(self, *args: Any, **named: Any) -> Any:
        """Takes whatever the original took."""
        x = self._given(args, named)
        y = x.new_zeros(()) if self.shift is None else self.shift
        return self._returned(y.expand(x.shape).clone() if self._stump_full else y)


def stumps(model: nn.Module, cut: Cut) -> Iterator[tuple[dict[str, Any], str, Stump]]:
    """What ``cut`` puts in the place of which modules: the dictionary that holds a module, its name in there,
    and the new one. A module that is reached by several paths is replaced at the paths that the cut names.

    Raises:
        UsageError: a path leads to no module, to the model itself, or into another one that goes; the cut
            slices tensors as well; or what is said of a module makes no sense.
        ShapeError: a constant is larger than the module that emitted it.
    """
    if not cut.dropped:
        return
    modules = dict(model.named_modules(remove_duplicate=False))
    inside = set(nested(cut.dropped))
    if cut.tensors or cut.attributes:
        raise _refused("tensors to slice beside modules to drop", "one of the two; make two cuts of it")
    made: dict[tuple[int, str], Stump] = {}
    for path, dropped in cut.dropped.items():
        original = modules.get(path)
        if not path or original is None or path in inside or isinstance(original, Stump):
            raise _refused(f"{path[:200]!r} as a module to drop", "a module inside the model, and each once")
        if dropped.activation not in ACTIVATIONS:
            raise _refused(f"activation {dropped.activation[:80]!r}", f"one of {', '.join(ACTIVATIONS)}")
        if not 0 <= dropped.returned <= 64 or (
            isinstance(dropped.given, int) and not 0 <= dropped.given <= 64
        ):
            raise _refused(f"{dropped}"[:200], "positions that a call can have")
        _check_shift(path, original, dropped.shift)
        new = made.setdefault((id(original), repr(dropped)), _stump(original, dropped))
        parent, _, name = path.rpartition(".")
        yield modules[parent]._modules, name, new


def lost_parameters(model: nn.Module, cut: Cut) -> set[int]:
    """Identities of the parameters that are in dropped modules and nowhere else."""
    modules = dict(model.named_modules(remove_duplicate=False))
    stays, goes = set[int](), set[int]()
    for path, module in modules.items():
        parts = path.split(".")
        dropped = any(".".join(parts[:n]) in cut.dropped for n in range(1, len(parts) + 1))
        (goes if dropped else stays).update(id(p) for p in module._parameters.values() if p is not None)
    return goes - stays


def _check_shift(path: str, original: nn.Module, shift: list[int] | None) -> None:
    size = sum(x.numel() for x in (*original.parameters(), *original.buffers()))
    if shift is not None and (len(shift) > 8 or any(n < 1 for n in shift) or math.prod(shift) > max(size, 1)):
        raise ShapeError(
            "applying a cut",
            got=f"a constant of shape {str(shift)[:80]} from {path[:200]!r}",
            expected=f"at most 8 dimensions and {size} values",
        )


def _stump(original: nn.Module, dropped: Dropped) -> Stump:
    return (Bypass if dropped.kind == "bypass" else Silent)(original, dropped).train(original.training)


def _refused(got: str, expected: str) -> UsageError:
    return UsageError(
        "applying a cut",
        got=got,
        expected=expected,
        hint="the cut was made for another class, or for this one built with other arguments",
    )
