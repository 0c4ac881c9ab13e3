"""Workers that are killed, stopped or interrupted: the comparison neither hangs nor differs."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from pathlib import Path

import psutil
import pytest
import torch

import comparison_to_kill
from forked import Forked, until
from upslope.comparison import read_comparison
from upslope.errors import RunError
from upslope.processes import out_of_memory_kills

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def fingerprints(out: Path) -> dict[tuple[str, int], list[str]]:
    return {
        (name, run.seed): [cycle.model_sha256 for cycle in run.cycles]
        for name, runs in read_comparison(out).runs.items()
        for run in runs
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[str]]:
    """What the comparison gives in one process, with a thread as each worker has."""
    out = tmp_path_factory.mktemp("undisturbed")
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `main` sends them to the standard error
        shown = warnings.showwarning
        try:
            assert comparison_to_kill.main(out / "runs", workers=1) == 0
        finally:
            warnings.showwarning = shown
            torch.set_num_threads(threads)
    return fingerprints(out / "runs")


def start(tmp_path: Path, pause: float = 0.0) -> Forked:
    """Start the comparison with two workers, in tmp_path/runs."""
    return Forked(comparison_to_kill.main, tmp_path / "runs", pause, log=tmp_path / "log")


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["while it works", pytest.param("while it starts", marks=pytest.mark.long)]
)
def test_the_seed_of_a_killed_worker_is_taken_over(
    undisturbed: dict[tuple[str, int], list[str]], tmp_path: Path, moment: str
) -> None:
    process = start(tmp_path, pause=0.1)
    until(lambda: len(process.workers()) == 2)
    if moment == "while it works":
        until(lambda: len(list(tmp_path.glob("runs/*/seed-*/ledger.sqlite"))) == 2)
    victim = process.workers()[-1]
    victim.kill()
    assert process.end() == 0, process.output
    assert f"process {victim.pid}) to keep running" in process.output
    assert "ended by SIGKILL" in process.output
    assert fingerprints(tmp_path / "runs") == undisturbed


@pytest.mark.slow
@pytest.mark.long
def test_when_all_workers_are_killed_one_error_says_so(tmp_path: Path) -> None:
    process = start(tmp_path, pause=0.1)
    until(lambda: len(process.workers()) == 2)
    for victim in process.workers():
        victim.terminate()
    assert process.end() == RunError.exit_code
    assert "ended by SIGTERM. No other worker is left" in process.output
    assert "the same command goes on" in process.output
    assert "Traceback" not in process.output


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.long),
        pytest.param(signal.SIGHUP, marks=pytest.mark.long),
    ],
)
def test_a_signal_to_the_whole_group_stops_all_while_workers_start(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = start(tmp_path)
    until(lambda: len(process.workers()) == 2)
    time.sleep(0.5)
    process.send_all(number)
    assert process.end() == 130, process.output
    assert "Traceback" not in process.output


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends stopped children on Linux")
def test_a_stopped_worker_ends_with_its_parent(tmp_path: Path) -> None:
    process = start(tmp_path, pause=0.1)
    until(lambda: len(list(tmp_path.glob("runs/*/seed-*/ledger.sqlite"))) == 2)
    stopped = process.workers()[0]
    stopped.suspend()
    process.send(signal.SIGKILL)
    process.end()
    assert not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE


def test_the_kernel_counts_what_it_killed_for_memory() -> None:
    assert out_of_memory_kills() >= 0
