"""Which blocks are dead: all that they add is a constant, because weights are zero.

Three states are followed through the log: data, constant, zero. What is multiplied by zero is zero, what is
made of constants is constant, and everything else that the input reaches is data. No number is looked at but
those of the weights, so nothing is called dead because an example happened to silence it.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Final

from torch import Tensor, nn

from gracile.graph import Detour, Graph, Operand, Step, droppable
from gracile.graph.bypass import QUIET, nested, packet_of, result_of


class State(IntEnum):
    """What an operand is, whatever the input."""

    DATA = 0
    CONSTANT = 1
    ZERO = 2


# Operators that multiply: positions of the factors, of what is added.
_PRODUCTS: Final[dict[str, tuple[tuple[int, ...], int | None]]] = {
    "convolution": ((0, 1), 2),
    "linear": ((0, 1), 2),
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "mul"), ((0, 1), None)),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), ((1, 2), 0)),
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit_no_training", "_batch_norm_no_update",
         "cudnn_batch_norm", "native_group_norm"), ((1,), 2),
    ),
    "native_layer_norm": ((2,), 3),
    **dict.fromkeys(("_fused_rms_norm", "rms_norm"), ((2,), None)),
    "_weight_norm_interface": ((1,), None),
    **dict.fromkeys(
        ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math"), ((2,), None)
    ),
}  # fmt: skip


def dead_blocks(graph: Graph, model: nn.Module) -> list[str]:
    """Paths of the droppable modules that add a constant only; of nested ones the outermost.

    >>> from gracile.graph import watch
    >>> import torch
    >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True).eval()
    >>> _ = nn.init.zeros_(layer.self_attn.out_proj.weight)
    >>> dead_blocks(watch(layer, torch.randn(2, 5, 8)), layer)
    ['self_attn']
    """
    paths = [detour.module for detour in constant_ones(graph, model)]
    inside = set(nested(paths))
    return [path for path in paths if path not in inside]


def constant_ones(graph: Graph, model: nn.Module) -> list[Detour]:
    """The detours whose branches are constant, nested ones too."""
    detours = droppable(graph)
    calls = {call.module: call for call in graph.calls}
    results = {
        detour.stop - 1: result_of(calls[detour.module])[0] for detour in detours if detour.kind == "branch"
    }
    joins = {join for detour in detours if detour.kind == "block" for join in detour.joins}
    at_join: dict[tuple[int, int], State] = {}
    at_end: dict[int, State] = {}
    weights = {name: State.CONSTANT if tensor.any() else State.ZERO for name, tensor in _tensors(model)}
    states: dict[int, State] = {}

    def state(given: object) -> State:
        if not isinstance(given, Operand):
            return State.ZERO if given is None else State.CONSTANT
        known = State.CONSTANT if given.weight else State.DATA
        return states.get(id(given), weights.get(given.name, known) if given.name else known)

    for number, step in enumerate(graph.steps):
        for join in ((number, at) for at in (0, 1)):
            if join in joins:
                at_join[join] = state(step.args[join[1]])
        made = _made(step, [state(given) for given in step.inputs], [state(given) for given in step.args])
        states.update((id(output), made) for output in step.outputs)
        if number in results:
            at_end[number] = state(results[number])
    return [
        detour
        for detour in detours
        if (
            all(at_join[join] for join in detour.joins)
            if detour.kind == "block"
            else at_end[detour.stop - 1] != State.DATA
        )
    ]


def _made(step: Step, inputs: Iterable[State], args: list[State]) -> State:
    """The state of what an operator makes."""
    inputs = list(inputs)
    packet = packet_of(step)
    if packet in _PRODUCTS:
        factors, bias = _PRODUCTS[packet]
        if any(args[at] is State.ZERO and step.args[at] is not None for at in factors if at < len(args)):
            return State.ZERO if bias is None or bias >= len(args) else args[bias]
    worst = min(inputs, default=State.CONSTANT)
    if packet in QUIET or packet == "add":
        return worst
    return min(worst, State.CONSTANT)


def _tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
