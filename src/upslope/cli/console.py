"""Where the command line writes, and how it tells of errors."""

from __future__ import annotations

import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

from upslope.display import SafeConsole, err
from upslope.distributed.launch import count_processes, rank_of_process
from upslope.errors import UpslopeError
from upslope.file_limits import as_path_error, as_room_error
from upslope.memory import as_memory_error
from upslope.progress import noting_interrupts

_SECONDS_FOR_RANK_0 = 60
"""How long other processes of torchrun keep what is wrong to themselves; it ends them before."""

WIDE = 200
"""Columns of what goes to a pipe or a file: nothing is cut off there."""

out = SafeConsole(highlight=False, width=None if sys.stdout and sys.stdout.isatty() else WIDE)


ANEW = "No result was written: run the same command again, and it begins anew."
"""How to go on after Ctrl-C, of commands whose result is written as a whole at their end."""


@contextmanager
def telling_errors(resume: str = ANEW) -> Iterator[None]:
    """An UpslopeError as its message and exit code; Ctrl-C as 130 and how to go on, `resume`.

    So are SIGTERM and SIGHUP, but of processes of torchrun, which ends them by these.

    Warnings are lines as well, without the place in the code that gave them. Of the processes that
    torchrun started, rank 0 alone writes.
    """
    if rank_of_process():
        out.quiet = err.quiet = True
    ends = () if count_processes() > 1 else ("SIGTERM", "SIGHUP")
    with noting_interrupts(*ends) as interrupts:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _print_warning
                yield
        except UpslopeError as error:
            if interrupts.seen:  # libraries turn Ctrl-C into an error of theirs
                _stop(resume)
            _fail(error)
        except KeyboardInterrupt:
            _stop(resume)
        except typer.Exit:
            raise
        except Exception as error:
            if interrupts.seen:
                _stop(resume)
            short = as_memory_error(error) or as_room_error(error) or as_path_error(error)
            if short is not None:
                _fail(short)
            raise


def _stop(resume: str) -> NoReturn:
    err.print(f"Stopped. {resume}", markup=False)
    raise typer.Exit(130) from None


def _fail(error: UpslopeError) -> NoReturn:
    # torchrun ends all once one has ended: rank 0, which tells, must have come to it first. Ranks
    # that have joined leave signals to rank 0, and end with it.
    if rank_of_process() and err.quiet and signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        time.sleep(_SECONDS_FOR_RANK_0)
    try:
        err.print("[bold red]error[/bold red]", end=" ")
        err.print(str(error), markup=False)
    except (MemoryError, ImportError):  # colours take modules that are not loaded before
        sys.stderr.write(f"error {error}\n")
    raise typer.Exit(error.exit_code) from None


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    err.print("[bold yellow]warning[/bold yellow]", end=" ")
    err.print(str(message), markup=False)
