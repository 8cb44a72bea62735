"""The bed of network namespaces: rates, delays, bytes, weak nodes, and that nothing of it is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from network.bed import Bed, missing

from gracile.errors import UsageError
from network import bed, spaces

BENCHMARKS = Path(bed.__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "runs")

TALK = """
import socket, sys, time
sent = int(sys.argv[2])
if sys.argv[1] == "listen":
    server = socket.create_server(("0.0.0.0", 5000))
    print("listening", flush=True)
    peer, _ = server.accept()
    peer.sendall(b"x")
    left = sent
    while left:
        left -= len(peer.recv(1 << 20))
    peer.sendall(b"x")
else:
    began = time.perf_counter()
    peer = socket.create_connection((sys.argv[3], 5000))
    peer.recv(1)
    print(time.perf_counter() - began)
    began = time.perf_counter()
    peer.sendall(b"x" * sent)
    peer.recv(1)
    print(time.perf_counter() - began)
"""


def mine() -> list[str]:
    return [name for name in spaces.spaces() if name.startswith(f"gracile-{os.getpid()}-")]


def wait_until(fine: Callable[[], object]) -> None:
    for _ in range(200):
        if fine():
            return
        time.sleep(0.05)
    pytest.fail("never")


def talk(where: Bed, size: int, said: Path) -> tuple[float, float]:
    """Seconds of opening a connection from node 1 to node 0, and of sending ``size`` bytes."""
    said.write_text("")
    server = where.spawn(0, [sys.executable, "-c", TALK, "listen", str(size)], output=said)
    wait_until(said.read_text)
    answer = where.run(1, [sys.executable, "-c", TALK, "call", str(size), where.address(0)], limit_s=30)
    server.wait(10)
    opening, sending = map(float, answer.split())
    return opening, sending


def test_bytes_take_the_time_that_the_rate_says_and_are_counted(tmp_path):
    size = 2_000_000
    with Bed(2, rate="20mbit") as where:
        before = [where.bytes(node) for node in range(2)]
        _, seconds = talk(where, size, tmp_path / "said")
        sent, received = where.bytes(1)[0] - before[1][0], where.bytes(0)[1] - before[0][1]
        where.reshape(1, "200mbit")
        where.reshape(0, None)
        faster = talk(where, size, tmp_path / "said")[1]
    wire = (size - 70_000) * 8 / 20e6  # what the bucket holds passes at once
    assert wire < seconds < 2.5 * wire
    assert faster < seconds / 2
    assert size < sent < 1.02 * size
    assert size < received < 1.02 * size


def test_a_round_trip_takes_four_delays(tmp_path):
    with Bed(2, delay_ms=10) as where:
        opening, _ = talk(where, 1, tmp_path / "said")
    assert 0.080 <= opening < 0.8  # two round trips, of 40 ms each, and the machine's other work


def test_nothing_is_left_after_an_exception_and_processes_have_ended(tmp_path):
    try:
        with Bed(2) as where:
            process = where.spawn(0, ["sleep", "600"], output=tmp_path / "said")
            assert len(mine()) == 3
            raise RuntimeError
    except RuntimeError:
        pass
    assert not mine()
    assert process.poll() == -signal.SIGKILL


def test_what_a_killed_owner_left_is_removed_and_living_owners_keep_theirs():
    script = (
        "import os, time\nfrom pathlib import Path\nfrom network.bed import Bed\n"
        "with Bed(1) as bed:\n    bed.spawn(0, ['sleep', '600'], output=Path(os.devnull))\n"
        "    print(bed.name, flush=True)\n    time.sleep(600)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS)},
        stdout=subprocess.PIPE,
    )
    name = owner.stdout.readline().decode().strip()
    with Bed(1):  # it lives
        assert Path(f"/run/netns/{name}-n0").exists()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    pids = subprocess.run(["ip", "netns", "pids", f"{name}-n0"], capture_output=True, text=True, check=True)
    with Bed(1):
        assert not Path(f"/run/netns/{name}-n0").exists()
        assert not Path(f"/run/netns/{name}-switch").exists()
        assert len(mine()) == 2
    (left,) = map(int, pids.stdout.split())
    wait_until(lambda: not spaces.started(left))


def test_a_process_id_that_was_given_anew_is_no_owner():
    assert not spaces.orphan(f"gracile-{os.getpid()}-{spaces.started(os.getpid())}-0-n0")
    assert spaces.orphan(f"gracile-{os.getpid()}-1-0-n0")
    assert not spaces.orphan("gracile-of-somebody-else")


def test_a_command_that_hangs_is_killed_and_one_that_fails_is_told():
    with Bed(1) as where:
        with pytest.raises(UsageError, match=r"no end after 0\.3 s"):
            where.run(0, ["sleep", "60"], limit_s=0.3)
        with pytest.raises(UsageError, match="exit status 3"):
            where.run(0, ["sh", "-c", "exit 3"])
        with pytest.raises(UsageError, match="node 1"):
            where.run(1, ["true"])


def test_ranks_meet_and_all_end_when_one_fails():
    said = """
import os
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([dist.get_rank() + 1])
dist.all_reduce(total)
print(int(total), os.environ["GLOO_SOCKET_IFNAME"])
dist.barrier()
dist.destroy_process_group()
"""
    with Bed(2) as where:
        assert ["3 eth0\n" in answer for answer in where.ranks([sys.executable, "-c", said])] == [True] * 2
        began = time.monotonic()
        with pytest.raises(UsageError, match=r"exit status 4 on node 1: why"):
            where.ranks(["sh", "-c", "test $RANK = 0 && exec sleep 60; echo why; exit 4"])
        assert time.monotonic() - began < 30


def test_a_weak_node_gets_its_share_of_a_core():
    work = "import time\nend = time.time() + 1\nwhile time.time() < end: pass\nprint(time.process_time())"
    with Bed(1) as where:
        try:
            where.weaken(0, 0.2)
        except UsageError as error:
            pytest.skip(str(error))
        used = float(where.run(0, [sys.executable, "-c", work]))
        quota = where._quota(0)
    assert used < 0.45  # of one second; start-up and one period beside the 0.2
    assert not quota.exists()


@pytest.mark.parametrize("arguments", [{"nodes": 0}, {"nodes": 201}, {"nodes": 2, "delay_ms": -1.0}])
def test_numbers_out_of_range_are_refused(arguments):
    with pytest.raises(UsageError, match="network bed"):
        Bed(**arguments)
