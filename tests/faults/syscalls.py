"""Every call that changes files, seen before the kernel takes it: Linux's seccomp notifications.

A process installs a filter on itself, which its children and all libraries in them inherit, and
hands the listening end to the process that watches. Each call of the list below then waits until
the watcher lets it go on or answers with an error in the kernel's place. So a fault meets calls of
SQLite, safetensors, NumPy and Python alike, and nothing is patched.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SUPPORTED = sys.platform == "linux" and platform.machine() == "x86_64"

# <asm/unistd_64.h>, of the calls that change a file or a folder, or put a change on the disk.
CALLS = {
    1: "write", 18: "pwrite64", 20: "writev", 296: "pwritev", 328: "pwritev2", 40: "sendfile",
    326: "copy_file_range", 2: "open", 85: "creat", 257: "openat", 76: "truncate",
    77: "ftruncate", 285: "fallocate", 74: "fsync", 75: "fdatasync", 26: "msync", 82: "rename",
    264: "renameat", 316: "renameat2", 83: "mkdir", 258: "mkdirat", 84: "rmdir", 87: "unlink",
    263: "unlinkat", 86: "link", 265: "linkat", 88: "symlink", 266: "symlinkat", 90: "chmod",
    91: "fchmod", 268: "fchmodat",
}  # fmt: skip
WRITES = {"write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range"}
OPENS = {"open", "creat", "openat"}
RENAMES = {"rename", "renameat", "renameat2"}
SYNCS = {"fsync", "fdatasync"}
_BY_HANDLE = WRITES - {"sendfile", "copy_file_range"} | SYNCS | {"ftruncate", "fallocate", "fchmod"}
_BY_FOLDER_HANDLE = {"openat", "mkdirat", "unlinkat", "renameat", "renameat2", "fchmodat"}
_AT_FDCWD = -100

_SECCOMP, _PRCTL_NO_NEW_PRIVILEGES = 317, 38
_SET_FILTER, _NEW_LISTENER, _WAIT_KILLABLE = 1, 1 << 3, 1 << 5
_X86_64 = 0xC000003E
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_CONTINUE = 1
_NOTICE, _ANSWER = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")
_RECEIVE = 3 << 30 | _NOTICE.size << 16 | ord("!") << 8
_SEND = 3 << 30 | _ANSWER.size << 16 | ord("!") << 8 | 1


@dataclass(frozen=True)
class Call:
    """A call that waits. name: of the system call; path: of the file it changes, "" if unknown;
    target: the new path of a rename; creates: it opens a file for writing or makes one."""

    name: str
    path: str
    target: str = ""
    creates: bool = False


Answer = Callable[[Call], int]
"""0 to let a call go on, or the number of the error that it gets."""


class Watched:
    """Watches the calls of one child process and its descendants.

    In the child, call `enter`; in the parent, `watch` until the child has ended.
    """

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()

    def enter(self) -> None:
        """Have every later call of this process seen; the parent must be watching."""
        self._ours.close()
        handle = _install()
        socket.send_fds(self._theirs, [b"!"], [handle])
        os.close(handle)
        self._theirs.close()

    def watch(self, running: Callable[[], bool], answer: Answer) -> None:
        """Answer every call until the process has ended."""
        self._theirs.close()
        listener = -1
        while running():
            if select.select([self._ours], [], [], 0.05)[0]:
                _, handles, _, _ = socket.recv_fds(self._ours, 1, 1)
                if handles:
                    listener = handles[0]
                break
        self._ours.close()
        if listener < 0:
            return
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        try:
            while True:
                events = poll.poll(100)
                if events and events[0][1] & select.POLLIN:
                    _answer_one(listener, answer)
                elif not running() or events:  # a hang-up: the last process is gone
                    return
        finally:
            os.close(listener)


def _answer_one(listener: int, answer: Answer) -> None:
    buffer = array.array("B", bytes(_NOTICE.size))
    try:
        fcntl.ioctl(listener, _RECEIVE, buffer)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINTR):  # it was killed in the meantime
            return
        raise
    id_, pid, _, number, _, _, *arguments = _NOTICE.unpack(buffer)
    code = answer(_call(pid, CALLS[number], arguments))
    reply = _ANSWER.pack(id_, 0, -code, 0 if code else _CONTINUE)
    try:
        fcntl.ioctl(listener, _SEND, array.array("B", reply))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def _call(pid: int, name: str, arguments: list[int]) -> Call:
    if name in _BY_HANDLE:
        return Call(name, _link(f"/proc/{pid}/fd/{_signed(arguments[0])}"))
    if name in ("sendfile", "copy_file_range"):
        return Call(name, _link(f"/proc/{pid}/fd/{arguments[0 if name == 'sendfile' else 2]}"))
    if name == "msync":
        return Call(name, "")
    if name in _BY_FOLDER_HANDLE:
        path = _path(pid, arguments[1], arguments[0])
        target = _path(pid, arguments[3], arguments[2]) if name in RENAMES else ""
        flags = arguments[2] if name == "openat" else 0
    else:
        path, flags = _path(pid, arguments[0]), arguments[1] if name == "open" else 0
        target = _path(pid, arguments[1]) if name in RENAMES else ""
    creates = name in ("creat", "mkdir", "mkdirat") or bool(flags & os.O_CREAT)
    return Call(name, path, target, creates)


def _path(pid: int, address: int, folder: int = _AT_FDCWD) -> str:
    """Return the absolute path of the text at an address of another process."""
    try:
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(address)
            text = os.fsdecode(memory.read(4096).partition(b"\0")[0])
    except (OSError, ValueError):
        return ""
    at = _signed(folder)
    base = _link(f"/proc/{pid}/cwd" if at == _AT_FDCWD else f"/proc/{pid}/fd/{at}")
    return os.path.normpath(os.path.join(base, text))  # noqa: PTH118


def _link(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""


def _signed(value: int) -> int:
    return ctypes.c_int(value & 0xFFFFFFFF).value


def _install() -> int:
    """Set the filter for this process and all it starts; returns the listening end."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_PRCTL_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    numbers = sorted(CALLS)
    load, equal, give = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    steps = [(load, 0, 0, 4), (equal, 1, 0, _X86_64), (give, 0, 0, _ALLOW), (load, 0, 0, 0)]
    steps += [(equal, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    steps += [(give, 0, 0, _ALLOW), (give, 0, 0, _NOTIFY)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *s) for s in steps))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(program)))
    for flags in (_NEW_LISTENER | _WAIT_KILLABLE, _NEW_LISTENER):  # the second before Linux 5.19
        handle = library.syscall(_SECCOMP, _SET_FILTER, flags, header)
        if handle >= 0:
            return int(handle)
    raise OSError(ctypes.get_errno(), "seccomp")


def kill_quietly(pid: int) -> None:
    """Kill the processes of a group, if there are any left."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
