"""Network namespaces and CPU quotas that carry their owner's name, so that what the dead left can be removed.

Nothing but what a living or dead bed made is touched: names hold the owner's process id and when it started.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gracile.errors import UsageError

QUOTAS = Path("/sys/fs/cgroup/cpu")

_NAME = re.compile(r"gracile-(\d+)-(\d+)-\d+-\w+")
_SPACES = Path("/run/netns")
_LIMIT_S = 30


def do(*command: str) -> str:
    """What a command prints; UsageError when it fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise failed(command, f"no end after {_LIMIT_S} s") from None
    if done.returncode:
        raise failed(command, done.stderr.strip() or f"exit status {done.returncode}")
    return done.stdout


def failed(command: Sequence[str], why: str) -> UsageError:
    """The error of a command that did not do what it should."""
    return UsageError(f"'{' '.join(command[:6])}'", got=why, expected="it to succeed")


def own(number: int) -> str:
    """The beginning of the names of this process's bed of that number."""
    return f"gracile-{os.getpid()}-{started(os.getpid())}-{number}"


def spaces() -> list[str]:
    """All namespaces that beds have made."""
    return sorted(path.name for path in _SPACES.glob("gracile-*")) if _SPACES.is_dir() else []


def quotas() -> list[Path]:
    """All groups of processes that beds have made."""
    return sorted(QUOTAS.glob("gracile-*")) if QUOTAS.is_dir() else []


def sweep() -> list[str]:
    """Remove what beds of dead processes left: kill what runs there, delete; return the names."""
    left = [space for space in spaces() if orphan(space)]
    for space in left:
        remove(space)
    for quota in quotas():
        if orphan(quota.name):
            drop_quota(quota)
    return left


def orphan(name: str) -> bool:
    """Whether a name is a bed's whose owner is dead, its process id perhaps taken by another since."""
    found = _NAME.fullmatch(name)
    return found is not None and started(int(found[1])) != found[2]


def started(pid: int) -> str:
    """When a process began, in ticks since boot; empty when there is none, or when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def remove(space: str) -> None:
    """Kill what runs in a namespace, and delete it."""
    for _ in range(10):  # what was just being started shows only the next time
        pids: list[str] = []
        with suppress(UsageError):
            pids = do("ip", "netns", "pids", space).split()
        if not pids:
            break
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.01)
    with suppress(UsageError):
        do("ip", "netns", "del", space)


def drop_quota(quota: Path) -> None:
    """Delete a group of processes once those that were killed have left it."""
    for _ in range(50):
        with suppress(OSError):
            quota.rmdir()
        if not quota.exists():
            return
        time.sleep(0.02)
