"""Decoding in processes: the same pixels as in threads, the same errors, nothing left behind."""

import os
import signal
from concurrent.futures import process as pools

import numpy as np
import psutil
import pytest
from PIL import Image

from upslope import datasets, decoders, threads
from upslope.decoders import decode_in_processes
from upslope.errors import DataError, RunError
from upslope.images import Form


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 2)):
        for i in range(count):
            path = tmp_path / split / "ab"[i % 2] / f"{i:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
            small.resize((100 + i, 80), Image.Resampling.BICUBIC).save(path)
    return tmp_path


def test_processes_give_what_threads_give(root):
    options = {"memory": 0, "size": 32}
    threads = datasets.load("folder", root, **options).pool
    processes = datasets.load("folder", root, decoders=2, **options).pool
    assert not processes.resident
    order = [19, 3, *range(18)]
    np.testing.assert_array_equal(processes.inputs(order).numpy(), threads.inputs(order).numpy())
    broken = root / "train/a/04.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:300])
    with pytest.raises(DataError, match=r"04\.jpg but it cannot be decoded"):
        processes.inputs(range(20))
    broken.write_bytes(whole)
    with pytest.raises(DataError, match=r"shape \(c, h, w\) = \(3, 80, 100\)"):
        datasets.load("folder", root, decoders=2, memory=0).pool.inputs([0, 1])


def test_a_killed_process_is_told_and_the_next_call_starts_anew(root):
    work = [(root / "train/a/00.jpg", "00.jpg")] * 40
    form = Form("RGB", (32, 32))
    expected = list(decode_in_processes(work, form, 2))
    ours = [
        p for p in psutil.Process().children(recursive=True) if "spawn_main" in str(p.cmdline())
    ]
    os.kill(ours[0].pid, signal.SIGKILL)
    with pytest.raises(RunError, match=r"Set `data.decoders` to 0"):
        list(decode_in_processes(work * 100, form, 2))
    assert len(list(decode_in_processes(work, form, 2))) == len(expected)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("at_once", [False, True], ids=["soon", "at-once"])
def test_a_thread_that_ends_does_not_keep_who_waits(root, monkeypatch, at_once):
    """The thread of the pool that hands out images, as where memory is short.

    It may end before the first look at it.
    """
    work = [(root / "train/a/00.jpg", "00.jpg")] * 40
    decoders._pool.cache_clear()

    def fail(manager):
        raise MemoryError

    monkeypatch.setattr(threads, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(pools._ExecutorManagerThread, "wait_result_broken_or_wakeup", fail)
    if at_once:
        start = pools._ExecutorManagerThread.start

        def start_and_see_it_end(manager):
            start(manager)
            manager.join()

        monkeypatch.setattr(pools._ExecutorManagerThread, "start", start_and_see_it_end)
    before = psutil.Process().children()
    with pytest.raises(MemoryError, match="ended before its work was done"):
        list(decode_in_processes(work, Form("RGB", (32, 32)), 2))
    for child in psutil.Process().children():
        if child not in before:
            child.kill()
    monkeypatch.undo()
    assert len(list(decode_in_processes(work, Form("RGB", (32, 32)), 2))) == 40
