"""To other runtimes: ONNX, written only after ONNX Runtime has computed the same."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gracile.errors import RefusedError, UsageError
from gracile.files import write_bytes
from gracile.reduce.copies import duplicate
from gracile.reduce.probes import copied, leaves
from gracile.reduce.verify import difference

_LARGEST = 2**31 - 2**20  # bytes of weights that fit into one file
# Of torch's own code, about its own code; nobody who exports a model can do anything about them.
_WARNINGS = (
    (FutureWarning, ".*treespec, LeafSpec.*"),
    (UserWarning, "The tensor attributes? .*_flat_weights"),
)


def export_onnx(
    path: str | Path,
    model: nn.Module,
    *inputs: Any,
    tolerance: float = 1e-5,
    dynamic_shapes: Any = None,
    **named: Any,
) -> Path:
    """Write ``model`` in evaluation mode as one ONNX file, atomically, and return its path.

    Where ONNX Runtime is installed it runs the result on the example first, and nothing is written unless

        max |y_onnx - y| <= tolerance max |y|.

    Args:
        path: of the file.
        model: is left as it was.
        inputs: an example to call it with; ``named`` likewise.
        tolerance: of that comparison.
        dynamic_shapes: sizes that may differ from the example's, as :func:`torch.export.export` takes them.

    Raises:
        UsageError: the extra ``onnx`` is not installed, or the weights do not fit into one file.
        RefusedError: torch cannot export the model, or ONNX Runtime computes something else or fails.
        FileError: the file cannot be written.
    """
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if importlib.util.find_spec("onnxscript") is None:
        raise UsageError(
            "exporting to ONNX",
            got="no package onnxscript",
            expected="it to be installed",
            hint="pip install 'gracile[onnx]'",
        )
    if size > _LARGEST:
        raise UsageError(
            "exporting to ONNX", got=f"{size} bytes of weights", expected=f"at most {_LARGEST}: one file"
        )
    work = duplicate(model).eval()
    args, kwargs = copied((inputs, named))
    with warnings.catch_warnings(), torch.no_grad():
        for category, message in _WARNINGS:
            warnings.filterwarnings("ignore", message, category)
        try:
            program = torch.onnx.export(
                work, args, None, kwargs=kwargs, dynamo=True, dynamic_shapes=dynamic_shapes, verbose=False
            )
            content = program.model_proto.SerializeToString()
        except Exception as error:  # whatever the model's own code makes of it
            raise _refused(f"{type(error).__name__}: {error}", "a model that torch can export") from error
        if importlib.util.find_spec("onnxruntime") is not None:
            _check(program, work, (inputs, named), tolerance)
    return write_bytes(path, content)


def _check(program: Any, model: nn.Module, given: tuple[Any, ...], tolerance: float) -> None:
    args, named = copied(given)
    want = list(leaves(model(*args, **named)))
    args, named = copied(given)
    try:
        found = list(program(*args, **named))
    except Exception as error:
        raise _refused(f"{type(error).__name__}: {error}", "a file that ONNX Runtime can run") from error
    error = difference(want, found)
    if not error <= tolerance:
        raise _refused(f"a relative error of {error:.1e} in ONNX Runtime", f"at most {tolerance:.0e}")


def _refused(got: str, expected: str) -> RefusedError:
    return RefusedError("exporting to ONNX", got=got[:500], expected=expected)
