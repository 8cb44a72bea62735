"""From a model to an ONNX file that is proven equal to it, and from the file to a session that runs it."""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gracile.errors import GracileError, RefusedError, UsageError
from gracile.reduce import export_onnx
from gracile.reduce.copies import duplicate, undisturbed
from gracile.reduce.probes import copied, leaves, mapped, twice
from gracile.reduce.verify import difference

_OPSET = 13


def exported(
    model: nn.Module, example: Sequence[Any], tolerance: float = 1e-5, dynamic_shapes: Any = None
) -> bytes:
    """The content of the file that :func:`gracile.reduce.export_onnx` writes, proven equal on the example.

    Raises:
        UsageError, RefusedError: as :func:`gracile.reduce.export_onnx` says.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # The exporter tries several ways to read a network, and warns of those that lead nowhere.
        warnings.simplefilter("ignore")
        path = Path(folder) / "network.onnx"
        return export_onnx(
            path, model, *example, tolerance=tolerance, dynamic_shapes=dynamic_shapes
        ).read_bytes()


def recorded(model: nn.Module, example: tuple[Any, ...]) -> bytes:
    """An ONNX file by torch's older exporter, of a version that engines of 2021 read, and not proven equal.

    It needs no package but torch and onnx, of any age.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that it is old, and what tracing does not see
        path = Path(folder) / "network.onnx"
        torch.onnx.export(duplicate(model), example, path, dynamo=False, opset_version=_OPSET)
        return path.read_bytes()


def start(content: bytes, threads: int) -> Any:
    """An ONNX Runtime session on the CPU that uses so many threads, the calling one included.

    Raises:
        UsageError: ONNX Runtime is not installed, or no thread is allowed.
        RefusedError: it does not take the network.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise UsageError(
            "running in ONNX Runtime",
            got="no package onnxruntime",
            expected="it to be installed",
            hint="pip install 'gracile[onnx]'",
        )
    if threads < 1:
        raise UsageError("running in ONNX Runtime", got=f"{threads} threads", expected="1 or more")
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors; they are raised anyway
    # Between calls its threads would go on spinning, in the way of whatever is measured next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a class of its own for every kind of mistake
        raise RefusedError(
            "starting ONNX Runtime",
            got=" ".join(str(error).split())[:300],
            expected="a network that it can run",
        ) from error


def any_batch(model: nn.Module, example: tuple[Any, ...], tolerance: float) -> tuple[bytes, str]:
    """An ONNX file for any first dimension of the inputs, or for the example's alone and why."""
    try:
        doubled = twice((example, {}), seed=0)
        if doubled is None:
            raise UsageError(
                "leaving the batch free",
                got="inputs without a first dimension in common",
                expected="the same in all of them",
            )
        more = doubled[0]
        batch = torch.export.Dim("batch")
        shapes = pytree.tree_map(lambda x: {0: batch} if isinstance(x, Tensor) else None, more)
        with undisturbed(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # The exporter to ONNX alone would take a branch on the size of the batch, and drop the other.
            torch.export.export(model, more, dynamic_shapes=shapes)
        content = exported(model, more, tolerance, shapes)
        # A size of 1 is special to torch, as what is repeated or squeezed, and unknown to what was exported.
        error = compared(model, start(content, 1), mapped(example, lambda x: x[:1]))[1]
        if error <= tolerance:
            return content, ""
        reason = "a batch of one is treated in a way of its own"
    except GracileError as error:
        reason = error.got
    except Exception as error:  # whatever the model's code and the tracer make of each other
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return exported(model, example, tolerance), reason[:300]


def compared(model: nn.Module, session: Any, example: tuple[Any, ...]) -> tuple[Any, float]:
    """What the model answers, and how far from it the session is."""
    with undisturbed(model):
        want = model(*copied((example, {}))[0])
    try:
        found = session.run(None, arrays(names(session), pytree.tree_leaves(example)))
    except Exception as error:  # ONNX Runtime has a class of its own for every kind of mistake
        raise RefusedError(
            "running in ONNX Runtime",
            got=" ".join(str(error).split())[:300],
            expected="a network that takes the example",
        ) from error
    return want, difference(list(leaves(want)), list(map(torch.as_tensor, found)))


def different(error: float, tolerance: float) -> RefusedError:
    return RefusedError(
        "running in ONNX Runtime", got=f"a relative error of {error:.1e}", expected=f"at most {tolerance:.0e}"
    )


def names(session: Any) -> list[str]:
    return [argument.name for argument in session.get_inputs()]


def arrays(names: Sequence[str], given: Sequence[Tensor]) -> dict[str, Any]:
    return {name: x.detach().numpy() for name, x in zip(names, given, strict=True)}
