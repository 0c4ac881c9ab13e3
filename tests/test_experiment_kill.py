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
from forked import PATIENCE, Forked
from upslope.checkpoints import load_tensors
from upslope.errors import RunError
from upslope.ledger import RunResult, read_run


def what_counts(run: RunResult) -> list[object]:
    """Everything but the seconds."""
    cycles = [
        (c.n_labelled, c.metrics, c.train_metrics, c.train_loss, c.model_sha256, c.asked, c.scores)
        for c in run.cycles
    ]
    return [run.initial, run.labels, run.pending, run.finished, cycles]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in an interpreter of its own, whose hashes of text are others than here."""
    path = tmp_path_factory.mktemp("whole") / "run"
    done = subprocess.run(
        [sys.executable, run_to_kill.__file__, str(path)],
        capture_output=True, text=True, timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.long)])
@pytest.mark.slow
def test_killed_at_random_moments_it_ends_bit_for_bit_the_same(
    uninterrupted: Path, tmp_path: Path, kills: int
) -> None:
    path, rng = tmp_path / "run", random.Random(7)
    for _ in range(kills):  # of the 89 calls of its observer, the run is far from the last
        moment = (rng.randint(3, 15), rng.uniform(0, 0.02))
        process = Forked(run_to_kill.main, path, None, moment, log=tmp_path / "log")
        assert process.end() == -signal.SIGKILL, process.output
    assert not read_run(path).finished
    process = Forked(run_to_kill.main, path, log=tmp_path / "log")
    assert process.end() == 0, process.output
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
    path, hold = tmp_path / "run", tmp_path / "go on"
    began = time.monotonic()
    process = Forked(run_to_kill.main, path, hold, log=tmp_path / "log")
    process.await_line("training")
    to_training = time.monotonic() - began  # the measure of how busy this machine is
    process.send(signal.SIGINT)
    asked = time.monotonic()
    hold.touch()
    process.end()
    assert time.monotonic() - asked < max(3, 10 * to_training)
    assert "Interrupted" in process.output
    assert (path / "training.safetensors").exists()
    process = Forked(run_to_kill.main, path, log=tmp_path / "log")
    assert process.end() == 0, process.output
    assert what_counts(read_run(path)) == what_counts(read_run(uninterrupted))


def test_a_second_process_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "run"
    process = Forked(run_to_kill.main, path, tmp_path / "never", log=tmp_path / "log")
    try:
        process.await_line("training")
        with pytest.raises(RunError, match=f"process {process.pid} on "):
            run_to_kill.experiment(path)
        assert read_run(path).strategy == "margin"  # reading is for everybody
    finally:
        process.kill()
    run_to_kill.experiment(path).close()  # the lock died with its holder
