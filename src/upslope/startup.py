"""Less work for Python's garbage collector where a command starts and where it ends.

Importing torch and SciPy makes some million objects, nearly all of which stay. The collector goes
over them again and again meanwhile, and twice more when the interpreter ends: a second of the
processor in all, where a small run takes seven. Nothing heavy is imported here.
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from upslope.memory import check_room_for_libraries, take_buffers


@contextmanager
def importing_libraries() -> Iterator[None]:
    """Pause the collection of garbage while libraries are imported; it is then as it was before.

    Raises:
        RunError: memory has a limit that cannot hold them.
    """
    check_room_for_libraries()
    before = gc.isenabled()
    gc.disable()
    try:
        yield
        take_buffers()
    finally:
        if before:
            gc.enable()


def end_without_collection() -> None:
    """Have the interpreter end without a last search for garbage in circles of references.

    Its memory goes back to the system all the same. Objects outside such circles are still ended
    one by one, and what Python calls at exit is called before.
    """
    atexit.register(leave_uncollected)


def leave_uncollected() -> None:
    """Keep what is there from the last searches, unless a library lists what these did not end.

    Triton, which comes with torch's CUDA wheels, is bound by nanobind. As the interpreter ends, it
    prints what is left of its objects, some thirty lines behind the output of every command.
    """
    if "triton" not in sys.modules:
        gc.freeze()
