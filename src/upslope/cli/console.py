"""Where the command line writes, and how it tells of errors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from upslope.errors import UpslopeError

WIDE = 200
"""Columns of what goes to a pipe or a file: nothing is cut off there."""

out = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def told(resume: str = "") -> Iterator[None]:
    """An UpslopeError as its message and exit code; Ctrl-C as 130 and how to go on."""
    try:
        yield
    except UpslopeError as error:
        err.print("[bold red]error[/bold red]", end=" ")
        err.print(str(error), markup=False)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        err.print(f"Stopped. {resume}".strip(), markup=False)
        raise typer.Exit(130) from None
