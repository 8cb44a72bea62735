"""A bed of machines: network namespaces on a bridge, each behind a link of its own.

Every node is a namespace with one interface, ``eth0``, shaped at both ends (``tc tbf``) and, where a delay
is asked for, led through a small relay of ours (``delay.c``), because not every kernel has ``netem``. Nothing
is made outside namespaces that this file made. The next bed removes what owners that are dead have left.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self, final

from gracile.errors import UsageError
from network.spaces import QUOTAS, do, drop_quota, failed, own, quotas, remove, spaces, sweep

_BEDS = count()
_BURST = 70_000  # bytes; above one 64 KiB segment, which a smaller bucket would never let pass
_SAID = 1500  # last characters of what a failed command printed


def missing() -> str:
    """What this machine lacks to make a bed; empty when it lacks nothing."""
    if os.name != "posix" or os.geteuid() != 0:
        return "network namespaces need root"
    lacking = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    return f"no {' and no '.join(lacking)}: install iproute2" if lacking else ""


@final
class Bed:
    """``nodes`` machines that see each other at 10.77.77.1, 10.77.77.2, ...

    Args:
        nodes: 1 to 200 machines.
        rate: of every link in both directions, as ``tc`` writes it (``"100mbit"``); ``None`` does not shape.
        delay_ms: that every frame is held between node and switch; a round trip takes four times as long.

    Raises:
        UsageError: no root, no iproute2, no compiler for the relay, or a number out of range.

        with Bed(2, rate="100mbit") as bed:
            bed.run(0, ["ping", "-c1", bed.address(1)])
    """

    def __init__(self, nodes: int, rate: str | None = None, delay_ms: float = 0.0) -> None:
        if lack := missing():
            raise UsageError("network bed", got=lack, expected="root on Linux with iproute2")
        if not 1 <= nodes <= 200:
            raise UsageError("network bed", got=f"{nodes} nodes", expected="1 to 200")
        if not 0 <= delay_ms <= 1000:
            raise UsageError("network bed", got=f"delay_ms={delay_ms}", expected="0 to 1000 ms")
        self.nodes, self.rate, self.delay_ms = nodes, rate, delay_ms
        self.name = own(next(_BEDS))
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        sweep()
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def address(self, node: int) -> str:
        """IP address of a node."""
        return f"10.77.77.{node + 1}"

    def spawn(
        self, node: int, command: Sequence[str], env: Mapping[str, str] | None = None, *, output: Path
    ) -> subprocess.Popen[str]:
        """Start a command on a node, with all that it prints added to ``output``; it ends with the bed."""
        quota = self._quota(node)
        with output.open("a") as stream:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self._space(node), *command],
                env={**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "TP_SOCKET_IFNAME": "eth0", **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self._processes.append(process)
        if quota.is_dir():
            with suppress(ProcessLookupError):
                (quota / "cgroup.procs").write_text(str(process.pid))
        return process

    def run(
        self, node: int, command: Sequence[str], env: Mapping[str, str] | None = None, limit_s: float = 60
    ) -> str:
        """What a command prints on a node; killed after ``limit_s``.

        Raises:
            UsageError: it failed or took too long.
        """
        return self._together({node: command}, {node: env or {}}, limit_s)[node]

    def ranks(self, command: Sequence[str], limit_s: float = 60) -> list[str]:
        """What a program of ``torch.distributed`` prints that runs on all nodes, one rank on each.

        Raises:
            UsageError: one of them failed, or they took too long; all are killed then.
        """
        common = {
            "MASTER_ADDR": self.address(0),
            "MASTER_PORT": "29500",
            "WORLD_SIZE": str(self.nodes),
            "OMP_NUM_THREADS": "1",
        }
        env = {node: {**common, "RANK": str(node)} for node in range(self.nodes)}
        return list(self._together(dict.fromkeys(range(self.nodes), command), env, limit_s).values())

    def bytes(self, node: int) -> tuple[int, int]:
        """Bytes sent and received by a node's interface since it was made.

        A segment counts once, however many packets a wire would need: payload plus about 0.1 %.
        """
        (link,) = json.loads(do("ip", "-n", self._space(node), "-s", "-j", "link", "show", "eth0"))
        return link["stats64"]["tx"]["bytes"], link["stats64"]["rx"]["bytes"]

    def reshape(self, node: int, rate: str | None) -> None:
        """Give the link of one node another rate, in both directions."""
        for space, device in ((self._space(node), "eth0"), (self._switch, f"p{node}")):
            with suppress(UsageError):  # nothing there yet
                do("tc", "-n", space, "qdisc", "del", "dev", device, "root")
            if rate:
                shape = f"tbf rate {rate} burst {_BURST} limit {10 * _BURST}".split()
                do("tc", "-n", space, "qdisc", "add", "dev", device, "root", *shape)

    def weaken(self, node: int, share: float) -> None:
        """Give everything that is started on a node from now on ``share`` of one core (cgroup v1).

        Raises:
            UsageError: a share below 0.01, or another kind of control groups.
        """
        if not 0.01 <= share <= 64:
            raise UsageError("weak node", got=f"share={share}", expected="0.01 to 64 cores")
        quota = self._quota(node)
        if QUOTAS.is_dir():
            quota.mkdir(exist_ok=True)
        if not (quota / "cpu.cfs_quota_us").exists():  # a folder like any other, where nothing is mounted
            with suppress(OSError):
                quota.rmdir()
            raise UsageError("weak node", got="no cgroup v1 controller 'cpu'", expected=f"it at {QUOTAS}")
        (quota / "cpu.cfs_period_us").write_text("100000")
        (quota / "cpu.cfs_quota_us").write_text(str(round(share * 100_000)))

    def close(self) -> None:
        """Kill what runs in the bed and remove it; may be called again."""
        for process in self._processes:
            _kill(process)
        for space in spaces():
            if space.startswith(f"{self.name}-"):
                remove(space)
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            for stream in (process.stdout, process.stderr):
                if stream:
                    stream.close()
        self._processes.clear()
        for quota in quotas():
            if quota.name.startswith(f"{self.name}-"):
                drop_quota(quota)

    @property
    def _switch(self) -> str:
        return f"{self.name}-switch"

    def _space(self, node: int) -> str:
        if not 0 <= node < self.nodes:
            raise UsageError("network bed", got=f"node {node}", expected=f"0 to {self.nodes - 1}")
        return f"{self.name}-n{node}"

    def _quota(self, node: int) -> Path:
        return QUOTAS / self._space(node)

    def _together(
        self, commands: Mapping[int, Sequence[str]], env: Mapping[int, Mapping[str, str]], limit_s: float
    ) -> dict[int, str]:
        with tempfile.TemporaryDirectory() as place:
            outputs = {node: Path(place, str(node)) for node in commands}
            processes = {n: self.spawn(n, c, env[n], output=outputs[n]) for n, c in commands.items()}
            try:
                _wait(processes.values(), limit_s)
                codes = {node: process.poll() for node, process in processes.items()}
            finally:
                for process in processes.values():
                    _kill(process)
                    process.wait()
            said = {node: outputs[node].read_text(errors="replace") for node in commands}
        for node, code in sorted(codes.items(), key=lambda each: not each[1]):  # first those that failed
            if code != 0:
                status = f"exit status {code}" if code else f"no end after {limit_s} s"
                raise failed(commands[node], f"{status} on node {node}: {said[node][-_SAID:]}")
        return said

    def _build(self) -> None:
        do("ip", "netns", "add", self._switch)
        do("ip", "-n", self._switch, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        do("ip", "-n", self._switch, "link", "set", "br0", "up")
        relay = None
        with tempfile.TemporaryDirectory() as place:
            if self.delay_ms:
                relay = _relay(Path(place))
            for node in range(self.nodes):
                space = self._space(node)
                do("ip", "netns", "add", space)
                do("ip", "-n", space, "link", "set", "lo", "up")
                self._connect(node, relay)
                do("ip", "-n", space, "addr", "add", f"{self.address(node)}/24", "dev", "eth0")
                do("ip", "-n", space, "link", "set", "eth0", "up")
                do("ip", "-n", self._switch, "link", "set", f"p{node}", "master", "br0", "up")
                if self.rate:
                    self.reshape(node, self.rate)

    def _connect(self, node: int, relay: Path | None) -> None:
        space, port = self._space(node), f"p{node}"
        if relay is None:
            pair = ["type", "veth", "peer", "name", port, "netns", self._switch]
            do("ip", "link", "add", "eth0", "netns", space, *pair)
            return
        process = subprocess.Popen(
            [str(relay), space, "eth0", self._switch, port, str(round(self.delay_ms * 1000))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._processes.append(process)
        assert process.stdout is not None  # pipes, for the type checker
        assert process.stderr is not None
        if process.stdout.readline() != "ready\n":
            raise failed(["delay"], process.stderr.read())


def _wait(processes: Collection[subprocess.Popen[str]], limit_s: float) -> None:
    """Until all have ended, one has failed, or the time is over."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if any(codes) or None not in codes:
            return
        time.sleep(0.02)


def _kill(process: subprocess.Popen[str]) -> None:
    """With what it started; its process id is its own until it has been waited for."""
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _relay(place: Path) -> Path:
    """The relay, compiled into a folder."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise UsageError("delay of links", got="no C compiler", expected="cc", hint="use delay_ms=0")
    do(compiler, "-O2", "-o", str(place / "delay"), str(Path(__file__).with_name("delay.c")))
    return place / "delay"
