"""Workers that are killed, stopped or interrupted: the comparison neither hangs nor differs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from upslope.comparison import read_comparison
from upslope.errors import RunError
from upslope.processes import out_of_memory_kills

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
SCRIPT = Path(__file__).with_name("comparison_to_kill.py")
PATIENCE = 300.0
"""Seconds to wait for a process that should end by itself: only one that hangs takes so long."""


def start(out: Path, mode: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(out), mode],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children():
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def left(session: int) -> list[int]:
    there = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == session and psutil.Process(pid).status() != "zombie":
                there.append(pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return there


def until(holds: Callable[[], object], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        _, errors = process.communicate(timeout=PATIENCE)
        until(lambda: not left(process.pid), 10)
    finally:
        for pid in left(process.pid):
            os.kill(pid, signal.SIGKILL)
    return process.returncode, errors


def fingerprints(out: Path) -> dict[tuple[str, int], list[str]]:
    return {
        (name, run.seed): [cycle.model_sha256 for cycle in run.cycles]
        for name, runs in read_comparison(out).runs.items()
        for run in runs
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[str]]:
    out = tmp_path_factory.mktemp("undisturbed")
    code, errors = finish(start(out))
    assert code == 0, errors
    return fingerprints(out)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["while it starts", "while it works"])
def test_the_seed_of_a_killed_worker_is_taken_over(
    undisturbed: dict[tuple[str, int], list[str]], tmp_path: Path, moment: str
) -> None:
    process = start(tmp_path, "slow")
    until(lambda: len(workers(process)) == 2)
    if moment == "while it works":
        until(lambda: len(list(tmp_path.glob("*/seed-*/ledger.sqlite"))) == 2)
    victim = workers(process)[-1]
    victim.kill()
    code, errors = finish(process)
    assert code == 0, errors
    assert f"process {victim.pid}) to keep running" in errors
    assert "ended by SIGKILL" in errors
    assert fingerprints(tmp_path) == undisturbed


@pytest.mark.slow
def test_when_all_workers_are_killed_one_error_says_so(tmp_path: Path) -> None:
    process = start(tmp_path, "slow")
    until(lambda: len(workers(process)) == 2)
    for victim in workers(process):
        victim.terminate()
    code, errors = finish(process)
    assert code == RunError.exit_code
    assert "ended by SIGTERM. No other worker is left" in errors
    assert "the same command goes on" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_stops_all_while_workers_start(
    tmp_path: Path, number: signal.Signals
) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # under nohup the child would ignore it as well
    process = start(tmp_path)
    signal.signal(number, before)
    until(lambda: len(workers(process)) == 2)
    time.sleep(0.5)
    os.killpg(process.pid, number)
    code, errors = finish(process)
    assert (code, "Traceback" in errors) == (130, False), errors


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends stopped children on Linux")
def test_a_stopped_worker_ends_with_its_parent(tmp_path: Path) -> None:
    process = start(tmp_path, "slow")
    until(lambda: len(list(tmp_path.glob("*/seed-*/ledger.sqlite"))) == 2)
    stopped = workers(process)[0]
    stopped.suspend()
    process.kill()
    finish(process)
    assert not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE


def test_the_kernel_counts_what_it_killed_for_memory() -> None:
    assert out_of_memory_kills() >= 0
