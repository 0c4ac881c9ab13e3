"""Commands of Upslope in processes of their own, started by forking one that has imported it all.

A start costs milliseconds instead of seconds, and is otherwise that of `upslope` in a shell: its
own session, its output in a file, its signals at their defaults. Workers that the command spawns
are forked as well (`quick_workers`), unless a trial wants their start as it is.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import spawn, util
from pathlib import Path

import psutil

from upslope.processes import STOPPING

PATIENCE = 240.0
"""Seconds for a command that takes some three: only one that hangs needs so long."""
LEAVING = 60.0
"""Seconds that workers may outlive the process that started them: those that start import first."""
_TRACEBACK = re.compile(r"(?<!_exitfunc of <class 'weakref.finalize'>>\n)Traceback \(most recent")
"""A second Ctrl-C may meet Python itself as it ends; what it then says is not Upslope's."""
_BEGINNING = re.compile(
    r"Traceback \(most recent call last\):\n(?:  .*\n)+EOFError: Ran out of input\n"
)
"""What Python says of a worker whose parent was killed before it had sent it anything."""


_RUNNING: set[int] = set()


@dataclass(frozen=True)
class Ended:
    """How a command ended. code: its exit code, minus a signal's number, or None: it hung and was
    killed. output: what it printed. left: processes of its session that outlived it."""

    code: int | None
    output: str
    left: tuple[int, ...] = ()

    @property
    def fault(self) -> tuple[str, str] | None:
        """A bad outcome and its description, whatever was done to the command; None without."""
        tail = self.output.strip()[-1500:]
        if self.code is None:
            return "hung", tail
        if self.left:
            return "left over", f"{len(self.left)} processes after exit code {self.code}: {tail}"
        if _TRACEBACK.search(_BEGINNING.sub("", self.output)) or self.code == 1:
            return "foreign", f"exit code {self.code}: {tail}"
        return None


class Child:
    """A command that runs. Its process leads a session of its own, which holds its workers too."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        before: Callable[[], None] | None = None,
    ) -> None:
        """Start it. log: the file of its output; before: called in the new process first."""
        self.log = log
        log.touch()
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal that is sent at once must meet the command's rules for it, not this process's.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # this process has no other thread
            self.pid = os.fork()
        if self.pid == 0:
            _become(arguments, log, before, blocked)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        _RUNNING.add(self.pid)

    def running(self) -> bool:
        """Whether it has not ended yet; it stays a zombie until `end`."""
        info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return info is None

    def send(self, number: int) -> None:
        """Send a signal to its process."""
        os.kill(self.pid, number)

    def send_all(self, number: int) -> None:
        """Send a signal to all processes of its group, as a terminal does."""
        os.killpg(self.pid, number)

    def workers(self) -> list[int]:
        """Return the processes that it has started and that compute."""
        there = []
        for pid in session(self.pid) - {self.pid}:
            try:
                if "resource_tracker" not in " ".join(psutil.Process(pid).cmdline()):
                    there.append(pid)
            except psutil.Error:
                continue
        return there

    def end(self, patience: float = PATIENCE) -> Ended:
        """Wait for its end, and for that of its workers; whatever is then left is killed."""
        deadline = time.monotonic() + patience
        while self.running() and time.monotonic() < deadline:
            time.sleep(0.01)
        hung = self.running()
        if hung:
            self.send_all(signal.SIGKILL)
        deadline = time.monotonic() + LEAVING
        while (left := session(self.pid) - {self.pid}) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        _RUNNING.discard(self.pid)
        output = self.log.read_text(encoding="utf-8", errors="replace")
        code = None if hung else os.waitstatus_to_exitcode(status)
        return Ended(code, output, () if hung else tuple(left))


def kill_all() -> None:
    """Kill the commands that nobody has waited for, as when the campaign is interrupted."""
    for leader in list(_RUNNING):
        for pid in session(leader):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(leader, 0)
        _RUNNING.discard(leader)


def session(leader: int) -> set[int]:
    """Return the processes of a session that have not ended."""
    there = set()
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == leader and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                there.add(pid)
        except (ProcessLookupError, psutil.Error):
            continue
    return there


def quick_workers() -> None:
    """Make this process start its workers by forking itself, in place of a new Python.

    Everything else is as `multiprocessing` spawns: the worker closes what it was not handed, gets
    what it needs through its pipe, and has its signals at their defaults. Imports, which take
    seconds, are what it saves.
    """
    start_python = util.spawnv_passfds

    def start(path: bytes, arguments: Sequence[str], handles: Sequence[int]) -> int:
        if "--multiprocessing-fork" not in arguments:
            return start_python(path, arguments, handles)
        if (pid := os.fork()) == 0:
            _be_worker(arguments, handles)
        return pid

    util.spawnv_passfds = start


def _be_worker(arguments: Sequence[str], handles: Sequence[int]) -> None:
    """Be a worker of `multiprocessing`, in the process just forked; never returns."""
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        last = 2
        for handle in sorted(handles):
            os.closerange(last + 1, handle)
            last = handle
        os.closerange(last + 1, os.sysconf("SC_OPEN_MAX"))
        spawn.set_executable(sys.executable)
        sys.argv = ["-c", "--multiprocessing-fork"]
        text = next(word for word in map(os.fsdecode, arguments) if "spawn_main" in word)
        words = dict(re.findall(r"(\w+)=(\d+)", text))
        spawn.spawn_main(**{name: int(value) for name, value in words.items()})
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _become(
    arguments: Sequence[str],
    log: Path,
    before: Callable[[], None] | None,
    blocked: set[signal.Signals],
) -> None:
    """Be the command, in the process just forked; never returns. blocked: signals held back."""
    code: object = 1
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for stream in (1, 2):
            os.dup2(handle, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        # What pytest or a pipe put in the place of the streams belongs to the parent.
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False, buffering=1)
        sys.argv = ["upslope", *arguments]
        if before is not None:
            before()
        from upslope.cli import main

        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        except KeyboardInterrupt:  # came before the command began, whose own answer it would be
            sys.exit(130)
        main()
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code if isinstance(code, int) else int(code is not None))
