"""Child processes that neither hang nor outlive their parent: used by workers and by decoders.

The parent wraps the start of its children in `blocking_signals`; each child calls `follow_parent`
before anything else.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""The signals that ask a process to stop."""


@contextmanager
def blocking_signals() -> Iterator[None]:
    """Hold back Ctrl-C, SIGTERM and SIGHUP while children start; they arrive afterwards.

    Children inherit the block, so that none of these signals ends one before its own rules hold:
    `follow_parent` lifts it there.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # The tracker of multiprocessing lifts the block when it starts: it must be running before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent() -> None:
    """Make this child ignore Ctrl-C, which is its parent's to answer, and end when its parent has.

    A thread ends it, which a stopped process (SIGSTOP) does not run before it is continued.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    parent = multiprocessing.parent_process()
    assert parent is not None  # only children call this

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True, name="upslope-follow-parent").start()


def end_with_parent_thread() -> None:
    """Have the kernel kill this child, even a stopped one, when the thread that started it ends.

    A stopped child would keep its locks after its parent is gone. Linux alone can do so; elsewhere
    this does nothing, and `follow_parent` ends the child once it is continued.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None  # only children call this
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent.pid:  # it ended before the kernel was told
            os._exit(1)


def out_of_memory_kills() -> int:
    """Return how many processes the kernel has killed for want of memory; 0 where it never tells.

    The count is that of the whole machine since it started, of Linux alone.
    """
    try:
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0


def make_portable(error: BaseException) -> BaseException:
    """Return an error as another process can take it: itself, or its text in a RuntimeError."""
    try:
        pickle.loads(pickle.dumps(error))  # what this line has just written
    except Exception:  # errors of others need not be picklable, or only in appearance
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
