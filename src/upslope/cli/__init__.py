"""The command line: each command reads its options, calls the library, shows what comes back.

Nothing heavy is imported before a command runs: `--help` must answer at once.
"""

from __future__ import annotations

import atexit
import io
import os
import signal
import sys
from typing import NoReturn

from upslope.cli.app import app
from upslope.display import UNREAD_EXIT_CODE, drop_output, err, unwritable_output
from upslope.distributed.launch import count_processes
from upslope.startup import end_without_collection


def main() -> None:
    """Run the command `upslope`; the entry point of the package."""
    try:
        end_without_collection()
        # What the encoding of the output lacks, such as ± in ASCII, shows as its code, as Python
        # has it on standard error; an error would end a command whose work is done.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        # Registered early, it is called late: libraries take long to be torn down, where Ctrl-C
        # once more would end a command that has ended by the signal, without its exit code.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
        app(prog_name="upslope")
    except OSError as error:  # of what typer prints, such as the help
        if not _module_of(error).startswith(("rich.", "typer.")):
            raise
        drop_output(sys.stdout)
        unwritable = unwritable_output(error)
        err.print(f"error {unwritable}", markup=False)
        sys.exit(unwritable.exit_code)
    except KeyboardInterrupt:  # before a command has begun; commands answer for themselves
        sys.exit(130)
    except SystemExit as end:
        # What typer prints, such as the help, ends so by code 1, which means a fault of Upslope's.
        if isinstance(end.__context__, BrokenPipeError):
            drop_output(sys.stdout)
            end.code = UNREAD_EXIT_CODE
        if count_processes() > 1 and isinstance(end.code, int | None):
            _leave(end.code or 0)
        raise


def _module_of(error: BaseException) -> str:
    """Return the name of the module that raised an error."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return "" if place is None else str(place.tb_frame.f_globals.get("__name__", ""))


def _leave(code: int) -> NoReturn:
    """End a process of torchrun at once: all is closed and written by now.

    Threads of gloo are still about, now and then, when the interpreter takes itself apart, and
    abort a process that has done its work.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


__all__ = ["app", "main"]
