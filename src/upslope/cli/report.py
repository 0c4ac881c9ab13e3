"""`upslope report`: the table, the curves and the page of runs, made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upslope.cli.console import telling_errors
from upslope.startup import importing_libraries


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or above them.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder to write into; by default `report` in the first of RUNS."
        ),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Compare the others with this strategy; random by default.")
    ] = None,
    title: Annotated[
        str | None, typer.Option(help="Title of the page; by default the one it had.")
    ] = None,
    seconds_per_label: Annotated[
        float, typer.Option(help="A person's seconds for one label, an assumption of yours.")
    ] = 10.0,
    wage: Annotated[float, typer.Option(help="What an hour of labelling costs.")] = 20.0,
    currency: Annotated[str, typer.Option(help="Written behind amounts.")] = "USD",
    samples: Annotated[
        bool,
        typer.Option(help="Show pictures or texts of the data set, and a map of the pool."),
    ] = True,
) -> None:
    """Make the table, the curves and the HTML page again from runs, finished or not.

    The page is one file that opens without a network: the verdict, curves, what is saved, every
    strategy against every other, and what each one chose. Folders of several data sets make one
    page, with a choice of the set. It shows samples of your data: --no-samples leaves them out.

    Title, order and colours stay as they were in the report that `compare` left beside the runs.

    [bold]Examples[/bold]

      upslope report runs/digits

      upslope report runs/digits --seconds-per-label 30 --wage 45 --currency EUR

      upslope report runs/digits runs/fashion runs/cifar10 --out report

      upslope report runs/digits runs/more-seeds --reference margin --out report
    """
    from upslope.cli.show import show_reports
    from upslope.display import watching

    with telling_errors():
        with importing_libraries():
            from upslope import report as reports

        folder = out or runs[0] / "report"
        look = reports.read_look(folder, *(run / "report" for run in runs))
        costs = reports.Costs(seconds_per_label, wage, currency)
        summaries = reports.summarise_sets(reports.collect_sets(runs), reference, look)
        with watching(1) as observer:
            files = reports.write_sets(
                summaries, folder, title, costs=costs, samples=samples, observer=observer
            )
        show_reports(summaries, files)
