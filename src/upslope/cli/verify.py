"""`upslope verify` and `upslope repair`: check a run or a project, and save what is sound."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upslope.cli.console import out, telling_errors
from upslope.counts import format_count

Run = Annotated[
    Path,
    typer.Argument(help="Folder of a run, of several, or of a labelling project.", metavar="RUN"),
]


def verify(run: Run) -> None:
    """Check a run or labels: the ledger, event by event, and every file whose digest it holds.

    Nothing is changed. The exit code is 6 where something is damaged or missing.

    [bold]Examples[/bold]

      upslope verify runs/digits
    """
    with telling_errors():
        from upslope.errors import RunError
        from upslope.experiment.verify import verify_run
        from upslope.labelling.repair import is_project, verify_project
        from upslope.ledger.store import check_is_folder, folders_of_runs

        check_is_folder(run)
        folders = folders_of_runs(run)
        folders += [run] if is_project(run) else []
        damage_count = 0
        for folder in folders or [run]:
            result = verify_project(folder) if is_project(folder) else verify_run(folder)
            damage_count += bool(result.problems)
            state = "damaged" if result.problems else "sound" if result.events else "empty"
            counts = (
                f"{format_count(result.events, 'event')}, "
                f"{format_count(len(result.sound), 'file')} checked"
            )
            out.print(f"{folder}: {state}, {counts}", markup=False, soft_wrap=True)
            for line in (*result.problems, *result.notes):
                out.print(f"  {line}", markup=False, soft_wrap=True)
        if damage_count:
            raise RunError(
                f"Expected what was recorded to be sound but {damage_count} of "
                f"{format_count(len(folders) or 1, 'folder')} "
                f"{'is' if damage_count == 1 else 'are'} damaged. "
                "Models are made again by the command that began the run; `upslope repair` saves "
                "what is sound of a ledger."
            )


def repair(
    run: Annotated[Path, typer.Argument(help="Folder of what is damaged.", metavar="RUN")],
    folder: Annotated[Path, typer.Option("--out", "-o", help="New folder for what is sound.")],
) -> None:
    """Save what is sound of a damaged run, or of a project's labels, and say what is lost.

    The damaged one stays as it is. The command that began it goes on with the new folder: with
    --out runs/saved in the example, as strategy and seed are folders below that.

    [bold]Examples[/bold]

      upslope repair runs/digits/margin/seed-0 --out runs/saved/margin/seed-0
    """
    with telling_errors():
        from upslope.experiment.verify import repair_run
        from upslope.labelling.repair import is_project, repair_project

        result = repair_project(run, folder) if is_project(run) else repair_run(run, folder)
        events, files = (
            format_count(result.events, "event"),
            format_count(len(result.files), "file"),
        )
        out.print(f"{folder}: {events}, {files}", markup=False, soft_wrap=True)
        for line in result.lost:
            out.print(f"  lost: {line}", markup=False, soft_wrap=True)
