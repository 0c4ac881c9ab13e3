"""`upslope run` and `upslope compare`: one strategy, or several under one protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upslope.cli.engines import EngineArguments, EngineName, GpusPerWorker
from upslope.cli.protocol import Command, carry_out

Config = Annotated[
    Path | None,
    typer.Argument(
        metavar="[CONFIG]",
        help="YAML file, or a name of `upslope list configs`. Without one: handwritten digits.",
    ),
]
Workers = Annotated[
    int | None, typer.Option(help="Processes, each with one seed at a time; default 1.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change one value: training.epochs=5"),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="Folder of the runs; by default runs/ and the configuration's name."
    ),
]
Device = Annotated[str | None, typer.Option(help="auto (the default), cpu, cuda or mps.")]
Seeds = Annotated[
    str | None,
    typer.Option(
        help="How many (5: 0 to 4), or which, in brackets: [3] or [0,7]. Without, and without a "
        "configuration that says so: one, 0."
    ),
]
FullData = Annotated[
    int | None,
    typer.Option(help="Seeds that also get a model trained on every label of the pool."),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print sizes, budgets, steps, time and memory; train nothing."),
]
Observe = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=PLACE]",
        help="Figures for tensorboard or mlflow too: in PLACE, or in a folder of --out.",
    ),
]


def run(
    config: Config = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="Which; `upslope list strategies`. By default the one of the configuration; where "
            "it names none, u-herding on frozen features (model.freeze), emcm for numbers, else "
            "margin."
        ),
    ] = None,
    seeds: Seeds = None,
    out: Out = None,
    device: Device = None,
    sets: Sets = None,
    full_data: FullData = None,
    workers: Workers = None,
    labels_from: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Begin with the labels of an earlier run, matched by ids and names of classes.",
        ),
    ] = None,
    observe: Observe = None,
    dry_run: DryRun = False,
    engine: EngineName = None,
    gpus_per_worker: GpusPerWorker = None,
) -> None:
    r"""Run one strategy: train, score, ask, label, again.

    Everything is recorded step by step in the folder given by --out. After Ctrl-C or a crash,
    the same command goes on where it stopped, and with a larger experiment.cycles, further.

    Where samples have no label, people are asked: the run writes to-label.csv into its folder and
    ends with exit code 7; filled in, the same command goes on.

    [bold]Examples[/bold]

      upslope run -s data.name=folder -s data.root=p -s 'data.classes=\[cat,dog]'

      upslope run --strategy egl --seeds [0]

      upslope run fashion-mnist --strategy entropy-gradnorm --out runs/fashion

      upslope run -s training.epochs=5 -s experiment.candidates=all

      upslope run photos.yaml --labels-from runs/photos --out runs/again
    """
    overrides = {
        "strategies": strategy, "device": device, "full_data": full_data, "workers": workers
    }  # fmt: skip
    run_by = EngineArguments(engine, workers, gpus_per_worker)
    carry_out(
        Command(
            config, sets, seeds, overrides, out, dry_run, observe, run_by,
            asks=True, labels_from=labels_from,
        )
    )  # fmt: skip


def compare(
    config: Config = None,
    strategies: Annotated[
        str | None,
        typer.Option(
            help="Names with commas between, options as {name: margin, temperature: 2}; "
            "all: those that fit."
        ),
    ] = None,
    seeds: Seeds = None,
    out: Out = None,
    device: Device = None,
    sets: Sets = None,
    full_data: FullData = None,
    workers: Workers = None,
    observe: Observe = None,
    dry_run: DryRun = False,
    engine: EngineName = None,
    gpus_per_worker: GpusPerWorker = None,
) -> None:
    """Compare strategies over seeds under one protocol, and report.

    Runs of one seed share the initial set, the initial weights and the data order. The report, a
    table, curves and one HTML page, is in the folder `report` beside the runs.

    [bold]Examples[/bold]

      upslope compare --strategies random,margin,entropy-gradnorm,egl --seeds 5

      upslope compare cifar10-small --seeds 3 --full-data 1

      upslope compare cifar10-paper --device cuda --dry-run
    """
    overrides = {
        "strategies": strategies, "device": device, "full_data": full_data, "workers": workers
    }  # fmt: skip
    run_by = EngineArguments(engine, workers, gpus_per_worker)
    carry_out(Command(config, sets, seeds, overrides, out, dry_run, observe, run_by))
