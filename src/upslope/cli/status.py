"""`upslope status`: where a run, or each run of a comparison, stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from upslope.cli.console import out, telling_errors


def status(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or of several.", metavar="RUN")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON: a list of runs.")] = False,
) -> None:
    """Say where a run stands: cycles, labels, what is asked and waiting, the next step.

    [bold]Examples[/bold]

      upslope status runs/photos

      upslope status runs/digits --json
    """
    with telling_errors():
        from upslope.ledger import read_run
        from upslope.ledger.status import lines
        from upslope.ledger.status import status as status_of
        from upslope.ledger.store import run_folders

        standing = [status_of(read_run(folder)) for folder in run_folders(run)]
        if as_json:
            typer.echo(json.dumps(standing, indent=2))
            return
        for i, one in enumerate(standing):
            if i:
                typer.echo()
            for title, text in lines(one):
                out.print(f"{title:11} {text}", markup=False, soft_wrap=True)
