"""`upslope run` and `upslope compare`: one strategy, or several under one protocol."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from upslope.cli.console import telling_errors
from upslope.cli.engines import (
    EngineArguments,
    EngineName,
    GpusPerWorker,
    sharing_setup,
    starting_engine,
)
from upslope.distributed.launch import rank_of_process
from upslope.startup import importing_libraries

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
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the runs.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")]
Seeds = Annotated[
    str | None, typer.Option(help="How many (5: 0 to 4), or which, in brackets: [3] or [0,7].")
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
Resume = "Run the same command again: it goes on where it stopped."


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

      upslope run -s data.name=folder -s data.root=photos -s 'data.classes=\[cat,dog]' -o runs/p

      upslope run --strategy egl --seeds [0]

      upslope run fashion-mnist --strategy entropy-gradnorm --out runs/fashion

      upslope run -s training.epochs=5 -s experiment.candidates=all

      upslope run photos.yaml --labels-from runs/photos --out runs/again
    """
    overrides = {
        "strategies": strategy, "device": device, "full_data": full_data, "workers": workers
    }  # fmt: skip
    run_by = EngineArguments(engine, workers, gpus_per_worker)
    _compare(
        config, sets, seeds, overrides, out, dry_run, observe, run_by,
        asks=True, labels_from=labels_from,
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
    _compare(config, sets, seeds, overrides, out, dry_run, observe, run_by)


def _compare(
    config_file: Path | None,
    sets: list[str] | None,
    seeds: str | None,
    overrides: dict[str, Any],
    out: Path | None,
    dry_run: bool,
    observe: list[str] | None,
    run_by: EngineArguments,
    *,
    asks: bool = False,
    labels_from: Path | None = None,
) -> None:
    from upslope.cli import label as sitting
    from upslope.cli.observe import observer_places, observers
    from upslope.cli.show import show_estimate, show_plan, show_report, show_warnings
    from upslope.display import watching

    with telling_errors(Resume), ExitStack() as stack:
        with importing_libraries():
            from upslope import report as reports
            from upslope.comparison import compare
            from upslope.config import (
                Choice,
                assemble,
                begun_by_default,
                check_compatible,
                data_place,
                default_strategy,
                estimate,
                fitting_the_pool,
                load,
                plan,
                to_plan,
                warnings,
            )
            from upslope.datasets import check_labelled
            from upslope.observers import together

        assignments = [*(sets or []), *([f"seeds={seeds}"] if seeds else [])]
        config = load(config_file, sets=assignments, overrides=overrides)
        run_by.check()
        if dry_run:
            run_by = EngineArguments()
        elif run_by.name and config.workers > 1:
            run_by = replace(run_by, workers=config.workers)
        run_engine = stack.enter_context(starting_engine(run_by, config.device))
        name = config_file.stem if config_file else config.data.name
        folder = out or Path("runs") / name
        places = observer_places(observe or (), folder)
        why = ""
        if asks and not config.named:
            default = begun_by_default(folder, config) or default_strategy(config)
            config = replace(config, strategies=(Choice(default.name, label=default.name),))
            why = default.why
        if asks:
            sitting.check_one_strategy(config)
        watches = not (dry_run or rank_of_process())
        further = stack.enter_context(observers(places)) if watches else ()
        recorded_run = None if rank_of_process() else sitting.find_recorded_run(folder, config)
        begins = not (rank_of_process() or recorded_run or labels_from)
        fitting = fitting_the_pool(config) if begins else None
        with watching(1) as observer:
            setup, unseen = (
                to_plan(config, observer)
                if dry_run
                else (check_compatible(config, assemble(config, observer, fitting)), "")
            )
        if not asks:
            check_labelled(setup.splits.pool)
        if not stack.enter_context(sharing_setup(run_engine, config, setup)):
            return
        earlier = (
            sitting.labels_of(labels_from, config, setup, recorded_run) if labels_from else None
        )
        initial = len(earlier.labels) if earlier and recorded_run is None else None
        run_plan = plan(config, setup, recorded_run, initial)
        if asks and not dry_run and recorded_run and sitting.has_the_pool(recorded_run, setup):
            sitting.show_where(recorded_run)
        else:
            show_plan(config, setup, run_plan, folder, unseen, why)
            show_warnings(warnings(config, run_plan))
        if dry_run:
            show_estimate(config, estimate(config, setup, run_plan))
            return
        if asks and (earlier or sitting.waits_for_people(setup, folder)):
            sitting.ask_people(config, setup, folder, f"Upslope: {name}", earlier, further)
            return
        with watching(run_plan.runs) as observer:
            result = compare(
                folder,
                strategies=setup.strategies,
                seeds=config.seeds,
                splits=setup.splits,
                task=setup.task,
                model=setup.model,
                settings=config.experiment,
                training=config.training,
                full_data_seeds=config.seeds[: config.full_data],
                config=config.protocol(),
                root=data_place(config),
                device=config.device,
                workers=config.workers,
                observer=together(observer, *further),
            )
        runs = [run for results in result.runs.values() for run in results]
        if not all(run.tested for run in runs):
            # Without a test set there is no curve to report, and the run is none the worse for it.
            for run in runs:
                sitting.show_status(run)
            return
        look = reports.read_look(folder / "report")
        summary = reports.summarise(reports.study_of([*runs, *result.full_data]), look=look)
        with watching(1) as observer:
            files = reports.write(summary, folder / "report", f"Upslope: {name}", observer=observer)
        show_report(summary, files)
