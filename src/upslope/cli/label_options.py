"""Options that several commands of `upslope label` take, and how these speak."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upslope.cli.console import out

Project = Annotated[Path, typer.Argument(metavar="PROJECT", help="Folder of the project.")]
Name = Annotated[str | None, typer.Option(help="Who answers; your login name by default.")]
Wage = Annotated[
    float | None,
    typer.Option(min=0, max=1e6, help="For an hour of labelling: advice in money too."),
]

GO_ON = "Every answer is kept: the same command goes on."
"""What is said where a command was stopped."""


def say(line: str) -> None:
    """Print a line as it is: no markup, no wrapping."""
    out.print(line, markup=False, soft_wrap=True)
