"""Engines that take an ONNX file: exported for the example's shapes, which is what they run fastest."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gracile.errors import ShapeError
from gracile.runtime.engines import Call, Engine
from gracile.runtime.session import exported, names, recorded, start
from gracile.runtime.signal_stack import signal_stack_kept

_CPU = ("cpu", 0)


Kind = tuple[torch.Size, torch.dtype]
Export = Callable[[nn.Module, tuple[Any, ...]], bytes]


def current(model: nn.Module, example: tuple[Any, ...]) -> bytes:
    """An ONNX file by torch's newer exporter, or by the older one where the newer is not installed."""
    return exported(model, example) if importlib.util.find_spec("onnxscript") else recorded(model, example)


@dataclass(frozen=True)
class OnnxEngine(Engine):
    """An engine that reads ONNX; a new one writes :meth:`read`.

    Args:
        export: (model, example) -> content of an ONNX file.
    """

    export: Export = current

    @final
    def start(self, model: nn.Module, example: tuple[Any, ...], threads: int) -> Call:
        return self.read(self.export(model, example), example, threads)

    @abstractmethod
    def read(self, content: bytes, example: tuple[Any, ...], threads: int) -> Call:
        """As :meth:`start`, with the model as an ONNX file's content, whose shapes are the example's."""


@final
@dataclass(frozen=True)
class OnnxRuntimeEngine(OnnxEngine):
    """ONNX Runtime on memory that is bound once."""

    name = "ONNX Runtime"
    package = "onnxruntime"
    hint = "pip install 'gracile[onnx]'"

    def read(self, content: bytes, example: tuple[Any, ...], threads: int) -> Call:
        session = start(content, threads)
        binding = session.io_binding()
        inputs = names(session)
        tensors = pytree.tree_leaves(example)
        first = session.run(None, {n: x.detach().numpy() for n, x in zip(inputs, tensors, strict=True)})
        outputs = [torch.as_tensor(array).clone() for array in first]

        def bind(given: Sequence[Tensor]) -> None:
            for name, x in zip(inputs, given, strict=True):
                binding.bind_input(name, *_CPU, x.detach().numpy().dtype.type, tuple(x.shape), x.data_ptr())

        for argument, y in zip(session.get_outputs(), outputs, strict=True):
            binding.bind_output(argument.name, *_CPU, y.numpy().dtype.type, tuple(y.shape), y.data_ptr())
        return bound(tensors, bind, lambda: session.run_with_iobinding(binding), outputs)


@final
@dataclass(frozen=True)
class OpenVino(OnnxEngine):
    """OpenVINO in single precision, for latency."""

    name = "OpenVINO"
    package = "openvino"
    hint = "pip install 'gracile[openvino]'"

    def read(self, content: bytes, example: tuple[Any, ...], threads: int) -> Call:
        with silenced("openvino_telemetry"):
            openvino = importlib.import_module("openvino")
        core = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        with signal_stack_kept():
            request = core.compile_model(core.read_model(content), "CPU", settings).create_infer_request()
        tensors = pytree.tree_leaves(example)

        def bind(given: Sequence[Tensor]) -> None:
            for place, x in enumerate(given):
                request.set_input_tensor(place, openvino.Tensor(x.detach().numpy(), shared_memory=True))

        bind(tensors)
        first = request.infer(share_outputs=True).values()
        outputs = [torch.tensor(array) for array in first]
        for place, y in enumerate(outputs):
            request.set_output_tensor(place, openvino.Tensor(y.numpy(), shared_memory=True))
        return bound(tensors, bind, lambda: request.infer(share_outputs=True), outputs)


@final
@dataclass(frozen=True)
class DeepSparse(OnnxEngine):
    """DeepSparse, which uses zeros: given a pruned network it is a rival of sparse programs."""

    name = "DeepSparse"
    package = "deepsparse"
    hint = "in an environment of its own, with onnx<1.15 and without onnxscript"
    dense = False
    export: Export = recorded

    def read(self, content: bytes, example: tuple[Any, ...], threads: int) -> Call:
        os.environ.setdefault("NM_DISABLE_ANALYTICS", "True")  # measuring tells nobody anything
        deepsparse = importlib.import_module("deepsparse")
        batch = len(pytree.tree_leaves(example)[0])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            path.write_bytes(content)
            engine = deepsparse.Engine(model=str(path), batch_size=batch, num_cores=threads)

        kinds = kinds_of(pytree.tree_leaves(example))

        def run(*inputs: Any) -> object:
            given = pytree.tree_leaves(inputs)
            check(given, kinds)
            arrays = [x.detach().numpy() for x in given]
            return [torch.as_tensor(array) for array in engine.run(arrays, val_inp=False)]  # checked above

        return run


def once(make: Export) -> Export:
    """``make``, called once for each model and shape of inputs; the models must stay as they are."""
    made: dict[tuple[object, ...], tuple[nn.Module, bytes]] = {}

    def export(model: nn.Module, example: tuple[Any, ...]) -> bytes:
        key = (id(model), *kinds_of(pytree.tree_leaves(example)))
        if key not in made:
            made[key] = (model, make(model, example))  # held, so that the number stays its own
        return made[key][1]

    return export


def bound(
    example: Sequence[Tensor],
    bind: Callable[[Sequence[Tensor]], None],
    run: Callable[[], object],
    outputs: list[Tensor],
) -> Call:
    """A function that reads its inputs where they lie, told anew only if that is not where the last ones lay.

    Args:
        example: inputs of the only shapes and types that there may be.
        bind: tells the engine where its inputs are.
        run: writes ``outputs``.
        outputs: what every call returns.
    """
    kinds = kinds_of(example)
    places: list[int] = []
    held: Sequence[Tensor] = ()  # so that nothing else comes to lie there

    def call(*inputs: Any) -> list[Tensor]:
        nonlocal held
        given = inputs if all(isinstance(x, Tensor) for x in inputs) else pytree.tree_leaves(inputs)
        if [x.data_ptr() for x in given] != places or any(
            a is not b for a, b in zip(given, held, strict=True)
        ):
            check(given, kinds)
            bind(given)
            places[:], held = [x.data_ptr() for x in given], given
        run()
        return outputs

    return call


def kinds_of(tensors: Sequence[Tensor]) -> list[Kind]:
    return [(x.shape, x.dtype) for x in tensors]


def check(given: Sequence[Tensor], kinds: list[Kind]) -> None:
    """Whether an engine may read memory as the shapes and types that it was prepared for.

    Raises:
        ShapeError: the inputs are of others, or not contiguous.
    """
    if kinds_of(given) != kinds or not all(x.is_contiguous() for x in given):
        raise ShapeError(
            "running a prepared engine",
            got=", ".join(f"{x.dtype} {list(x.shape)} of strides {x.stride()}" for x in given),
            expected=f"contiguous {', '.join(f'{kind} {list(shape)}' for shape, kind in kinds)}",
        )


@contextmanager
def silenced(package: str) -> Iterator[None]:
    """Let nothing import ``package``: measuring tells nobody anything.

    >>> with silenced("colorsys"):
    ...     import colorsys
    Traceback (most recent call last):
    ModuleNotFoundError: import of colorsys halted; None in sys.modules
    """
    before = sys.modules.get(package)
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
        if before is not None:
            sys.modules[package] = before
