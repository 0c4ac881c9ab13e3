"""Progress for whoever runs an experiment from Python, where they can see it."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from small_tasks import MODEL, TASK, splits
from upslope import display, strategies
from upslope.cli.console import out
from upslope.comparison import compare
from upslope.display import SafeConsole, err
from upslope.errors import RunError
from upslope.experiment import Experiment, ExperimentSettings
from upslope.progress import Progress, no_progress
from upslope.training import TrainingSettings

SETTINGS = ExperimentSettings(initial=20, budget=10, cycles=2)
TRAINING = TrainingSettings(epochs=1, batch_size=8)
COMMON: dict[str, Any] = {
    "splits": splits(), "task": TASK, "model": MODEL, "settings": SETTINGS, "training": TRAINING,
    "device": "cpu",
}  # fmt: skip


def experiment(folder: Path, **options: Any) -> None:
    with Experiment(folder, strategy=strategies.build("random"), **COMMON, **options) as run:
        run.run()


def comparison(folder: Path, **options: Any) -> None:
    named = {"random": strategies.build("random")}
    compare(folder, strategies=named, seeds=[0], **COMMON, **options)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    screen = io.StringIO()
    monkeypatch.setattr(
        display, "err", Console(file=screen, force_terminal=True, width=120, highlight=False)
    )
    return screen


@pytest.mark.parametrize("work", [experiment, comparison])
def test_a_terminal_shows_cycles_and_who_wants_none_gets_none(
    terminal: io.StringIO, tmp_path: Path, work: Callable[..., None]
) -> None:
    seen: list[Progress] = []
    work(tmp_path / "observed", observer=seen.append)
    work(tmp_path / "off", progress=False)
    assert terminal.getvalue() == ""
    assert {p.phase for p in seen} >= {"train", "evaluate", "cycle"}
    work(tmp_path / "shown")
    text = terminal.getvalue()
    assert "cycle 1 of 2  20 labels  accuracy " in text
    assert "cycle 2 of 2  30 labels  accuracy " in text
    assert "not fitted: training accuracy" in text


def test_neither_a_terminal_nor_a_notebook_shows_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with display.watching_unless_observed(None, 1, progress=True) as observer:
        assert observer is no_progress
    experiment(tmp_path / "run")
    assert capfd.readouterr() == ("", "")


def test_a_notebook_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = type("ZMQInteractiveShell", (), {})()
    ipython = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    with display.watching_unless_observed(None, 1, progress=True) as observer:
        assert isinstance(observer, display.Lines)


def test_the_time_left_is_told_by_what_was_done_since_the_first_cycle() -> None:
    """A minute of reading and three cycles of an earlier call say nothing about the rest."""
    lines: list[str] = []
    clock = [0.0]
    observer = display.Lines(1, lines.append, lambda: clock[0])
    for cycle, seconds in ((3, 60.0), (4, 80.0), (5, 100.0)):
        clock[0] = seconds
        observer(Progress("cycle", 1, 2, {}, "margin/seed-0", cycle, 10, 9, {"accuracy": 0.9}))
    ends = [line.rpartition("%")[2] for line in lines]
    assert ends == ["", "  about 1 min 40 s left", "  about 1 min 20 s left"]


def test_work_of_no_run_is_told_by_its_own_share() -> None:
    """Scores of a pool, with or without shards; in a run they are a part of a cycle."""
    lines: list[str] = []
    clock = [0.0]
    observer = display.Lines(1, lines.append, lambda: clock[0])
    for progress in (
        Progress("shards", 7, 10),
        Progress("score", 300, 1200),
        Progress("score", 300, 1200, run="margin/seed-0", cycle=0, cycles=4, labelled=9),
    ):
        clock[0] += 60.0
        if progress.run:
            observer = display.Lines(1, lines.append, lambda: clock[0])
            clock[0] += 60.0
        observer(progress)
    assert lines == [
        " 70%  score 7 of 10 shards",
        " 25%  score 300 of 1,200 samples",
        "  0%  margin/seed-0  cycle 1 of 4  9 labels: score 300 of 1,200 samples",
    ]


def test_figures_on_the_labels_stand_in_where_there_is_no_test_set() -> None:
    told = display.about(Progress("cycle", 1, 2, {}, "", 0, 2, 9, {"accuracy": 0.97, "loss": 1.0}))
    assert told == "cycle 1 of 2  9 labels  training accuracy 97.0%"


@pytest.mark.parametrize("text", ["\x1b[2Jcat", "\x1b]0;title\x07cat", "\x9b31mcat", "\u202ecat"])
def test_names_command_no_terminal(text: str) -> None:
    """In a line, a styled text and a table; colours of the console's own stay."""
    file = io.StringIO()
    console = SafeConsole(
        file=file, force_terminal=True, color_system="standard", highlight=False, width=60
    )
    table = Table(text)
    table.add_row(text)
    for what in (text, Text(text, style="red"), table):
        console.print(what, markup=False)
    printed = file.getvalue()
    assert printed.count("cat") == 4
    assert "\x1b[31m" in printed
    assert not re.search("\x1b(?!\\[[0-9;]*m)|\x9b|\u202e|\x07", printed)


def test_both_streams_of_the_command_line_are_safe() -> None:
    """What is shown and what is told."""
    assert isinstance(out, SafeConsole)
    assert isinstance(err, SafeConsole)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_error_and_progress_goes_on() -> None:
    with Path("/dev/full").open("w") as full:
        SafeConsole(stderr=True, file=full).print("progress")
    words = r"what the command prints.*No space left"
    with Path("/dev/full").open("w") as full, pytest.raises(RunError, match=words):
        SafeConsole(file=full).print("a result")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [["list"], ["run", "--help"], ["--version"]])
def test_a_command_whose_output_is_full_ends_without_a_traceback(words: list[str]) -> None:
    command = [sys.executable, "-m", "upslope", *words]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 6
    assert ended.stderr.startswith("error Expected to be able to write what the command prints")
    assert ended.stderr.count("\n") == 1


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
@pytest.mark.parametrize("words", [["list"], ["run", "--help"], ["--version"]])
def test_a_command_whose_output_nobody_reads_ends_quietly(words: list[str]) -> None:
    """As one that SIGPIPE ends, and not as a fault of Upslope's."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "upslope", *words]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_work_goes_on_where_nobody_reads_its_progress() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as unread:
        console = SafeConsole(stderr=True, file=unread)
        console.print("progress")
        console.print("more of it")
