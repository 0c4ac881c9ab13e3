"""Reads damaged files, in processes with bounds on memory and time, and judges what comes of it."""

from __future__ import annotations

import json
import os
import random
import resource
import select
import shutil
import signal
import struct
import sys
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import psutil
from tests.faults.commands import LOCK
from tests.faults.formats import Format
from tests.faults.trials import GOOD, Trial

from upslope.errors import UpslopeError

MEMORY = 3 << 29
"""Bytes beyond what the process has at its start; files are of some kilobytes."""
SECONDS = 20.0
"""Of the processor, for inputs that take some milliseconds together."""
_WALL_SECONDS = 300.0

_READY = "ready"

Damage = Callable[[bytes, str, random.Random], bytes]


@dataclass(frozen=True)
class Inputs:
    """The damaged inputs of a trial, each made anew from its number alone.

    form: the format. originals: path below a folder -> content of the valid files that are damaged.
    address: of the random generators. damage: (content, file name, generator) -> other content.
    exact: whatever is read otherwise than the valid files is damage that went unnoticed.
    """

    form: Format
    originals: Mapping[str, bytes]
    address: str
    damage: Damage
    exact: bool

    def make(self, number: int) -> tuple[str, bytes]:
        """Return the path of the damaged file of an input, and its content."""
        rng = random.Random(f"{self.address}/{number}")
        name = rng.choice(sorted(self.originals))
        return name, self.damage(self.originals[name], name, rng)


def read_damaged(
    trial: Trial, folder: Path, form: Format, finds: Path, damage: Damage, *, exact: bool = False
) -> None:
    """Damage and read a format `form.at_once` times; inputs that went wrong are kept in `finds`."""
    original = folder / "original"
    original.mkdir()
    form.write(original)
    paths = (p for p in original.glob(form.victims) if p.is_file() and p.name != LOCK)
    originals = {str(p.relative_to(original)): p.read_bytes() for p in paths}
    address = f"{trial.seed}/{trial.kind}/{trial.subject}/{trial.number}"
    inputs = Inputs(form, {n: d for n, d in originals.items() if d}, address, damage, exact)
    count = form.at_once
    trial.faults += count
    for i, (outcome, find) in enumerate(_in_children(inputs, folder, count)):
        if outcome in GOOD:
            trial.note(outcome)
            continue
        name, data = inputs.make(i)
        trial.note(outcome, f"input {i}, {name}: {find}")
        place = f"{trial.subject}-{trial.seed}-{trial.number}-{i}".replace(", ", "-")
        finds.mkdir(parents=True, exist_ok=True)
        (finds / f"{place}-{Path(name).name}").write_bytes(data)


def _in_children(inputs: Inputs, folder: Path, count: int) -> list[tuple[str, str]]:
    """Read the inputs in a child process, and after one that ended in another."""
    outcomes: list[tuple[str, str]] = []
    while len(outcomes) < count:
        outcomes += _one_child(inputs, folder, range(len(outcomes), count))
    return outcomes


def _one_child(inputs: Inputs, folder: Path, numbers: range) -> list[tuple[str, str]]:
    ours, theirs = os.pipe()
    if (pid := os.fork()) == 0:
        code = 1
        try:
            os.close(ours)
            with os.fdopen(theirs, "w") as pipe:
                _be_reader(inputs, folder, numbers, pipe)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(theirs)
    outcomes: list[tuple[str, str]] = []
    process, begun, used = psutil.Process(pid), time.monotonic(), 0.0
    why, data, begins = "", b"", False
    while True:
        ready = select.select([ours], [], [], 0.5)[0]
        part = os.read(ours, 1 << 16) if ready else b""
        *lines, data = (data + part).split(b"\n")
        if lines and lines[0].decode() == _READY:
            begins, lines = True, lines[1:]
        outcomes.extend(tuple(json.loads(line)) for line in lines)
        if ready and not part:  # it has ended
            break
        now = sum(process.cpu_times()[:2])
        if lines:
            begun, used = time.monotonic(), now
        if now - used > SECONDS or time.monotonic() - begun > _WALL_SECONDS:
            why = why or f"after {now - used:.0f} s of the processor"
            os.kill(pid, signal.SIGKILL)
    os.close(ours)
    _, status = os.waitpid(pid, 0)
    if not begins:
        raise RuntimeError("sound files cannot be read, or are read in two ways")
    if why:
        outcomes.append(("hung", why))
    elif status and len(outcomes) < len(numbers):
        outcomes.append(("crashed", f"exit code {os.waitstatus_to_exitcode(status)}"))
    return outcomes


