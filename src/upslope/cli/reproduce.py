"""`upslope reproduce`: tables and figures of the paper, measured again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upslope.cli.console import out, telling_errors
from upslope.display import err
from upslope.startup import importing_libraries

if TYPE_CHECKING:
    from upslope.progress import Observer
    from upslope.reproduction import Report, Request
    from upslope.reproduction.output.results import Result


def reproduce(
    artefact: Annotated[
        str, typer.Argument(help="table1 to table9, figure1 to figure4, confound, or all.")
    ],
    scale: Annotated[
        str, typer.Option(help="smoke: a minute; cpu: under an hour on two cores; paper: a GPU.")
    ] = "smoke",
    variant: Annotated[
        str,
        typer.Option(
            "--variant",
            "--reading",
            help="Where the paper's text and its authors' code differ: text or code.",
        ),
    ] = "code",
    out_: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder; runs/reproduce-SCALE-VARIANT by default."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Of every study: how many, or which, in brackets.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", "-s", metavar="KEY=VALUE", help="Change one value of every study, workers=2."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Time a few steps, print the plan; train nothing.")
    ] = False,
) -> None:
    """Make tables and figures of the paper again, beside its own numbers.

    Runs that several artefacts need are made once and kept in the folder. After Ctrl-C or a crash
    the same command goes on where it stopped. Each artefact is a table (Markdown, CSV, LaTeX), a
    figure (PNG, SVG) and what it was measured under; README.md leads to all.

    [bold]Examples[/bold]

      upslope reproduce all

      upslope reproduce table1 --scale cpu --out runs/cpu

      upslope reproduce all --scale paper --variant text --device cuda --dry-run
    """
    with telling_errors("Run the same command again: it goes on where it stopped."):
        with importing_libraries():
            from upslope import reproduction

        assignments = [*(sets or []), *([f"seeds={seeds}"] if seeds else [])]
        request = reproduction.ask(
            artefact,
            scale=scale,
            variant=variant,
            out=out_,
            sets=assignments,
            overrides={"device": device},
            watch=_watching,
        )
        if dry_run:
            _show_plan(request)
            return
        report = reproduction.reproduce(request, _command(), _show_result)
        _show_end(report)
        for error in report.failed.values():
            raise error


def _command() -> str:
    return shlex.join(["upslope", *sys.argv[1:]])


@contextmanager
def _watching(title: str) -> Iterator[Observer]:
    from upslope.display import watching

    err.print(title, style="dim", markup=False)
    with watching(1) as observer:
        yield observer


def _show_result(name: str, result: Result) -> None:
    out.print(f"[bold]{name}[/bold]", end="  ")
    out.print(" ".join(result.findings), markup=False)


def _show_end(report: Report) -> None:
    for name, why in report.missing.items():
        err.print(f"{name} left out: {why}", style="yellow", markup=False)
    for name, error in report.failed.items():
        err.print(f"{name} failed: {error}", style="red", markup=False)
    out.print(f"page  {report.page}", markup=False, soft_wrap=True)


def _show_plan(request: Request) -> None:
    from rich.table import Table

    from upslope.cli.show import duration
    from upslope.errors import DataError
    from upslope.reproduction.studies.cost import NOT_COUNTED, estimate_cost

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("study", "data", "network", "runs", "labels", "steps", "a step", "about"):
        table.add_column(heading, justify="left" if heading in ("study", "data") else "right")
    total, said = 0.0, []
    for name in request.studies:
        try:
            study_cost = estimate_cost(request.runner, name)
        except DataError as error:
            said.append(f"without {name}: {error}")
            continue
        if study_cost.missing:
            said.append(f"{name}, by published sizes: {study_cost.missing}")
        for strategy, why in study_cost.estimate.left_out.items():
            said.append(f"{name}, selection of {strategy} not counted: {why}")
        study_plan, total = study_cost.plan, total + study_cost.seconds
        table.add_row(
            name,
            study_cost.config.data.name,
            f"{study_cost.config.model.name}, {study_plan.parameters:,}",
            f"{study_plan.runs} + {study_plan.full_data_runs}",
            f"{study_plan.budgets[0]:,} to {study_plan.budgets[-1]:,} of {study_plan.pool:,}",
            f"{study_plan.total_steps:,}",
            duration(study_cost.estimate.step),
            duration(study_cost.seconds),
        )
    out.print(table)
    out.print(
        f"together about {duration(total)} on this machine, from a few steps and scored batches of "
        f"each study measured now; to be kept in {request.runner.out}",
        markup=False,
        soft_wrap=True,
    )
    out.print(NOT_COUNTED, style="dim", soft_wrap=True)
    for line in said:
        err.print(line, style="yellow", markup=False)
