"""`upslope tell`: labels from a file into a run, at any time, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upslope.cli.console import out as console
from upslope.cli.console import telling_errors
from upslope.counts import format_count


def tell(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or above a single one.")],
    labels: Annotated[Path, typer.Argument(help="CSV file with the columns id and label.")],
    root: Annotated[
        str | None,
        typer.Option("--data", help="Where the run's data lie now; where they lay, if not given."),
    ] = None,
) -> None:
    """Record labels from a file for the samples that a run has asked for.

    A class is given by its name, or by its number from 0 where no class is named by another
    number; several labels or numbers have semicolons between; masks are drawn into the data set.
    `skip`, or `skip: reason`, passes over a sample, and `take back` withdraws either. Another
    label than before corrects it, and the run keeps both. Labels that are recorded already change
    nothing, so that the same file may be given again. All rows are recorded or none; nothing is
    trained: `upslope run` goes on.

    [bold]Examples[/bold]

      upslope tell runs/photos labels.csv

      upslope tell runs/photos labels.csv --data /mnt/photos
    """
    with telling_errors("Run the same command again: an answer that was recorded stays as it is."):
        from upslope.cli.sitting import emptied_words, recorded_words
        from upslope.config import open_run, recorded_run
        from upslope.experiment.people import tell_sheet
        from upslope.ledger import read_run

        folder, config = recorded_run(run, root)
        with open_run(folder, config) as experiment:
            counts, emptied_ids = tell_sheet(experiment, labels)
        words = recorded_words(counts)
        console.print(
            f"recorded: {', '.join(words)}" if words else "nothing new: all of it was recorded",
            markup=False,
        )
        if emptied_ids:
            console.print(emptied_words(labels.name, emptied_ids), markup=False, soft_wrap=True)
        waiting = len(read_run(folder).pending)
        console.print(
            f"{format_count(waiting, 'sample waits', 'samples wait')} for a label in {folder}",
            markup=False,
        )
