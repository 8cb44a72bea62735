"""Train on several machines, with gradients in few bits, and go on when one of them fails.

On every machine, the first one being 10.0.0.1 here (``docs/distributed.md`` explains the options):

    torchrun --nnodes=4 --nproc-per-node=1 --max-restarts=20 --rdzv-backend=c10d --rdzv-id=run \\
        --rdzv-endpoint=10.0.0.1:29400 examples/train_across_machines.py runs/across

The folder must be one that all machines see: the rank that writes checkpoints may be another after a restart.
"""

import sys
from pathlib import Path

import torch

from gracile.train import Checkpoints, JsonLines, TernGrad, Throughput, classification, fit
from gracile.zoo import build, load

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/across")
epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 3
splits = load("digits")
torch.manual_seed(0)  # for the first weights; fit seeds everything after them
terngrad = TernGrad("exact", exempt=["fc2."])
history = fit(
    build("lenet", splits),
    splits,
    classification(),
    epochs=epochs,
    batch_size=48,  # over all machines, however many there are: a multiple of 1, 2, 3 and 4
    methods=[terngrad],
    folder=Checkpoints(folder / "checkpoints", every=5),
    loggers=[Throughput(JsonLines(folder / "log.jsonl"), batch_size=48, sender=terngrad)],
    log_every=1,
    select="last",
    progress=False,
)
print(f"test {history.score} {history.test.score:.4f}")
