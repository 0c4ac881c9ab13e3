"""Runs by several ranks: the selections of one process, one clear error where a rank dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rank_functions
from forked import until
from rank_processes import Processes, run_ranks
from short_forms import mark_rest_long
from upslope.errors import RunError
from upslope.experiment.environment import differing, environment
from upslope.ledger import read_run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX processes")


@pytest.fixture(scope="module")
def of_one(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """What one process asks for."""
    asked = rank_functions.chosen(None, tmp_path_factory.mktemp("one") / "run")
    assert asked is not None
    return asked


@pytest.mark.long
def test_ranks_select_what_one_process_selects(tmp_path: Path, of_one: list[list[str]]) -> None:
    got = run_ranks(2, rank_functions.chosen, tmp_path / "run", folder=tmp_path)
    assert got == of_one
    assert read_run(tmp_path / "run").environment["processes"] == 2


@pytest.mark.parametrize(("victim", "then"), mark_rest_long([(1, 1), (0, 2)], 2))
def test_a_killed_rank_is_one_error_and_the_run_goes_on(
    tmp_path: Path, of_one: list[list[str]], victim: int, then: int
) -> None:
    run = tmp_path / "run"
    processes = Processes(2, rank_functions.chosen, run, 0.05, folder=tmp_path)
    leader = processes.ranks[0]
    until(lambda: leader.output.count("cycle 1") > 2)
    processes.ranks[victim].send(signal.SIGKILL)
    codes = processes.end()
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == RunError.exit_code
    told = re.findall(r"RunError: .+", processes.output)
    assert told == [
        f"RunError: Expected all 2 processes to keep running but rank {victim} ended. Nothing "
        "recorded is lost: the same command goes on, also with another number of processes."
    ]
    assert "Traceback" not in processes.output
    assert (run / "training.safetensors").exists()  # it goes on in the middle of a training

    if then == 1:
        with pytest.warns(UserWarning, match="processes 2 -> 1"):
            assert rank_functions.chosen(None, run) == of_one
    else:
        assert run_ranks(then, rank_functions.chosen, run, folder=tmp_path / "again") == of_one


def test_a_request_to_stop_ends_all_ranks_and_the_run_goes_on(
    tmp_path: Path, of_one: list[list[str]]
) -> None:
    run = tmp_path / "run"
    processes = Processes(2, rank_functions.chosen, run, 0.05, folder=tmp_path)
    until(lambda: processes.ranks[0].output.count("cycle 1") > 2)
    for rank in processes.ranks:
        rank.send(signal.SIGINT)
    assert processes.end() == [130, 0]
    assert run_ranks(2, rank_functions.chosen, run, folder=tmp_path / "again") == of_one


def test_another_number_of_processes_is_told_and_old_records_have_one() -> None:
    now = environment(torch.device("cpu"))
    assert now["processes"] == 1
    old = {k: v for k, v in now.items() if k != "processes"}
    assert differing(old, now) == []
    assert differing(old, {**now, "processes": 4}) == ["processes 1 -> 4"]


def test_a_command_that_several_processes_cannot_share_is_refused() -> None:
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "upslope", "status", "runs/none"],
        env={**os.environ, **place}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "torchrun started 2 processes for `upslope status`" in done.stderr


@pytest.mark.slow
def test_an_early_error_is_told_by_rank_0_before_another_rank_ends(tmp_path: Path) -> None:
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    command = [sys.executable, "-m", "upslope", "score", str(tmp_path / "nope")]
    # torchrun ends the others once one has ended: here rank 1 has a head start.
    other = subprocess.Popen(command, env={**os.environ, **place, "RANK": "1"})
    try:
        leader = subprocess.run(
            command, env={**os.environ, **place, "RANK": "0"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert leader.returncode != 0
        assert "nope" in leader.stderr
        assert other.poll() is None
    finally:
        other.terminate()
        assert other.wait(30) != 0


@pytest.mark.long
def test_torchrun_runs_scores_and_writes_once(tmp_path: Path) -> None:
    command = [
        "--set", "experiment.initial=30", "--set", "experiment.budget=10", "--set",
        "experiment.cycles=2", "--set", "training.epochs=2", "--set", "data.limit=200",
        "--strategy", "margin", "--device", "cpu",
    ]  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    upslope(1, "run", *command, "--out", str(one))
    shown = upslope(2, "run", *command, "--out", str(two))
    assert shown.count("page ") == 1  # rank 0 alone reports
    run = two / "margin" / "seed-0"
    assert rank_functions.asked(run) == rank_functions.asked(one / "margin" / "seed-0")
    for size in (1, 2):
        upslope(size, "score", str(run), "--scores", "egl", "--out", str(tmp_path / f"{size}.csv"))
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()


def upslope(size: int, *arguments: str) -> str:
    """Run a command by so many processes of torchrun, or without it; returns what it prints."""
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={size}", "-m"]
    done = subprocess.run(
        [sys.executable, "-m", *(torchrun if size > 1 else []), "upslope", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_of_the_page_runs_without_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "devices.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(# several\.py.*?)^```", page, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("epochs=4", "epochs=1"), "several.py", "exec"), {})
    assert read_run("runs/several").finished