def _be_reader(inputs: Inputs, folder: Path, numbers: range, pipe: TextIO) -> None:
    warnings.simplefilter("ignore")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    form, work = inputs.form, folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(folder / "original", work)
    expected = comparable(form.read(work))  # imports are done before the bound
    _bound_memory()
    if comparable(form.read(work)) != expected:
        raise AssertionError("sound files are read in two ways")
    there = _names(folder)
    pipe.write(f"{_READY}\n")
    pipe.flush()
    for number in numbers:
        name, data = inputs.make(number)
        if not form.tidy:
            shutil.rmtree(work)
            shutil.copytree(folder / "original", work)
        (work / name).write_bytes(data)
        outcome = judge(form, work, expected, exact=inputs.exact)
        if form.tidy and (more := _names(folder) ^ there):
            outcome = ("left over", f"it made or removed {sorted(more)}")
            shutil.rmtree(work)
            shutil.copytree(folder / "original", work)
            there = _names(folder)
        (work / name).write_bytes(inputs.originals[name])
        pipe.write(json.dumps(outcome) + "\n")
        pipe.flush()


def _names(folder: Path) -> set[str]:
    return {entry for _, folders, files in os.walk(folder) for entry in (*folders, *files)}


def judge(form: Format, folder: Path, expected: str, *, exact: bool = False) -> tuple[str, str]:
    """Read a folder and return the outcome, with a description of a bad one.

    expected: what the valid files give, as `comparable` writes it. exact: it must be this, unless
    a warning or an error says otherwise.
    """
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            got = form.read(folder)
    except UpslopeError:
        return "refused", ""
    except BaseException as error:  # whatever it is, it is what the campaign looks for
        where = traceback.format_exc().strip().splitlines()[-8:]
        return "foreign", f"{type(error).__name__}: {str(error)[:300]} {' '.join(where)[-900:]}"
    text = comparable(got)
    if text == expected:
        return "same", ""
    if exact:
        noticed = [w for w in told if "damaged" in str(w.message)]
        return ("refused", "") if noticed else ("unnoticed", text[:300])
    if any("left out" in str(warning.message).lower() for warning in told):
        return "skipped", ""
    return ("unnoticed", why) if (why := _unnoticed(form, folder, got)) else ("same", "")


def _unnoticed(form: Format, folder: Path, got: list[Any]) -> str:
    """Say what shows that a file is damaged which was read otherwise than before; "" if nothing.

    A change that nothing in a file contradicts, such as another pixel of a bitmap, is no damage.
    """
    for path in folder.rglob("*.png"):
        if fault := _png_fault(path.read_bytes()):
            return f"{path.name} has {fault}"
    if form.direct is None:
        return ""
    try:
        direct = form.direct(folder)
    except Exception as error:  # the other library's word that it is damaged
        return f"read, though {type(error).__name__}: {error}"
    _, classes, inputs, (_, targets), _, _, test, (_, test_targets) = got
    ours = [inputs[:, 0], _original(classes, targets), test[:, 0], _original(classes, test_targets)]
    for mine, theirs in zip(ours, direct, strict=True):
        if not np.array_equal(mine, theirs):
            return f"{np.asarray(mine).shape} differs from {theirs.shape} of another reader"
    return ""


def _original(classes: list[str], targets: np.ndarray) -> np.ndarray:
    return np.array([int(classes[t]) for t in targets])


def _png_fault(data: bytes) -> str:
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, inner = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        sum_ = data[at + 8 + length : at + 12 + length]
        if kind[:1].isupper() and sum_ != struct.pack(">I", zlib.crc32(kind + inner)):
            return f"a wrong sum of {kind!r}"
        if kind == b"IEND":
            return ""
        at += 12 + length
    return ""


def comparable(value: Any) -> str:
    """Return a text that is equal for equal contents."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {zlib.crc32(np.ascontiguousarray(value).tobytes())}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(comparable, value))}]"
    return repr(value)


@cache
def _bound_memory() -> None:
    """Let this process have so much more memory than now, and no more."""
    most = psutil.Process().memory_info().vms + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
