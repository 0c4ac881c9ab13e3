"""Killed, interrupted, locked out: what a run directory survives."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import run_to_kill
from upslope.checkpoints import load_tensors
from upslope.errors import RunError
from upslope.ledger import RunResult, read_run

SCRIPT = Path(run_to_kill.__file__)
PATIENCE = 900.0
"""Seconds to wait for a process that should end by itself: only one that hangs takes so long."""


def start(path: Path, pause: float = 0.0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(path), str(pause)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def await_line(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    for got in process.stdout:
        if got.strip() == line:
            return
    assert process.stderr is not None
    raise AssertionError(process.stderr.read())


def what_counts(run: RunResult) -> list[object]:
    """Everything but the seconds."""
    cycles = [
        (c.n_labelled, c.metrics, c.train_metrics, c.train_loss, c.model_sha256, c.asked, c.scores)
        for c in run.cycles
    ]
    return [run.initial, run.labels, run.pending, run.finished, cycles]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run"
    process = start(path)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    return path


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_bit_for_bit_the_same(
    uninterrupted: Path, tmp_path: Path
) -> None:
    path, rng, kills = tmp_path / "run", random.Random(7), 0
    for _ in range(40):
        process = start(path, pause=0.004)
        try:
            await_line(process, "started")
            if kills < 4:
                time.sleep(rng.uniform(0.05, 0.6))
                process.kill()
                kills += 1
                continue
            process.communicate(timeout=PATIENCE)
            break
        finally:
            process.kill()
            process.communicate()
    assert kills == 4
    assert process.returncode == 0
    whole, resumed = read_run(uninterrupted), read_run(path)
    assert what_counts(resumed) == what_counts(whole)
    assert resumed.finished
    for cycle in whole.cycles:
        expected, _ = load_tensors(uninterrupted / cycle.model_file)
        got, _ = load_tensors(path / cycle.model_file)
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[k], got[k]) for k in expected)
    assert not list(path.glob("**/*.part"))
    assert not (path / "training.safetensors").exists()


def test_ctrl_c_stops_soon_and_the_run_goes_on_bit_for_bit(
    uninterrupted: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    began = time.monotonic()
    process = start(path, pause=0.02)
    await_line(process, "training")
    to_training = time.monotonic() - began  # the measure of how busy this machine is
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    _, errors = process.communicate(timeout=PATIENCE)
    assert time.monotonic() - asked < max(3, 3 * to_training)
    assert "Interrupted" in errors
    assert (path / "training.safetensors").exists()
    process = start(path)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert what_counts(read_run(path)) == what_counts(read_run(uninterrupted))


def test_a_second_process_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "run"
    process = start(path, pause=0.05)
    try:
        await_line(process, "started")
        with pytest.raises(RunError, match=f"process {process.pid} on "):
            run_to_kill.experiment(path)
        assert read_run(path).strategy == "margin"  # reading is for everybody
    finally:
        process.kill()
        process.communicate()
    run_to_kill.experiment(path).close()  # the lock died with its holder
