"""The links command: forecasts on a link that is given, and what it says without one."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from gracile.cli import app
from gracile.cost import Link, forecast
from gracile.errors import UsageError
from gracile.zoo import build, load

LENET = ("--model", "lenet", "--dataset", "digits")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["links", *map(str, arguments)], catch_exceptions=False)


def advice(output: str) -> dict[int, str]:
    """The way that is advised for each number of machines."""
    lines = output.split("What to take")[1].splitlines()
    rows = [line.split() for line in lines]
    return {int(row[0]): row[1] for row in rows if row and row[0].isdigit()}


def test_slow_links_want_few_bits_and_fast_ones_do_not():
    slow = run(*LENET, "--mbit", 1, "--machines", "2,64")
    assert slow.exit_code == 0
    assert set(advice(slow.output)) == {2, 64}
    assert "fp32" not in advice(slow.output).values()
    fast = run(*LENET, "--mbit", 1e6, "--ms", 0, "--machines", "2,64")
    assert set(advice(fast.output).values()) == {"fp32"}
    assert "communication = exchanges" in slow.output


def test_figures_are_those_of_the_forecast():
    shapes = [tuple(p.shape) for p in build("lenet", load("digits")).parameters()]
    found = forecast(shapes, 0.02, Link.of(mbit=20, ms=0.5), ranks=[2, 64], overlap=0.25)
    given = ("--mbit", 20, "--ms", 0.5, "--compute", 0.02, "--overlap", 0.25, "--machines", "2,64")
    shown = run(*LENET, *given).output.split("What to take")[0]
    rows = {row[0]: row[1:] for row in map(str.split, shown.splitlines()) if row and row[0].isdigit()}
    for count in (2, 64):
        expected = [f"{1e3 * each.step_s:.3g}" for each in found if each.ranks == count]
        assert rows[str(count)] == expected


def test_the_page_has_a_picture_of_more_machines(tmp_path):
    given = ("--mbit", 20, "--compute", 0.02, "--machines", "1,2,64")
    run(*LENET, *given, "--report", tmp_path / "links.html")
    text = (tmp_path / "links.html").read_text()
    assert text.count("<svg") == 1
    assert "Throughput of 64 machines over one: fp32" in text
    assert "What to take" in text


def test_one_process_needs_the_rate():
    with pytest.raises(UsageError, match="no --mbit"):
        run(*LENET)
    with pytest.raises(UsageError, match="no --mbit"):
        CliRunner().invoke(app, ["train", *LENET, "--probe"], catch_exceptions=False)


def test_no_time_is_not_forecast():
    with pytest.raises(UsageError, match="compute_s"):
        run(*LENET, "--mbit", 100, "--compute", 0)


@pytest.mark.parametrize("given", [["links"], ["links", "--mbit", "100"]])
def test_under_torchrun_rank_0_speaks(given):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    call = "from gracile.cli import app; app()"
    done = subprocess.run(
        [*command, "--no-python", sys.executable, "-c", call, *given, *LENET, "--machines", "2"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("What to take") == 1
