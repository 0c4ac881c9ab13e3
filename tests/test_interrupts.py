"""Ctrl-C that nobody hears of: dropped by Python, or turned into an error by a library."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
import typer

from upslope.cli.console import telling_errors
from upslope.errors import ModelError, RunError
from upslope.progress import Interrupted, noting_interrupts, stop_on_signals

_PLACE = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
"""What torchrun says to a process."""


@pytest.fixture(autouse=True)
def answered() -> Iterator[None]:
    """Signals as a terminal's: what starts in the background, or by nohup, ignores some of them."""
    own = {signal.SIGINT: signal.default_int_handler}
    if hasattr(signal, "SIGHUP"):
        own[signal.SIGHUP] = signal.SIG_DFL
    before = {number: signal.signal(number, handler) for number, handler in own.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupt() -> None:
    """As the terminal does: Python answers before this returns."""
    os.kill(os.getpid(), signal.SIGINT)


def code_of(work: Callable[[], object]) -> int:
    """The exit code of a command that does this."""
    with pytest.raises(typer.Exit) as ended, telling_errors("Go on so."):
        work()
    return int(ended.value.exit_code)


@pytest.mark.parametrize("error", [ModelError, RuntimeError])
def test_one_that_is_turned_into_an_error_is_a_stop(
    capsys: pytest.CaptureFixture[str], error: type[Exception]
) -> None:
    def work() -> None:
        try:
            interrupt()
        except KeyboardInterrupt:
            raise error("Expected a sound file but reading it failed.") from None

    assert code_of(work) == 130
    said = capsys.readouterr().err
    assert "Go on so." in said
    assert "Expected" not in said


def test_every_command_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), telling_errors():
        interrupt()
    assert "Stopped. No result was written: run the same command again" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_requests_to_end_are_answered_likewise(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command cleans up and says how to go on; what it leaves to libraries is cleaned up too."""
    number = getattr(signal, name)
    before = signal.getsignal(number)
    cleaned: list[bool] = []

    def work() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            cleaned.append(True)

    assert before == signal.SIG_DFL
    assert code_of(work) == 130
    assert cleaned == [True]
    assert capsys.readouterr().err == "Stopped. Go on so.\n"
    assert signal.getsignal(number) == before


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_process_of_torchrun_leaves_its_end_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in _PLACE.items():
        monkeypatch.setenv(name, value)
    with telling_errors():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_error_without_one_is_an_error() -> None:
    def work() -> None:
        raise ModelError("Expected another.")

    assert code_of(work) == ModelError.exit_code


def test_one_that_python_drops_stops_the_work_that_begins_afterwards(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Thing:
        pass

    def work() -> None:
        thing = Thing()
        reference = weakref.ref(thing, lambda _: interrupt())
        del thing  # what its callback raises, Python drops
        assert reference() is None
        with stop_on_signals() as stop:
            stop.check()
        raise AssertionError("it went on")

    assert code_of(work) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_without_one_nothing_is_stopped_and_all_is_as_before() -> None:
    before = signal.getsignal(signal.SIGINT), sys.unraisablehook
    with noting_interrupts() as interrupts, stop_on_signals() as stop:
        stop.check()
    assert not interrupts.seen
    assert (signal.getsignal(signal.SIGINT), sys.unraisablehook) == before


def test_three_in_a_row_are_one_stop() -> None:
    """The first asks, the second interrupts at once, a third comes while things are cleaned up."""
    came = []

    def work() -> None:
        with stop_on_signals() as stop:
            interrupt()
            came.append(stop.requested)
            try:
                interrupt()
            except KeyboardInterrupt:
                came.append("second")
        interrupt()

    assert code_of(work) == 130
    assert came == [True, "second"]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")
def test_a_terminal_that_closes_asks_for_a_stop_unless_it_is_ignored() -> None:
    def work() -> None:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            stop.check()

    with pytest.raises(Interrupted):
        work()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        work()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_nothing_is_changed() -> None:
    seen = []
    thread = threading.Thread(target=lambda: seen.append(handler_inside()))
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


def handler_inside() -> object:
    with noting_interrupts():
        return signal.getsignal(signal.SIGINT)


def test_one_while_python_ends_changes_no_exit_code() -> None:
    """A command has ended, and libraries are torn down: the object below is among the last."""
    done = subprocess.run(
        [
            sys.executable, "-c",
            "import os, signal, sys\n"
            "class Late:\n"
            "    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGINT):\n"
            "        kill(pid, number)\n"
            "sys.late = Late()\n"
            "sys.argv = ['upslope', '--version']\n"
            "from upslope.cli import main\n"
            "main()",
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")],
)
def test_a_want_of_memory_says_what_to_lower_in_every_command(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise error

    assert code_of(work) == RunError.exit_code
    told_of = " ".join(capsys.readouterr().err.split())
    assert "Lower training.batch_size (in a new run), experiment.score_batch" in told_of
