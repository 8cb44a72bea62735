"""How many components a layer needs: ranks by a share of energy, and which ranks pay at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from gracile.algebra import rank_within, spectrum
from gracile.errors import UsageError
from gracile.reduce.factorize import OTHER, matrix_of, numbers_of, reasons, refusal


def ranks_by_energy(model: nn.Module, share: float, layers: Iterable[str] | None = None) -> dict[str, int]:
    """The smallest ranks that keep a share of every layer's energy, for :func:`gracile.reduce.factorize`.

    K = min{K : sum_{k<=K} s_k² >= share · sum_k s_k²} with the singular values s of the layer's matrix (of a
    grouped convolution the squares are summed over the groups, which have one rank). Energy is not accuracy:
    under force regularization it gathers in one common direction while the classes sit in the rest, so judge
    ranks by accuracy after factorizing.

    Args:
        model: any module.
        share: of the energy, 0 < share <= 1.
        layers: paths; by default every layer that can be factored and for which the rank pays, which is
            K < N M / (N + M) with N outputs and M inputs · kernel. :func:`left_alone` names the others.

    Raises:
        UsageError: a share outside of (0, 1], a layer that does not exist, or weights that are not finite.
        RefusedError: a named layer cannot be factored.

    Source: C5 (force regularization), the authors' code, where the share is 0.95.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 4))
    >>> _ = net[0].weight.data.copy_(torch.ones(30, 40))
    >>> ranks_by_energy(net, 0.95), ranks_by_energy(net, 1.0, layers=["0"])
    ({'0': 1}, {'0': 1})
    """
    if not 0 < share <= 1:
        raise UsageError("choosing ranks", got=f"a share of {share}", expected="0 < share <= 1")
    named = layers is not None
    chosen = _named(model, layers) if layers is not None else paying(model)
    ranks = {name: rank_within(spectrum(numbers_of(model, name)), 1 - share) for name in chosen}
    return {name: rank for name, rank in ranks.items() if named or rank <= chosen[name]}


def paying(model: nn.Module) -> dict[str, int]:
    """For every layer that can be factored the largest rank with which that is cheaper; 0 where none is.

    K (N + M) < N M, in parameters and multiply-accumulates alike, with N outputs and M inputs · kernel of one
    group.

    >>> paying(nn.Sequential(nn.Linear(30, 20), nn.Conv2d(4, 4, 3, groups=4)))
    {'0': 11, '1': 0}
    """
    return {name: _paying(model.get_submodule(name)) for name, reason in reasons(model).items() if not reason}


def left_alone(model: nn.Module, ranks: Mapping[str, int]) -> dict[str, str]:
    """Why the other convolutions and linear layers are not factored, by path.

    Args:
        model: the module before :func:`gracile.reduce.factorize`.
        ranks: what is factored.

    >>> left_alone(nn.Sequential(nn.Linear(30, 20), nn.ConvTranspose1d(3, 3, 1)), {})
    {'0': 'would cost more with more than 11 components', '1': 'a transposed convolution'}
    """
    most = paying(model)
    return {
        name: reason or f"would cost more with {_more_than(most[name])}"
        for name, reason in reasons(model).items()
        if name not in ranks
    }


def _more_than(count: int) -> str:
    return f"more than {count} components" if count else "any number of components"


def _named(model: nn.Module, layers: Iterable[str]) -> dict[str, int]:
    modules, against, most = dict(model.named_modules(remove_duplicate=False)), reasons(model), paying(model)
    names = [layers] if isinstance(layers, str) else list(layers)
    for name in names:
        if name not in modules:
            raise UsageError(
                "choosing ranks", got=f"a layer {name!r}", expected=f"one of {', '.join(most)}"[:400]
            )
        if name not in most:
            raise refusal(f"choosing the rank of '{name}'", modules[name], against.get(name, OTHER))
    return {name: most[name] for name in names}


def _paying(layer: nn.Module) -> int:
    _, outputs, inputs = matrix_of(layer).shape
    return (outputs * inputs - 1) // (outputs + inputs)
