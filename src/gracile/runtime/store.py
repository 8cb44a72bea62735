"""A program as two files: its plan (JSON) and its numbers (safetensors). Nothing in them is ever executed.

What the network does is not in the files: it is read again from a fresh object of the model's class. The
weights are named by their content, so that writing the JSON file is the one step that makes a version valid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gracile.errors import FileError, GracileError
from gracile.files import read_json, read_tensors, sha256_of, write_json, write_tensors
from gracile.reduce.copies import duplicate
from gracile.runtime.choose import Search, choose
from gracile.runtime.composed import Composed
from gracile.runtime.fuse import fuse
from gracile.runtime.onnx import OnnxProgram, OnnxRuntime
from gracile.runtime.plan import COMPOSED, Plan, checked
from gracile.runtime.sizes import sizes_for
from gracile.runtime.trace import trace
from gracile.runtime.whole import Whole

Runner = Composed | Whole | OnnxProgram
"""What carries a program out."""

FORMAT = "gracile sparse program"
VERSION = 1
HEADER = "sparse.json"
DENSE = "dense"


@dataclass(frozen=True)
class Header:
    """The content of ``sparse.json``; ``network`` is for people to read."""

    format: str
    version: int
    network: str
    sha256: str
    plan: Plan


def save(folder: str | Path, run: Runner, plan: Plan, network: str) -> Path:
    """Write a program to ``folder``, made if it is missing; return the path of its JSON file."""
    folder = Path(folder)
    tensors: dict[str, Tensor] = {}
    if isinstance(run, OnnxProgram):
        run.save(folder / DENSE)
    else:
        tensors = run.tensors()
    draft = write_tensors(folder / "weights.safetensors", tensors)
    digest = sha256_of(draft)
    kept = _weights(folder, digest)
    draft.replace(kept)
    path = write_json(folder / HEADER, Header(FORMAT, VERSION, network, digest, plan))
    for old in folder.glob("weights-*.safetensors"):
        if old != kept and re.fullmatch(r"weights-[0-9a-f]{16}", old.stem):
            old.unlink()
    return path


def restore(folder: str | Path, model: nn.Module, example: tuple[Any, ...]) -> tuple[Runner, Plan, str]:
    """What :func:`save` wrote, with a fresh ``model`` to say how it computes, and why its batch is fixed.

    Raises:
        FileError: a file is missing, damaged, or made for another model.
    """
    folder = Path(folder)
    path = folder / HEADER
    header = read_json(path, Header)
    if (header.format, header.version) != (FORMAT, VERSION):
        raise _wrong(path, f"{header.format[:80]!r}, version {header.version}", f"{FORMAT!r}, {VERSION}")
    if not re.fullmatch(r"[0-9a-f]{64}", header.sha256):
        raise _wrong(path, "a malformed digest", "SHA-256 in hexadecimal")
    plan = checked(path, header.plan)
    weights = _weights(folder, header.sha256)
    tensors = read_tensors(weights)
    if sha256_of(weights) != header.sha256:
        raise _wrong(weights, "other content than was written", f"SHA-256 {header.sha256}")
    try:
        run, bound = _runner(folder, plan, tensors, _tangible(model), example)
    except FileError:
        raise
    except GracileError as error:
        raise _wrong(path, f"what does not fit the model ({error})", "a plan of this model") from error
    return run, plan, bound


def _tangible(model: nn.Module) -> nn.Module:
    """The model, or a copy that can be traced where it has no memory: its numbers do not matter."""
    if not any(x.is_meta for x in (*model.parameters(), *model.buffers())):
        return model
    return duplicate(model).to_empty(device="cpu")  # pages that nobody touches take no memory


def _runner(
    folder: Path, plan: Plan, tensors: dict[str, Tensor], model: nn.Module, example: tuple[Any, ...]
) -> tuple[Runner, str]:
    if plan.runs == COMPOSED:
        return _composed(folder, plan, tensors, model, example)
    if plan.runs == "ONNX Runtime":
        onnx = OnnxRuntime(plan.threads).load(folder / DENSE)
        return onnx, onnx.report()["batch"].partition("fixed: ")[2]
    copy = duplicate(model)
    own = {name: x for name, x in copy.state_dict().items() if isinstance(x, Tensor)}
    _compare(folder, tensors, own)
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
    return Whole(copy, plan.runs == "torch channels-last"), ""


def _composed(
    folder: Path, plan: Plan, tensors: dict[str, Tensor], model: nn.Module, example: tuple[Any, ...]
) -> tuple[Composed, str]:
    traced = trace(model, *example)
    nodes = fuse(traced)
    wanted = dict(traced.constants)
    named: dict[str, Any] = {}
    for node in nodes:
        layer: Any = node.target
        named[layer.name] = [
            {f"{layer.name}.{what}.{k}": tensor for k, tensor in enumerate(own)}
            for what, own in (("weight", layer.weights), ("bias", layer.biases))
        ]
        wanted |= named[layer.name][0] | named[layer.name][1]
    _compare(folder, tensors, wanted)
    traced.constants.update({name: tensors[name] for name in traced.constants})
    for node in nodes:
        layer = node.target
        node.target = layer.holding(*([tensors[name] for name in part] for part in named[layer.name]))
    if set(plan.kernels) != set(named):
        differ = sorted(set(plan.kernels) ^ set(named))
        raise _wrong(
            folder / HEADER, f"layers that only one side has: {', '.join(differ[:4])}", "the same layers"
        )
    found = choose(nodes, sizes_for(traced, example), Search(plan.threads, 5, None, plan.kernels))
    shapes, saved = ({c.layer: c.shape for c in choices} for choices in (found, plan.layers))
    if shapes != saved:
        layer = next(name for name in shapes if shapes[name] != saved[name])
        raise _wrong(
            folder / HEADER,
            f"a plan for inputs of shape {saved[layer]} at '{layer}'",
            f"{shapes[layer]}, as the example has it",
        )
    return Composed(traced, plan.threads), traced.bound


def _compare(folder: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    def kinds(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
        return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}

    mine, theirs = kinds(found), kinds(wanted)
    if mine != theirs:
        differ = sorted(n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n))
        raise _wrong(folder / HEADER, f"other tensors at {', '.join(differ[:4])}", "those of the model")


def _weights(folder: Path, digest: str) -> Path:
    return folder / f"weights-{digest[:16]}.safetensors"


def _wrong(path: Path, got: str, expected: str) -> FileError:
    return FileError(
        f"reading '{path}'",
        got=got,
        expected=expected,
        hint="the file may be damaged, or the model built with other arguments than the one saved",
    )
