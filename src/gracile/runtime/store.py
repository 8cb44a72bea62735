"""A program as two files: what it does (JSON) and its numbers (safetensors).

Nothing in them is code: operators are named, and :mod:`gracile.runtime.listing` says which may be. The
weights are named by their content, so that writing the JSON file is the one step that makes a version valid.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import msgspec
import torch
from torch import Tensor, nn

from gracile.cost import Cost, LayerCost
from gracile.errors import FileError, GracileError, UsageError
from gracile.files import map_tensors, read_json, sha256_of, write_json, write_tensors
from gracile.reduce.copies import duplicate
from gracile.runtime.composed import Composed
from gracile.runtime.layers import Chosen, Layer
from gracile.runtime.listing import Listing, listed, unlisted
from gracile.runtime.onnx import OnnxProgram, OnnxRuntime
from gracile.runtime.plan import COMPOSED, Plan, checked
from gracile.runtime.trace import Traced
from gracile.runtime.whole import Whole

Runner = Composed | Whole | OnnxProgram
"""What carries a program out."""

FORMAT = "gracile sparse program"
VERSION = 2
HEADER = "sparse.json"
DENSE = "dense"


@final
@dataclass(frozen=True)
class Header:
    """The content of ``sparse.json``.

    Attributes:
        format, version: of the file.
        network: class of the model, for people to read.
        sha256: of the weights' file.
        plan: how it runs.
        full: cost of the model on paper, a row for each layer; null stands for ``nan``.
        listing: operators of a composed program.
        digest: of plan, full and listing together: what has changed by accident is not run.
    """

    format: str
    version: int
    network: str
    sha256: str
    plan: Plan
    full: list[dict[str, Any]]
    listing: Listing | None
    digest: str


@final
@dataclass(frozen=True)
class Stored:
    """What :func:`restore` found."""

    run: Runner
    plan: Plan
    network: str
    full: Cost
    bound: str


def save(folder: str | Path, run: Runner, plan: Plan, network: str, full: Cost) -> Path:
    """Write a program to ``folder``, made if it is missing; return the path of its JSON file.

    Raises:
        RefusedError: it has operators that files have no form for; nothing is written.
    """
    folder = Path(folder)
    listing = listed(run.traced) if isinstance(run, Composed) else None
    tensors: dict[str, Tensor] = {}
    if isinstance(run, OnnxProgram):
        run.save(folder / DENSE)
    else:
        tensors = run.tensors()
    draft = write_tensors(folder / "weights.safetensors", tensors)
    sha256 = sha256_of(draft)
    kept = _weights(folder, sha256)
    draft.replace(kept)
    rows = [asdict(row) for row in full.rows]
    digest = _digest(plan, rows, listing)
    path = write_json(folder / HEADER, Header(FORMAT, VERSION, network, sha256, plan, rows, listing, digest))
    for old in folder.glob("weights-*.safetensors"):
        if old != kept and re.fullmatch(r"weights-[0-9a-f]{16}", old.stem):
            old.unlink()
    return path


def restore(folder: str | Path, model: nn.Module | None) -> Stored:
    """What :func:`save` wrote.

    Args:
        folder: of the files.
        model: to run the numbers with, where torch runs the whole.

    Raises:
        FileError: a file is missing or damaged, or the model is another.
        UsageError: a model is needed.
    """
    folder = Path(folder)
    path = folder / HEADER
    header = read_json(path, Header)
    if (header.format, header.version) != (FORMAT, VERSION):
        raise _wrong(path, f"{header.format[:80]!r}, version {header.version}", f"{FORMAT!r}, {VERSION}")
    if not re.fullmatch(r"[0-9a-f]{64}", header.sha256):
        raise _wrong(path, "a malformed digest", "SHA-256 in hexadecimal")
    plan = checked(path, header.plan)
    if header.digest != _digest(plan, header.full, header.listing):
        raise _wrong(path, "other content than was written", f"SHA-256 {header.digest:.80}")
    if model is None and plan.runs not in (COMPOSED, "ONNX Runtime"):
        raise UsageError(
            f"loading the program in '{folder}'",
            got="no model",
            expected=f"one of the class that was compiled: {plan.runs} was faster, and runs the model's code",
        )
    weights = _weights(folder, header.sha256)
    map_tensors(weights)  # says what is wrong with a damaged file
    if sha256_of(weights) != header.sha256:
        raise _wrong(weights, "other content than was written", f"SHA-256 {header.sha256}")
    try:
        rows = tuple(
            msgspec.convert(row | {"macs": math.nan if row.get("macs") is None else row["macs"]}, LayerCost)
            for row in header.full
        )
        run, bound = _runner(folder, plan, weights, header.listing, model)
    except FileError:
        raise
    except (GracileError, msgspec.ValidationError) as error:
        raise _wrong(path, f"what does not fit together ({error})", "a program") from error
    return Stored(run, plan, header.network, Cost(rows), bound)


def _digest(plan: Plan, full: list[dict[str, Any]], listing: Listing | None) -> str:
    return hashlib.sha256(msgspec.json.encode((plan, full, listing))).hexdigest()


def _runner(
    folder: Path, plan: Plan, weights: Path, listing: Listing | None, model: nn.Module | None
) -> tuple[Runner, str]:
    if plan.runs == COMPOSED:
        if listing is None:
            raise _wrong(folder / HEADER, "no operators", "those of the program")
        return _composed(folder, plan, weights, unlisted(listing))
    if plan.runs == "ONNX Runtime":
        onnx = OnnxRuntime(plan.threads).load(folder / DENSE)
        return onnx, onnx.report()["batch"].partition("fixed: ")[2]
    assert model is not None  # restore saw to it
    tensors, copy = map_tensors(weights), duplicate(model)
    own = {name: x for name, x in copy.state_dict().items() if isinstance(x, Tensor)}
    _compare(folder, tensors, own)
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
    return Whole(copy, plan.runs == "torch channels-last"), ""


def _composed(folder: Path, plan: Plan, weights: Path, traced: Traced) -> tuple[Composed, str]:
    tensors = map_tensors(weights)
    nodes = [node for node in traced.graph.nodes if isinstance(node.target, Layer)]
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
    traced.constants.update({name: tensors[name].clone() for name in traced.constants})
    if set(plan.kernels) != set(named):
        differ = sorted(set(plan.kernels) ^ set(named))
        raise _wrong(
            folder / HEADER, f"layers that only one side has: {', '.join(differ[:4])}", "the same layers"
        )
    try:
        for node in nodes:
            node.target = _packed(node.target, plan, *named[node.target.name], weights)
        run = Composed(traced, plan.threads)
        run.rehearse()
    except GracileError:
        raise
    except Exception as error:  # whatever torch makes of operators that do not fit together
        raise _wrong(folder / HEADER, f"what cannot be run ({error!s:.200})", "a program") from error
    return run, traced.bound


def _packed(layer: Layer, plan: Plan, named: Any, biases: Any, weights: Path) -> Chosen:
    """The layer with its numbers packed.

    Every layer maps the file anew, and lets go of it: so one layer at a time is in memory with its zeros.
    """
    tensors = map_tensors(weights)
    full = layer.holding([tensors[name] for name in named], [tensors[name].clone() for name in biases])
    return Chosen(layer, full.kernels()[plan.kernels[layer.name]](), full.biases)


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
