"""The steps of `upslope run` and `upslope compare`, from the command line to the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.cli.console import telling_errors
from upslope.cli.engines import EngineArguments, sharing_setup, starting_engine
from upslope.distributed.launch import rank_of_process
from upslope.startup import importing_libraries

if TYPE_CHECKING:
    from upslope.comparison import ComparisonResult
    from upslope.config import Config, Setup
    from upslope.experiment import EarlierLabels
    from upslope.ledger import RunResult
    from upslope.progress import Observer

RESUME = "Run the same command again: it goes on where it stopped."


@dataclass(frozen=True)
class Command:
    """What the command line says; None for what it does not say.

    config_file: a file, or the name of a configuration that is part of Upslope. sets: "key=value".
    seeds: as text. overrides: key -> value of the configuration. out: the folder of the runs.
    is_dry: whether nothing is trained. observe: as `observer_places` takes them. engine: what runs
    it. asks: whether it is `run`: one strategy, and people are asked where labels are missing.
    labels_from: an earlier run.
    """

    config_file: Path | None
    sets: Sequence[str] | None
    seeds: str | None
    overrides: Mapping[str, Any]
    out: Path | None
    is_dry: bool
    observe: Sequence[str] | None
    engine: EngineArguments
    asks: bool = False
    labels_from: Path | None = None

    def read_config(self) -> Config:
        """Return the configuration with what the command line changes of it."""
        from upslope.config import load

        assignments = [*(self.sets or []), *([f"seeds={self.seeds}"] if self.seeds else [])]
        return load(self.config_file, sets=assignments, overrides=self.overrides)

    def engine_for(self, config: Config) -> EngineArguments:
        """Return what runs the command: nothing else than this process where it is a dry run."""
        self.engine.check()
        if self.is_dry:
            return EngineArguments()
        if self.engine.name and config.workers > 1:
            return replace(self.engine, workers=config.workers)
        return self.engine

    def folder_for(self, config: Config) -> Path:
        """Return the folder of the runs."""
        return self.out or Path("runs") / self._name_for(config)

    def title_for(self, config: Config) -> str:
        """Return the title of the report."""
        return f"Upslope: {self._name_for(config)}"

    def _name_for(self, config: Config) -> str:
        return self.config_file.stem if self.config_file else config.data.name


def carry_out(command: Command) -> None:
    """Plan, train, select and report what the command line asks for, or go on with it.

    Raises:
        typer.Exit: after an error was told, or where people are asked for labels.
    """
    with telling_errors(RESUME), ExitStack() as stack:
        with importing_libraries():
            import upslope.comparison
            import upslope.config
            import upslope.report  # noqa: F401
        _carry_out(command, stack)


def _carry_out(command: Command, stack: ExitStack) -> None:
    """Carry out a command with an engine and observers that are closed with the stack."""
    from upslope.cli import label as sitting
    from upslope.cli.observe import observer_places, observers
    from upslope.datasets import check_labelled

    config = command.read_config()
    engine = stack.enter_context(starting_engine(command.engine_for(config), config.device))
    folder = command.folder_for(config)
    places = observer_places(command.observe or (), folder)
    config, why = _choose_strategy(command, config, folder)
    watches = not (command.is_dry or rank_of_process())
    further = stack.enter_context(observers(places, folder)) if watches else ()
    recorded_run = None if rank_of_process() else sitting.find_recorded_run(folder, config)
    setup, unseen = _open_setup(command, config, recorded_run)
    if not command.asks:
        check_labelled(setup.splits.pool)
    if not stack.enter_context(sharing_setup(engine, config, setup)):
        return
    labels_from = command.labels_from
    earlier = sitting.labels_of(labels_from, config, setup, recorded_run) if labels_from else None
    _show_outlook(command, config, setup, recorded_run, earlier, unseen, why)
    if command.is_dry:
        return
    if command.asks and (earlier or sitting.waits_for_people(setup, folder)):
        title = command.title_for(config)
        sitting.ask_people(config, setup, folder, title, earlier, further)
        return
    _report(_compare(config, setup, folder, further), folder, command.title_for(config))


def _choose_strategy(command: Command, config: Config, folder: Path) -> tuple[Config, str]:
    """Return a configuration whose strategies are known, and why it is the one if it is a default.

    Raises:
        ConfigError: several strategies for a command that runs one.
    """
    from upslope.cli.label import check_one_strategy
    from upslope.config import Choice, default_strategy, strategy_begun_with

    if not command.asks:
        return config, ""
    why = ""
    if not config.named:
        default = strategy_begun_with(folder, config) or default_strategy(config)
        config = replace(config, strategies=(Choice(default.name, label=default.name),))
        why = default.why
    check_one_strategy(config)
    return config, why


def _open_setup(
    command: Command, config: Config, recorded_run: RunResult | None
) -> tuple[Setup, str]:
    """Return data, network and strategies; for a dry run also why the data was not opened."""
    from upslope.config import assemble, check_compatible, size_check, to_plan
    from upslope.display import watching

    begins = not (rank_of_process() or recorded_run or command.labels_from)
    check_size = size_check(config) if begins else None
    with watching(1) as observer:
        if command.is_dry:
            return to_plan(config, observer)
        return check_compatible(config, assemble(config, observer, check_size)), ""


def _show_outlook(
    command: Command,
    config: Config,
    setup: Setup,
    recorded_run: RunResult | None,
    earlier: EarlierLabels | None,
    unseen: str,
    why: str,
) -> None:
    """Print the plan and what to be warned of, or where a run stands that goes on.

    earlier: labels that a new run begins with. unseen, why: of `_open_setup` and
    `_choose_strategy`.
    """
    from upslope.cli.label import has_the_pool, show_where
    from upslope.cli.show import show_estimate, show_plan, show_warnings
    from upslope.config import estimate, plan, warnings

    initial = len(earlier.labels) if earlier and recorded_run is None else None
    run_plan = plan(config, setup, recorded_run, initial)
    may_go_on = command.asks and not command.is_dry
    if may_go_on and recorded_run and has_the_pool(recorded_run, setup):
        show_where(recorded_run)
    else:
        show_plan(config, setup, run_plan, command.folder_for(config), unseen, why)
        show_warnings(warnings(config, run_plan))
    if command.is_dry:
        show_estimate(config, estimate(config, setup, run_plan))


def _compare(
    config: Config, setup: Setup, folder: Path, further: Sequence[Observer]
) -> ComparisonResult:
    """Return the runs of all strategies and seeds; further observers are told of progress, too."""
    from upslope.comparison import compare
    from upslope.config import data_place
    from upslope.display import watching
    from upslope.observers import together

    with watching(len(setup.strategies) * len(config.seeds)) as observer:
        return compare(
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


def _report(result: ComparisonResult, folder: Path, title: str) -> None:
    """Write and print the report; of runs without a test set, print where they stand."""
    from upslope import report as reports
    from upslope.cli.label import show_status
    from upslope.cli.show import show_report
    from upslope.display import watching

    runs = [run for results in result.runs.values() for run in results]
    if not all(run.tested for run in runs):
        # Without a test set there is no curve to report, and the run is none the worse for it.
        for run in runs:
            show_status(run)
        return
    look = reports.read_look(folder / "report")
    summary = reports.summarise(reports.study_of([*runs, *result.full_data]), look=look)
    with watching(1) as observer:
        files = reports.write(summary, folder / "report", title, observer=observer)
    show_report(summary, files)
