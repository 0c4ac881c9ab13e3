"""Commands and workers whose memory has a limit: one error that says so, and the same run after."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from upslope import memory
from upslope.errors import DataError, RunError
from upslope.files import disk_errors
from upslope.memory import as_memory_error, raise_memory_error
from upslope.reading import reporting_damage

linux = pytest.mark.skipif(sys.platform != "linux", reason="the limit is told by Linux alone")


@pytest.fixture
def nearly_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_room", lambda: 1 << 20)


WANTS = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("std::bad_alloc"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
]
AMBIGUOUS = [
    RuntimeError("could not create a primitive"),
    RuntimeError("can't start new thread"),
    ImportError("libx.so: failed to map segment from shared object"),
    OSError("codec configuration error when writing image file"),
]


@pytest.mark.parametrize("error", WANTS, ids=repr)
def test_a_want_of_memory_is_told_as_such(error: Exception) -> None:
    told = as_memory_error(error)
    assert told is not None
    assert "Lower training.batch_size (in a new run)" in str(told)
    assert "ulimit" not in str(told)


@pytest.mark.parametrize("error", AMBIGUOUS, ids=repr)
def test_what_has_several_reasons_is_a_want_of_memory_near_a_limit_alone(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_room", lambda: float("inf"))
    assert as_memory_error(error) is None
    monkeypatch.setattr(memory, "_room", lambda: 1 << 20)
    assert "(ulimit -v)" in str(as_memory_error(error))


@pytest.mark.parametrize("error", [ValueError("a"), KeyError("memory"), RuntimeError("size")])
def test_other_errors_are_none(error: Exception, nearly_full: None) -> None:
    assert as_memory_error(error) is None
    raise_memory_error(error)


def test_a_file_is_damaged_where_memory_is_not_short(monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> None:
        with reporting_damage("a file", "Get it again."):
            raise MemoryError("Unable to allocate 8 EiB")

    monkeypatch.setattr(memory, "_room", lambda: 1 << 40)
    with pytest.raises(DataError, match="a file but reading it failed: Unable"):
        read()
    monkeypatch.setattr(memory, "_room", lambda: 1 << 20)
    with pytest.raises(RunError, match="it ran out under the limit"):
        read()


def test_a_disk_is_not_at_fault_where_memory_is_short() -> None:
    with pytest.raises(RunError, match="enough memory"), disk_errors(Path("x")):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")


@linux
@pytest.mark.slow
@pytest.mark.parametrize("mebibytes", [300, 700])
def test_a_limit_below_what_the_libraries_take_is_refused(tmp_path: Path, mebibytes: int) -> None:
    done = upslope(tmp_path, mebibytes, "run", "--out", "out")
    assert done.returncode == RunError.exit_code
    assert done.stderr.startswith("error Expected 1,024 MiB of memory to load torch")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@linux
@pytest.mark.slow
def test_the_room_that_a_limit_leaves_is_counted(tmp_path: Path) -> None:
    program = (
        "import resource, mmap; from upslope import memory\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "assert memory._room() == float('inf')\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), resource.RLIM_INFINITY))\n"
        "assert 190 << 20 < memory._room() <= 200 << 20, memory._room()\n"
        "hold = mmap.mmap(-1, 150 << 20)\n"
        "assert 40 << 20 < memory._room() <= 50 << 20, memory._room()\n"
        "assert memory.is_short()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=environment())


BUFFERS = """
import mmap, resource
import numpy as np
from scipy.linalg import blas
from upslope import memory
from upslope.errors import RunError

def limit(mebibytes):
    used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (mebibytes << 20), resource.RLIM_INFINITY))

matrix = np.ones((300, 300), order='F')
result = np.ones((300, 300), order='F')
limit(20)
try:
    memory.take_buffers()
    raise SystemExit('taken')
except RunError as error:
    assert 'Expected 80 MiB of memory' in str(error), error
limit(90)
memory.take_buffers()
limit(4)
memory.take_buffers()
blas.dgemm(1.0, matrix, matrix, c=result, overwrite_c=1)
np.matmul(matrix, matrix, out=result)
assert (result == 300).all()
"""


@linux
@pytest.mark.slow
def test_a_product_of_matrices_does_not_look_for_memory_for_ever() -> None:
    """Without its buffer, SciPy's OpenBLAS would under a limit that leaves 4 MiB."""
    subprocess.run([sys.executable, "-c", BUFFERS], check=True, env=environment(), timeout=100)


def upslope(folder: Path, mebibytes: int, *words: str) -> subprocess.CompletedProcess[str]:
    command = f"ulimit -v {mebibytes * 1024}; exec {sys.executable} -m upslope {' '.join(words)}"
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
