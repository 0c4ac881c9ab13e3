"""Reads mutated files, in processes with bounds on memory and time, and judges what comes of it."""

from __future__ import annotations

import json
import os
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
from functools import cache
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import psutil
from tests.faults.formats import FORMATS, Format
from tests.faults.mutations import mutate
from tests.faults.trials import Trial

from upslope.errors import UpslopeError

MEMORY = 3 << 29
"""Bytes beyond what the process has at its start; files are of some kilobytes."""
SECONDS = 20.0
"""Of the processor, for one input that takes some hundredths."""
_WALL_SECONDS = 300.0


def read_mutated(trial: Trial, folder: Path, count: int, finds: Path) -> None:
    """Mutate and read a format so many times; inputs that went wrong are kept in `finds`."""
    form = FORMATS[trial.subject]
    original = folder / "original"
    original.mkdir()
    form.write(original)
    names = sorted(str(p.relative_to(original)) for p in original.glob(form.victims) if p.is_file())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = _comparable(form.read(original))
    shutil.rmtree(original)
    original.mkdir()
    form.write(original)  # without what the first reading has left beside it
    victims, rng = [], trial.rng
    for i in range(count):
        name = rng.choice(names)
        changed = folder / f"{i}"
        shutil.copytree(original, changed, copy_function=os.link)
        data = (changed / name).read_bytes()
        (changed / name).unlink()
        (changed / name).write_bytes(mutate(data, name, rng))
        victims.append(name)
    trial.faults += count
    for i, (outcome, find) in enumerate(_in_children(form, folder, count, expected)):
        place = f"{trial.subject}-{trial.seed}-{trial.number}-{i}".replace(", ", "-")
        trial.note(outcome, f"input {i}, {victims[i]}: {find}")
        if outcome not in ("same", "refused", "skipped"):
            finds.mkdir(parents=True, exist_ok=True)
            kept = finds / f"{place}-{Path(victims[i]).name}"
            shutil.copyfile(folder / f"{i}" / victims[i], kept)


def _in_children(form: Format, folder: Path, count: int, expected: str) -> list[tuple[str, str]]:
    """Read the inputs in a child process, and after one that ended in another."""
    outcomes: list[tuple[str, str]] = []
    while len(outcomes) < count:
        outcomes += _one_child(form, folder, range(len(outcomes), count), expected)
    return outcomes


def _one_child(form: Format, folder: Path, numbers: range, expected: str) -> list[tuple[str, str]]:
    ours, theirs = os.pipe()
    if (pid := os.fork()) == 0:
        code = 1
        try:
            os.close(ours)
            with os.fdopen(theirs, "w") as pipe:
                _be_reader(form, folder, numbers, expected, pipe)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(theirs)
    outcomes: list[tuple[str, str]] = []
    process, begun, used = psutil.Process(pid), time.monotonic(), 0.0
    why, data = "", b""
    while True:
        ready = select.select([ours], [], [], 0.5)[0]
        part = os.read(ours, 1 << 16) if ready else b""
        *lines, data = (data + part).split(b"\n")
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
    if why:
        outcomes.append(("hung", why))
    elif status and len(outcomes) < len(numbers):
        outcomes.append(("crashed", f"exit code {os.waitstatus_to_exitcode(status)}"))
    return outcomes


def _be_reader(form: Format, folder: Path, numbers: range, expected: str, pipe: TextIO) -> None:
    _bound_memory()
    warnings.simplefilter("ignore")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    outcome = judge(form, folder / "original", expected)
    if outcome[0] != "same":
        raise AssertionError(f"within these bounds, sound files are {outcome}")
    for number in numbers:
        before = set(folder.iterdir())
        outcome = judge(form, folder / f"{number}", expected)
        if more := set(folder.iterdir()) - before:
            outcome = ("left over", f"it made {sorted(more)}")
        pipe.write(json.dumps(outcome) + "\n")
        pipe.flush()


def judge(form: Format, folder: Path, expected: str) -> tuple[str, str]:
    """Read a folder and return the outcome, with a description of a bad one.

    expected: what the valid files give, as `_comparable` writes it.
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
    text = _comparable(got)
    if text == expected:
        return "same", ""
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


def _comparable(value: Any) -> str:
    """Return a text that is equal for equal contents."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {zlib.crc32(np.ascontiguousarray(value).tobytes())}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_comparable, value))}]"
    return repr(value)


@cache
def _bound_memory() -> None:
    """Let this process have so much more memory than now, and no more."""
    most = psutil.Process().memory_info().vms + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
