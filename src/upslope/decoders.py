"""Processes that decode images, where the threads of one Python are too few.

Pillow decodes outside the interpreter's lock, so threads keep a few cores busy; with more, the
share that holds the lock (some tenth of a millisecond an image) becomes the limit. A process
imports Pillow and NumPy alone, and lives until this one ends.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path
from typing import cast

from upslope.errors import RunError
from upslope.images import Form, Pixels, decode
from upslope.processes import blocking_signals, follow_parent
from upslope.threads import wait_for

_AT_ONCE = 16  # images in a message: few enough that all processes have work

EncodedImage = tuple[bytes | Path, str]
"""An encoded image or its file, and what messages call it."""


def decode_in_processes(
    images: Sequence[EncodedImage], form: Form, processes: int
) -> Iterator[Pixels]:
    """Yield (c, h, w) uint8 each, in order: what `images.decode` gives, bit for bit.

    Raises:
        DataError: the first image that cannot be decoded.
        RunError: the processes could not start, or one was killed.
    """
    size = max(1, min(_AT_ONCE, -(-len(images) // processes)))
    pieces = [images[i : i + size] for i in range(0, len(images), size)]
    try:
        pool = _pool(processes)
        with blocking_signals():  # the first submission starts the processes
            waiting = [pool.submit(_decode, piece, form) for piece in pieces]
        # It also starts the thread that hands out the pieces and takes back the images. Python has
        # no public name for it; a look at the living threads would miss one that has ended already.
        manager = cast(threading.Thread, pool._executor_manager_thread)
        try:
            for future in waiting:
                yield from wait_for(future, [manager])
        finally:
            for future in waiting:
                future.cancel()
    except MemoryError:  # of the thread, or of a process, which then goes on
        _pool.cache_clear()
        raise
    except BrokenProcessPool as error:
        _pool.cache_clear()
        raise RunError(
            "Expected the processes that decode images to keep running but one ended: it was "
            "killed, for want of memory perhaps, or a script started them outside of "
            '`if __name__ == "__main__":`. Set `data.decoders` to 0 for threads instead.'
        ) from error


@lru_cache(maxsize=1)
def _pool(processes: int) -> ProcessPoolExecutor:
    # Spawned, not forked: this process has threads.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, context, initializer=follow_parent)


def _decode(images: Sequence[EncodedImage], form: Form) -> list[Pixels]:
    return [decode(source, name, form) for source, name in images]
