"""Processes for the tests that kill and interrupt them, forked from one that has imported it all.

A start then costs milliseconds instead of the seconds in which a new interpreter imports torch.
Each leads a session of its own, which holds its workers too, and writes what it prints to a file.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

PATIENCE = 600.0
"""Seconds to wait for a process that should end by itself: only one that hangs takes so long."""
PRELOADED = (
    "upslope.comparison", "upslope.datasets", "upslope.models", "upslope.strategies",
    "upslope.tasks", "upslope.training", "sklearn.datasets", "torch._dynamo",
)  # fmt: skip
_CONTEXT = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
if os.name == "posix":
    _CONTEXT.set_forkserver_preload([*PRELOADED])


class Forked:
    """A function that runs in a process of its own. What it returns is the exit code."""

    def __init__(self, function: Callable[..., int | None], *arguments: object, log: Path) -> None:
        """Start it. log: the file of what it prints, made anew."""
        self.log = log
        log.write_bytes(b"")
        # The server is started once, and looks modules up where this process finds them.
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
        self._process = _CONTEXT.Process(target=_run, args=(function, arguments, log))
        try:
            self._process.start()
        finally:
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def send(self, number: int) -> None:
        """Send a signal to its process."""
        os.kill(self.pid, number)

    def send_all(self, number: int) -> None:
        """Send a signal to all processes of its group, as a terminal does."""
        os.killpg(self.pid, number)

    def await_line(self, line: str) -> None:
        """Wait until it has printed a line."""
        until(lambda: line in self.output.splitlines() or not self._process.is_alive())
        assert line in self.output.splitlines(), self.output

    def workers(self) -> list[psutil.Process]:
        """Return the processes that it has started and that compute."""
        there = []
        for child in psutil.Process(self.pid).children():
            try:
                if "spawn_main" in " ".join(child.cmdline()):
                    there.append(child)
            except psutil.NoSuchProcess:
                continue
        return there

    def end(self, patience: float = PATIENCE) -> int | None:
        """Wait for its end and its workers'; returns the exit code, minus a signal's number."""
        try:
            self._process.join(patience)
            code = self._process.exitcode
            assert code is not None, f"it hangs: {self.output}"
            until(lambda: not _session(self.pid), 10)
        finally:
            self.kill()
        return code

    def kill(self) -> None:
        """Kill it and all of its session."""
        for pid in _session(self.pid):
            os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()


def until(holds: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def _session(leader: int) -> list[int]:
    if not hasattr(os, "getsid"):
        return []
    there = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == leader and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                there.append(pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return there


def _run(function: Callable[..., int | None], arguments: tuple[object, ...], log: Path) -> None:
    """Be the process: its signals as those of a command in a shell, its streams in the file."""
    if os.name == "posix":
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    handle = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    sys.exit(function(*arguments))
