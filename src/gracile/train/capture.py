"""What a network's modules put out in a forward pass, by name and still differentiable.

Penalties and groupings know tensors by name. So they work on activations as they do on weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, final

from torch import Tensor, nn

from gracile.errors import UsageError


@final
class Captured:
    """Activations by name, in the order in which they came about.

    Args:
        names: those to keep: dotted paths of modules. A module that returns a tuple or a dictionary has
            several: ``"lstm[0]"``, ``"lstm[1][0]"``, ``"encoder[last_hidden_state]"``.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(dict.fromkeys(names))
        self._found: dict[str, list[tuple[Tensor, int]]] = {name: [] for name in self.names}

    @property
    def calls(self) -> dict[str, list[Tensor]]:
        """One tensor for each call of the module; none where it did not run.

        Raises:
            UsageError: an activation was changed in place after its module had returned it, so that it is
                no longer what the module put out.
        """
        for name, found in self._found.items():
            if any(_version(tensor) != version for tensor, version in found):
                raise UsageError(
                    "capturing activations",
                    got=f"'{name}', which was changed in place after its module had returned it",
                    expected="a tensor that stays as it is",
                    hint="capture the module that changes it, or write x = x + y in place of x += y",
                )
        return {name: [tensor for tensor, _ in found] for name, found in self._found.items()}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The activations of modules that ran once, as groupings want them.

        Raises:
            UsageError: a module ran several times; or as in :attr:`calls`.
        """
        calls = self.calls
        several = [name for name, found in calls.items() if len(found) > 1]
        if several:
            raise UsageError(
                "capturing activations",
                got=f"'{several[0]}', which ran {len(calls[several[0]])} times",
                expected="modules that run once",
                hint="use .calls, which mean_loss_of takes",
            )
        return {name: found[0] for name, found in calls.items() if found}

    def add(self, module: str, output: Any) -> None:
        """Keep what is wanted of the output of ``module``.

        Raises:
            UsageError: the output has no tensor of a wanted name.
        """
        found = dict(_named(module, output))
        for name in self.names:
            if _module_of(name) != module:
                continue
            if name not in found:
                raise UsageError(
                    "capturing activations",
                    got=f"no tensor '{name}' in what '{module}' returned",
                    expected=f"one of {', '.join(found) or 'its tensors, but it has none'}",
                )
            self._found[name].append((found[name], _version(found[name])))


@contextmanager
def captured(model: nn.Module, names: Iterable[str]) -> Iterator[Captured]:
    """Keep the outputs of modules of ``model`` while the block runs; afterwards its hooks are gone.

    Inside DistributedDataParallel pass ``wrapper.module``.

    Args:
        model: called in the block, itself or through a wrapper.
        names: see :class:`Captured`.

    Raises:
        UsageError: a name is not that of a module of ``model``.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with captured(model, ["1"]) as activations:
    ...     output = model(torch.ones(4, 2))
    >>> activations.tensors["1"] is output
    True
    """
    kept = Captured(names)
    check_modules(model, kept.names)
    modules = dict(model.named_modules(remove_duplicate=False))
    with ExitStack() as hooks:
        for path in dict.fromkeys(map(_module_of, kept.names)):
            hooks.callback(modules[path].register_forward_hook(_keeper(kept, path)).remove)
        yield kept


def check_modules(model: nn.Module, names: Iterable[str]) -> None:
    """Raise UsageError where a name is not that of a module of ``model``, or two are of the same module."""
    known = dict(model.named_modules(remove_duplicate=False))
    first: dict[nn.Module, str] = {}
    for path in dict.fromkeys(map(_module_of, names)):
        if path not in known:
            raise UsageError(
                "capturing activations",
                got=f"'{path}', no module of {type(model).__name__}",
                expected=f"one of {_some([name for name in known if name])}",
                hint="functional calls have no name; an nn.ReLU() has",
            )
        if first.setdefault(known[path], path) != path:
            raise UsageError(
                "capturing activations",
                got=f"'{first[known[path]]}' and '{path}', which are one module",
                expected="either of the two",
            )


def _keeper(kept: Captured, path: str) -> Callable[[nn.Module, Any, Any], None]:
    return lambda module, inputs, output: kept.add(path, output)


def _named(path: str, output: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        yield path, output
    elif isinstance(output, Mapping):
        for key, part in output.items():
            yield from _named(f"{path}[{key}]", part)
    elif isinstance(output, list | tuple):
        for number, part in enumerate(output):
            yield from _named(f"{path}[{number}]", part)


def _module_of(name: str) -> str:
    return name.partition("[")[0]


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _some(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:12])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > 12 else shown or "the model itself, ''"
