"""Low rank: a convolution or linear layer becomes two thinner ones, a basis and a mix of it.

    y = W * x + b   becomes   y = mix · (basis * x) + b

The basis is a layer of K filters with the kernel, stride, padding, dilation and groups of the original and no
bias; the mix is linear or a convolution of size 1, with the original bias. A network after that is ordinary:
its K components are units that can be watched, penalized and removed like any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import chain
from typing import Final

import torch
from torch import Tensor, nn

from gracile.algebra import Factoring, factor
from gracile.errors import RefusedError, UsageError
from gracile.reduce.copies import duplicate

KINDS: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONTAINERS: Final = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
OTHER: Final = "neither linear nor convolutional"
_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def factorize(model: nn.Module, ranks: Mapping[str, int], method: Factoring = "pca") -> nn.Module:
    """A copy of ``model`` in which each named layer is an ``nn.Sequential`` of basis and mix.

    With rank min(outputs, inputs · kernel), of one group, the copy computes the same up to rounding.

    Args:
        model: any module; it is left untouched.
        ranks: layer -> number of components K, of each group of a grouped convolution. Layers are
            ``nn.Linear`` and ``nn.Conv1d`` to ``nn.Conv3d`` by their paths.
        method: ``"pca"``, ``"svd"`` or ``"kmeans"``, see :func:`gracile.algebra.factor`.

    Raises:
        UsageError: the model has no such layer, or the layer no such rank, or weights that are not finite.
        RefusedError: a layer whose weight is tied, parametrized or read by others, or of another kind, such
            as a transposed convolution.

    Source: C5 (force regularization), the decomposition of the authors' code.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> small = factorize(net, {"2": 2})
    >>> small[2]
    Sequential(
      (0): Conv2d(8, 2, kernel_size=(3, 3), stride=(1, 1), bias=False)
      (1): Conv2d(2, 4, kernel_size=(1, 1), stride=(1, 1))
    )
    """
    small = duplicate(model)
    factors = {name: factor(numbers_of(small, name), ranks[name], method) for name in _chosen(small, ranks)}
    split_(small, ranks)
    with torch.no_grad():
        for name, pair in ((name, small.get_submodule(name)) for name in ranks):
            for weight, part in zip((pair[1].weight, pair[0].weight), factors[name], strict=True):
                weight.copy_(part.reshape(weight.shape))
    return small


def split_(model: nn.Module, ranks: Mapping[str, int]) -> None:
    """Put pairs of the right shapes in the place of layers, in place; their weights hold nothing yet.

    Raises:
        UsageError, RefusedError: as :func:`factorize`.
    """
    for name, layer in _chosen(model, ranks).items():
        parent, _, own = name.rpartition(".")
        model.get_submodule(parent)._modules[own] = _pair(layer, ranks[name])


def matrix_of(layer: nn.Module) -> Tensor:
    """The weight of a convolution or linear layer as one matrix a group: (groups, outputs, inputs · kernel).

    >>> matrix_of(nn.Conv2d(4, 6, 3, groups=2)).shape
    torch.Size([2, 3, 18])
    """
    weight = layer.get_parameter("weight").detach()
    return weight.reshape(groups_of(layer), -1, weight[0].numel())


def numbers_of(model: nn.Module, name: str) -> Tensor:
    """:func:`matrix_of` the layer ``name``; raises UsageError, which names it, where one is not finite."""
    matrix = matrix_of(model.get_submodule(name))
    if not bool(matrix.isfinite().all()):
        raise UsageError(
            f"factorizing '{name}'", got="a weight that is not finite", expected="finite numbers"
        )
    return matrix


def groups_of(layer: nn.Module) -> int:
    """Groups of a convolution; 1 for a linear layer."""
    return int(getattr(layer, "groups", 1))


def pairs(model: nn.Module) -> dict[str, nn.Sequential]:
    """The pairs of basis and mix in a model, by path: of :func:`factorize`, or built alike by hand.

    >>> list(pairs(factorize(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), {"1": 2})))
    ['1']
    """
    return {name: module for name, module in model.named_modules() if _is_pair(module)}


def reasons(model: nn.Module) -> dict[str, str]:
    """For every convolution and linear layer, by path, why it cannot be factored, or nothing.

    >>> reasons(nn.Sequential(nn.Linear(3, 2), nn.ConvTranspose1d(3, 3, 1)))
    {'0': '', '1': 'a transposed convolution'}
    """
    places = dict(model.named_modules(remove_duplicate=False))
    paths = Counter(id(module) for module in places.values())
    own = ((id(p) for p in module._parameters.values() if p is not None) for module in model.modules())
    holders = Counter(chain.from_iterable(own))
    layers = (*KINDS, nn.modules.conv._ConvNd)
    return {
        name: _reason(name, module, places, paths, holders)
        for name, module in places.items()
        if isinstance(module, layers)
    }


def refusal(operation: str, layer: nn.Module, reason: str) -> RefusedError:
    return RefusedError(
        operation,
        got=f"{type(layer).__name__}, {reason}",
        expected="a linear or convolutional layer whose weight is its own",
    )


def _chosen(model: nn.Module, ranks: Mapping[str, int]) -> dict[str, nn.Module]:
    modules = dict(model.named_modules(remove_duplicate=False))
    against = reasons(model)
    for name, rank in ranks.items():
        if name not in modules:
            known = ", ".join(n for n, reason in against.items() if not reason)
            raise UsageError(
                "factorizing", got=f"a layer {name[:200]!r}", expected=f"one of {known or 'none'}"[:400]
            )
        if against.get(name, OTHER):
            raise refusal(f"factorizing '{name}'", modules[name], against.get(name, OTHER))
        full = min(matrix_of(modules[name]).shape[1:])
        if type(rank) is not int or not 1 <= rank <= full:
            raise UsageError(
                f"factorizing '{name}'", got=f"rank {str(rank)[:40]}", expected=f"from 1 to {full}"
            )
    return {name: modules[name] for name in ranks}


def _reason(
    name: str, layer: nn.Module, places: Mapping[str, nn.Module], paths: Counter[int], holders: Counter[int]
) -> str:
    parent = places[name.rpartition(".")[0]]
    weight = layer._parameters.get("weight")
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return "a transposed convolution"
    if weight is None:
        return "whose weight is parametrized"
    if type(layer) not in KINDS:
        return "a class of its own, which may compute something else"
    if not name:
        return "the model itself, which has no place to be replaced in"
    if paths[id(layer)] > 1:
        return "reached by several paths"
    if holders[id(weight)] > 1:
        return "whose weight is tied to another module's"
    if weight.is_meta or not weight.is_floating_point() or weight.numel() == 0:
        return "without weights that are numbers"
    if len(layer._parameters) > 2 or layer._buffers or layer._modules:
        return "which holds more than weight and bias"
    if any(getattr(layer, hooks) for hooks in _HOOKS):
        return "with hooks, which would be lost"
    if type(parent).__module__.startswith("torch.nn.") and not isinstance(parent, _CONTAINERS):
        return f"inside of {type(parent).__name__}, which may read its weight"
    return ""


def _pair(layer: nn.Module, rank: int) -> nn.Sequential:
    weight = layer.get_parameter("weight")
    like = {"device": weight.device, "dtype": weight.dtype, "bias": False}
    make = nn.utils.skip_init  # draws no random numbers
    if isinstance(layer, nn.Linear):
        basis = make(nn.Linear, layer.in_features, rank, **like)
        mix = make(nn.Linear, rank, layer.out_features, **like)
    else:
        shape = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation")}
        kind, groups = type(layer), groups_of(layer)
        wide = rank * groups
        basis = make(
            kind, layer.in_channels, wide, **shape, groups=groups, padding_mode=layer.padding_mode, **like
        )
        mix = make(kind, wide, layer.out_channels, kernel_size=1, groups=groups, **like)
    mix.bias = layer.bias  # the same object: whoever else holds it goes on doing so
    pair = nn.Sequential(basis, mix).train(layer.training)
    for part in pair:
        part.weight.requires_grad_(weight.requires_grad)
    return pair


def _is_pair(module: nn.Module) -> bool:
    if type(module) is not nn.Sequential or len(module) != 2:
        return False
    basis, mix = module
    if type(basis) is not type(mix) or type(mix) not in KINDS or basis.bias is not None:
        return False
    if groups_of(basis) != groups_of(mix) or any(p is None for p in (basis.weight, mix.weight)):
        return False
    if basis.weight.shape[0] != groups_of(mix) * mix.weight.shape[1]:
        return False
    if isinstance(mix, nn.Linear):
        return True
    plain = {"kernel_size": 1, "stride": 1, "padding": 0}
    return all(set(getattr(mix, name)) == {value} for name, value in plain.items())
