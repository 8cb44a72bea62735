"""Peak memory of a process that loads and runs a saved sparse program, beside those that run it dense.

    python benchmarks/sparse_memory.py
    python benchmarks/sparse_memory.py --only lstm --density 0.05

Every engine has a fresh process of its own, which first runs a tiny network of the same kind: so what
packages take for their code is not counted. Then it loads the network from its file, runs it ten times, and
tells how far its peak has risen, and, in brackets, what it still holds afterwards (VmHWM, VmRSS: Linux only).
torch loads a state dict, ONNX Runtime and OpenVINO read an ONNX file.
"""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from record import record
from rich.console import Console
from rich.table import Table
from sparse_networks import NETWORKS, sparse
from torch import Tensor, nn

from gracile.files import read_tensors, write_tensors
from gracile.reduce import export_onnx
from gracile.runtime import SparseCPU, load

ENGINES = ("torch", "ONNX Runtime", "OpenVINO", "gracile")
CALLS = 10
FIELDS = {"peak": "VmHWM", "held": "VmRSS"}
app = typer.Typer(pretty_exceptions_enable=False)


def tiny(name: str) -> tuple[nn.Module, Tensor]:
    """A network of the same kind that takes next to no memory."""
    if name == "lstm":
        lstm = nn.LSTM(16, 16, batch_first=True)
        return nn.Sequential(nn.Embedding(10, 16), _First(lstm), nn.Linear(16, 10)), torch.zeros(1, 3).long()
    layers = (nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, 10))
    return nn.Sequential(*layers), torch.randn(1, 3, 8, 8)


class _First(nn.Module):
    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


def keep(folder: Path, model: nn.Module, example: Tensor) -> None:
    """The network in every form that an engine reads."""
    write_tensors(folder / "weights.safetensors", model.state_dict())
    export_onnx(folder / "network.onnx", model, example)
    SparseCPU(against=()).compile(model, example).save(folder / "sparse")


def loaded(engine: str, folder: Path, model: nn.Module, example: Tensor) -> Any:
    """A call without arguments that runs the network of the folder."""
    if engine == "gracile":
        program = load(folder / "sparse")
        return lambda: program(example)
    if engine == "torch":
        model.load_state_dict(read_tensors(folder / "weights.safetensors"))
        return lambda: model(example)
    path = str(folder / "network.onnx")
    if engine == "OpenVINO":
        import openvino

        settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
        compiled = openvino.Core().compile_model(path, "CPU", settings)
        return lambda: compiled([example.numpy()])
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: example.numpy()}
    return lambda: session.run(None, feed)


def memory() -> dict[str, int]:
    """Bytes that this process had at most, and has; ``ru_maxrss`` would begin with those of the parent."""
    status = Path("/proc/self/status").read_text()
    found = {key: re.search(rf"{name}:\s+(\d+) kB", status) for key, name in FIELDS.items()}
    return {key: 1024 * int(match[1]) for key, match in found.items() if match}


@app.command(hidden=True)
def child(engine: str, name: str, folder: Path) -> None:
    """One engine in a process of its own; prints the bytes before and after."""
    torch.set_num_threads(1)
    _run(loaded(engine, folder / "tiny", *_ready(tiny(name))))
    before = memory()
    model = NETWORKS[name]()[0] if engine == "torch" else nn.Identity()
    pair = model, EXAMPLES[name]()
    del model
    call = loaded(engine, folder / "network", *_ready(pair))
    del pair
    _run(call)
    gc.collect()
    print(json.dumps({"before": before, "after": memory()}))


EXAMPLES = {
    "alexnet": lambda: torch.randn(1, 3, 227, 227),
    "resnet20": lambda: torch.randn(1, 3, 32, 32),
    "resnet56": lambda: torch.randn(1, 3, 32, 32),
    "lstm": lambda: torch.randint(10_000, (1, 35)),
}


@torch.inference_mode()
def _run(call: Any) -> None:
    for _ in range(CALLS):
        call()


def _ready(pair: tuple[nn.Module, Tensor]) -> tuple[nn.Module, Tensor]:
    return pair[0].eval(), pair[1]


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    density: Annotated[float, typer.Option(help="share of the weights that is left")] = 0.1,
    only: Annotated[str, typer.Option(help="networks, separated by commas")] = ",".join(NETWORKS),
) -> None:
    """Measure every engine on every network."""
    if context.invoked_subcommand:
        return
    table = Table(title=f"MB over a tiny network of the same kind, density {density}, batch 1, 1 thread")
    for heading in ("network", *ENGINES):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    rows = []
    for name in only.split(","):
        with tempfile.TemporaryDirectory() as path:
            folder = Path(path)
            torch.manual_seed(0)
            model, example = _ready(NETWORKS[name]())
            (folder / "tiny").mkdir()
            keep(folder / "tiny", *_ready(tiny(name)))
            (folder / "network").mkdir()
            keep(folder / "network", sparse(model, density, 1), example)
            found = {engine: _asked(engine, name, folder) for engine in ENGINES}
        risen = {
            engine: {key: both["after"][key] - both["before"][key] for key in FIELDS}
            for engine, both in found.items()
        }
        cells = (f"{own['peak'] / 1e6:.1f} ({own['held'] / 1e6:.1f})" for own in risen.values())
        table.add_row(name, *cells)
        rows.append({"network": name, "bytes": found, "risen": risen})
    Console().print(table)
    command = f"python benchmarks/sparse_memory.py --density {density} --only {only}"
    print("Figures:", record("sparse_memory", command, {"rows": rows}).name)


def _asked(engine: str, name: str, folder: Path) -> dict[str, dict[str, int]]:
    command = [sys.executable, __file__, "child", engine, name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    app()
