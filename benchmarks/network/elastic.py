"""kill -9 of random ranks at random steps, under torchrun on a bed: does training end as if undisturbed?

    cd benchmarks && python -m network.elastic
    cd benchmarks && python -m network.elastic --nodes 2 --kills 3 --no-rescale

Trains ``examples/train_across_machines.py`` once undisturbed and once with kills, one rank on each namespace,
and compares the last checkpoints bit for bit. Then one machine is lost amid a run, and comes back.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, final

from record import record

from gracile.errors import GracileError
from gracile.train import checkpoint
from network.bed import Bed

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "train_across_machines.py"
EPOCH = 22  # steps: 1078 training samples of the bundled digits, 48 at a time

# By default torchrun's store outlives a restart, with the addresses of processes that have ended: ranks that
# are quicker than the first one read them and fail to connect (torch 2.13).
_FRESH = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}

_STARTS_S = 120  # how long a start or restart may take
_ENDS_S = 300


@final
class Job:
    """One run of the example under torchrun on all nodes of a bed.

    Args:
        bed: where it runs.
        folder: its checkpoints and logs, seen by all nodes.
        epochs: to train.
        fewest: nodes with which it may go on.
    """

    def __init__(self, bed: Bed, folder: Path, epochs: int, fewest: int) -> None:
        folder.mkdir(parents=True)
        self.bed, self.folder, self._epochs, self._fewest = bed, folder, epochs, fewest
        self.agents = [self.launch(node) for node in range(bed.nodes)]

    def launch(self, node: int) -> subprocess.Popen[str]:
        """Start torchrun on one node; node 0 is where all of them meet."""
        bed = self.bed
        command = [
            *(sys.executable, "-m", "torch.distributed.run"),
            f"--nnodes={self._fewest}:{bed.nodes}",
            "--nproc-per-node=1",
            "--max-restarts=100",
            "--rdzv-backend=c10d",
            f"--rdzv-id={bed.name}",
            f"--rdzv-endpoint={bed.address(0)}:29400",
            f"--rdzv-conf=is_host={int(node == 0)},last_call_timeout=2,join_timeout=60",
            f"--local-addr={bed.address(node)}",
            *(str(EXAMPLE), str(self.folder), str(self._epochs)),
        ]
        return bed.spawn(node, command, _FRESH, output=self.folder / f"node-{node}.log")

    def steps(self) -> list[int]:
        """Steps in the log of the run."""
        found = []
        with suppress(OSError, ValueError):  # the last row may be half written
            for line in (self.folder / "log.jsonl").read_text().splitlines():
                row = json.loads(line)
                if row["kind"] == "step":
                    found.append(row["step"])
        return found

    def latest(self) -> int:
        """Last step in the log; -1 before the first."""
        return max(self.steps(), default=-1)

    def ranks(self) -> int:
        """How many wrote the newest checkpoint; 0 before the first."""
        with suppress(GracileError):
            return int(checkpoint.load(self.folder / "checkpoints")["standing"]["identity"]["ranks"])
        return 0

    def opened(self) -> int:
        """A number that changes when a resumed run opens the log: the file is written anew then."""
        with suppress(OSError):
            return (self.folder / "log.jsonl").stat().st_ino
        return 0

    def until(self, what: str, fine: Callable[[], bool], limit_s: float = _STARTS_S) -> float:
        """Seconds until something is so.

        Raises:
            TimeoutError: not within ``limit_s``; ChildProcessError: torchrun has given up.
        """
        began = time.monotonic()
        while not fine():
            for node, agent in enumerate(self.agents):
                if agent.poll():
                    raise ChildProcessError((self.folder / f"node-{node}.log").read_text()[-3000:])
            if time.monotonic() - began > limit_s:
                raise TimeoutError(f"{what}: not within {limit_s} s")
            time.sleep(0.01)
        return time.monotonic() - began

    def kill_rank(self, node: int) -> float:
        """kill -9 of the rank on a node; seconds until a step is logged again."""
        victims: list[int] = []
        self.until("a rank to kill", lambda: bool(victims.extend(_ranks_of(self.agents[node])) or victims))
        before = self.opened()
        os.kill(victims[0], signal.SIGKILL)
        opening = self.until("the log opened again", lambda: self.opened() != before)
        rows = len(self.steps())
        return opening + self.until("a step", lambda: len(self.steps()) > rows)

    def end(self) -> dict[str, Any]:
        """Wait for all nodes; the last checkpoint."""
        self.until("the end", lambda: all(agent.poll() == 0 for agent in self.agents), _ENDS_S)
        return checkpoint.load(self.folder / "checkpoints")


def survive(place: Path, nodes: int, epochs: int, count: int, seed: int) -> dict[str, Any]:
    """One run undisturbed, one with ``count`` kills; whether they end alike."""
    draw = random.Random(seed)
    kills = sorted((draw.randrange(1, epochs * EPOCH - 5), draw.randrange(nodes)) for _ in range(count))
    with Bed(nodes) as bed:
        undisturbed = Job(bed, place / "undisturbed", epochs, nodes).end()
    taken = []
    with Bed(nodes) as bed:
        job = Job(bed, place / "killed", epochs, nodes)
        for step, node in kills:
            job.until(f"step {step}", lambda step=step: job.latest() >= step)
            time.sleep(draw.uniform(0.0, 0.05))  # anywhere in a step, or in a checkpoint
            taken.append(job.kill_rank(node))
            print(f"rank on node {node} killed at step {step}: a step after {taken[-1]:.1f} s", flush=True)
        killed = job.end()
    return {
        "nodes": nodes,
        "steps": epochs * EPOCH,
        "kills": kills,
        "resumed_s": taken,
        "median_s": median(taken) if taken else None,
        "identical": _same(undisturbed["model"], killed["model"]),
        "same_standing": undisturbed["standing"]["step"] == killed["standing"]["step"],
    }


def rescale(place: Path, nodes: int, epochs: int) -> dict[str, Any]:
    """Kill one machine for good, and bring in another; which numbers of ranks wrote checkpoints."""
    with Bed(nodes) as bed:
        job = Job(bed, place / "rescaled", epochs, nodes - 1)
        job.until("checkpoints of all ranks", lambda: job.ranks() == nodes)
        lost = job.agents.pop()
        for pid in (*_ranks_of(lost), lost.pid):
            os.kill(pid, signal.SIGKILL)
        less = job.until("a checkpoint of fewer ranks", lambda: job.ranks() == nodes - 1)
        at = job.latest()
        job.agents.append(job.launch(nodes - 1))
        more = job.until("a checkpoint of all ranks", lambda: job.ranks() == nodes)
        end = job.end()["standing"]
    found = {"ranks": [nodes, nodes - 1, nodes], "less_s": less, "less_at_step": at, "more_s": more}
    return found | {"steps": end["step"], "expected_steps": epochs * EPOCH}


def _ranks_of(agent: subprocess.Popen[str]) -> list[int]:
    """Process ids of the ranks that a torchrun agent has started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == agent.pid and EXAMPLE.name in (process / "cmdline").read_text():
                found.append(int(process.name))
    return found


def _same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two states are the same, bit for bit."""
    return first.keys() == second.keys() and all(
        value.numpy().tobytes() == second[name].numpy().tobytes() for name, value in first.items()
    )


def main() -> None:
    """Measure, keep the figures, print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=10, help="of 22 steps")
    parser.add_argument("--kills", type=int, default=20, help="of one rank each; 0 for none")
    parser.add_argument("--seed", type=int, default=0, help="of ranks, steps and moments")
    parser.add_argument(
        "--no-rescale", action="store_true", help="do not take a machine away and give it back"
    )
    parser.add_argument("--rescale-epochs", type=int, default=60, help="long enough for two restarts")
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        if asked.kills:
            found["survived"] = survive(Path(place), asked.nodes, asked.epochs, asked.kills, asked.seed)
        if not asked.no_rescale:
            found["rescaled"] = rescale(Path(place), asked.nodes, asked.rescale_epochs)
    print(json.dumps(found, indent=1))
    record("elastic", f"cd benchmarks && python -m network.elastic {shlex.join(sys.argv[1:])}", found)


if __name__ == "__main__":
    main()
