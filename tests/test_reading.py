"""Files that may be damaged or hostile: memory only after a check, one error, no crash."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from short_forms import mark_rest_long
from upslope.errors import ConfigError, DataError, RunError
from upslope.reading import (
    check_regular,
    check_room,
    limited_to,
    open_unpacked,
    read_in_child,
    read_limit,
    read_npz,
    read_within_limit,
    reporting_damage,
    temporary_folder,
)


def test_the_limit_holds_inside_the_block_alone() -> None:
    before = read_limit()
    with limited_to(0.5):
        assert read_limit() == 2**29
        check_room(2**29, "x")
        with pytest.raises(DataError, match=r"x to take at most 0\.5 GiB .*data\.read_limit"):
            check_room(2**29 + 1, "x")
    assert read_limit() == before
    assert before == 4 * 2**30


@pytest.mark.parametrize("error", [KeyError("a"), AssertionError(), MemoryError(), OSError("x\ny")])
def test_whatever_a_library_raises_is_one_data_error(error: Exception) -> None:
    with (
        pytest.raises(
            DataError, match=r"^Expected a thing in f but reading it failed: \S.*\. Do\.$"
        ),
        reporting_damage("a thing in f", "Do."),
    ):
        raise error


def test_errors_of_our_own_pass_unchanged() -> None:
    with pytest.raises(ConfigError, match=r"^as it is$"), reporting_damage("a", "b"):
        raise ConfigError("as it is")


def test_what_is_no_plain_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero"), tmp_path):
        with pytest.raises(ValueError, match="no plain file"):
            check_regular(path)


def test_a_stream_that_unpacks_to_more_than_it_may_is_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.gz"
    with gzip.open(bomb, "wb") as file:
        for _ in range(40):
            file.write(bytes(1 << 20))
    assert bomb.stat().st_size < 1 << 17
    with (
        limited_to(32 / 1024),
        open_unpacked(bomb) as file,
        pytest.raises(DataError, match="read_limit"),
    ):
        read_within_limit(file, bomb)
    with open_unpacked(bomb) as file:
        assert len(read_within_limit(file, bomb)) == 40 << 20


def test_an_archive_of_arrays_is_measured_before_it_is_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(1 << 22), y=np.arange(3), z=np.empty((0, 4)))
    with limited_to(1 / 64), pytest.raises(DataError, match=r"asks for 0\.031"):
        read_npz(tmp_path / "a.npz")
    arrays = read_npz(tmp_path / "a.npz")
    assert {name: array.shape for name, array in arrays.items()} == {
        "x": (1 << 22,), "y": (3,), "z": (0, 4),
    }  # fmt: skip
    assert arrays["y"].tolist() == [0, 1, 2]


def test_an_array_that_claims_more_than_its_member_holds_is_refused(tmp_path: Path) -> None:
    import zipfile

    head = "{'descr': '<f8', 'fortran_order': False, 'shape': (%d,), }"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        text = (head % (1 << 40)).ljust(117) + "\n"
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + bytes((118, 0)) + text.encode() + bytes(8))
    with pytest.raises(ValueError, match=r"x\.npy is of type float64"):
        read_npz(tmp_path / "a.npz")


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="object"):
        read_npz(tmp_path / "a.npz")


def test_a_reader_that_crashes_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    script = tmp_path / "script.py"
    folders = tmp_path / "folders.txt"
    script.write_text(
        "import os, signal, sys\n"
        f"open({str(folders)!r}, 'w').write(sys.argv[2])\n"
        "os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    with pytest.raises(ValueError, match="ended with code -11"):
        read_in_child(script, tmp_path / "file")
    assert not Path(folders.read_text()).exists()


def test_matlab_files_take_no_more_memory_than_they_may(tmp_path: Path) -> None:
    from scipy.io import savemat

    from upslope.datasets.matlab import read_matlab

    path = tmp_path / "a.mat"
    savemat(path, {"X": np.zeros((24, 1 << 20), np.uint8), "y": [[3]]}, do_compression=True)
    assert path.stat().st_size < 1 << 18
    said = {"what": "X", "advice": "Get it again."}
    with limited_to(1 / 64), pytest.raises(DataError, match=r"more memory than `data\.read_limit`"):
        read_matlab(path, "X", **said)
    assert read_matlab(path, "X", "y", "z", **said)["X"].shape == (24, 1 << 20)


@pytest.mark.skipif(os.name != "posix", reason="sets a limit on the size of files")
@pytest.mark.parametrize("most", mark_rest_long([100, 130], 2))
def test_arrays_of_matlab_files_that_cannot_be_handed_over_are_an_error_of_the_disk(
    tmp_path: Path, most: int
) -> None:
    """Of a small array NumPy drops the error that comes as the C library empties its buffer."""
    from scipy.io import savemat

    savemat(tmp_path / "a.mat", {"x": np.arange(60, dtype=np.uint8)})
    program = (
        "import resource; from pathlib import Path; from upslope.errors import RunError\n"
        "from upslope.datasets.matlab import read_matlab\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, resource.RLIM_INFINITY))\n"
        "try: read_matlab(Path('a.mat'), 'x', what='x', advice='Get it again.')\n"
        "except RunError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("Expected room for temporary files in ")
    assert "TMPDIR" in done.stdout


def test_a_folder_for_temporary_files_that_is_not_there_is_an_error_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(RunError, match=r"gone but got: .*TMPDIR"), temporary_folder():
        pass
