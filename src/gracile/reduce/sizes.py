"""What modules of ``torch.nn`` say about their own sizes, read off the shapes of their tensors.

``in_features`` of a Linear or ``num_features`` of a batch norm play no part in the forward pass; they are
what people print and what other code asks. They follow the tensors here. Sizes that a forward pass does use
are in the record of the cut, which goes first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

Shape = tuple[int, ...]

# attribute: (tensor, dimension, attribute that multiplies it)
_Row = Mapping[str, tuple[str, int, str | None]]

_TABLE: tuple[tuple[tuple[type[nn.Module], ...], _Row], ...] = (
    ((nn.Linear,), {"out_features": ("weight", 0, None), "in_features": ("weight", 1, None)}),
    (
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        {"in_channels": ("weight", 0, None), "out_channels": ("weight", 1, "groups")},
    ),
    (
        (nn.Conv1d, nn.Conv2d, nn.Conv3d),
        {"out_channels": ("weight", 0, None), "in_channels": ("weight", 1, "groups")},
    ),
    (
        (nn.modules.batchnorm._NormBase,),
        {"num_features": ("weight", 0, None)},
    ),
    ((nn.GroupNorm,), {"num_channels": ("weight", 0, None)}),
    ((nn.PReLU,), {"num_parameters": ("weight", 0, None)}),
    (
        (nn.Embedding, nn.EmbeddingBag),
        {"num_embeddings": ("weight", 0, None), "embedding_dim": ("weight", 1, None)},
    ),
    (
        (nn.Bilinear,),
        {
            "out_features": ("weight", 0, None),
            "in1_features": ("weight", 1, None),
            "in2_features": ("weight", 2, None),
        },
    ),
    ((nn.LSTM, nn.GRU, nn.RNN), {"input_size": ("weight_ih_l0", 1, None), "hidden_size": ("gates", 0, None)}),
    (
        (nn.LSTMCell, nn.GRUCell, nn.RNNCell),
        {"input_size": ("weight_ih", 1, None), "hidden_size": ("weight_hh", 1, None)},
    ),
)
_GATES = {"LSTM": 4, "GRU": 3}
# A tensor under a parametrization or an older re-parametrization goes by another name, of the same shape.
_STAND_INS = ("{}", "parametrizations.{}.original1", "parametrizations.{}.original", "{}_orig", "{}_v")


def stated_sizes(
    module: nn.Module, shape_of: Callable[[str], Shape | None], new: Mapping[str, object]
) -> dict[str, int | tuple[int, ...]]:
    """The size attributes that ``module`` should carry when its tensors have the shapes ``shape_of(name)``.

    Args:
        module: any module; one of no known type gives no attributes.
        shape_of: shape of one of the module's tensors by name, None if there is none.
        new: attributes of this module that are being changed otherwise (``groups`` of a convolution).

    >>> shapes = {"weight": (3, 5)}
    >>> stated_sizes(nn.Linear(8, 4), shapes.get, {})
    {'out_features': 3, 'in_features': 5}
    """

    def shape(name: str) -> Shape | None:
        found = (shape_of(pattern.format(name)) for pattern in _STAND_INS)
        return next((s for s in found if s is not None), None)

    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        whole = shape("weight")
        return {} if whole is None else {"normalized_shape": whole}
    sizes: dict[str, int | tuple[int, ...]] = {}
    for attribute, (tensor, dim, factor) in _row(module).items():
        if tensor == "gates":  # the rows of an RNN's recurrent weight are gates x hidden units
            dims = shape("weight_hh_l0")
            size = None if dims is None else dims[0] // _GATES.get(module.mode, 1)
        else:
            dims = shape(tensor) or (shape("running_mean") if attribute == "num_features" else None)
            size = None if dims is None else dims[dim]
        if size is not None:
            multiple = new.get(factor, getattr(module, factor)) if factor else 1
            sizes[attribute] = size * multiple
    if getattr(module, "proj_size", 0) and (dims := shape("weight_hr_l0")):
        sizes["proj_size"] = dims[0]
    return sizes


def _row(module: nn.Module) -> _Row:
    return next((row for types, row in _TABLE if isinstance(module, types)), {})
