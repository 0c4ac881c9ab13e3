"""`upslope select`: which samples of a pool to label next, with a trained network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upslope.cli.console import out as console
from upslope.cli.console import telling_errors
from upslope.cli.score import Configuration, Device, Network, Sets, SkipCorrupt
from upslope.startup import importing_libraries

if TYPE_CHECKING:
    from upslope.config import Source
    from upslope.config.scoring import TrainedModel
    from upslope.datasets.base import Dataset
    from upslope.experiment.query import Query
    from upslope.pool import Strategy

DEFAULT_STRATEGY = "{name: u-herding, temperature: 1}"


def select(
    network: Network,
    config: Configuration = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="The pool: a folder of images, an .npz of arrays, or a table. Of a run, its own.",
        ),
    ] = None,
    labelled: Annotated[
        Path | None,
        typer.Option(
            help="CSV file of what is labelled: columns id and label. Of a run, its own labels."
        ),
    ] = None,
    budget: Annotated[int, typer.Option("--budget", "-k", min=1, help="How many to choose.")] = 50,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="A name of `upslope list`, or {name: u-herding, temperature: 2}; a run's own, or "
            f"{DEFAULT_STRATEGY}, if not given."
        ),
    ] = None,
    candidates: Annotated[
        str | None,
        typer.Option(help='Samples to score: all, a multiple of the budget ("10x"), or a count.'),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of random numbers.", min=0)] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV file to write.")] = Path("ask.csv"),
    device: Device = None,
    sets: Sets = None,
    skip_corrupt: SkipCorrupt = False,
) -> None:
    r"""Choose which samples of a pool to label next, with a trained network.

    Writes --out: one line per sample, best first, with its id, its file, an empty column `label`,
    and rank and score where the strategy has one. Fill in the labels, train on them, and give the
    file back as --labelled for the next choice, with another --out: answers are never written
    over. A class is given by its name, or by its number from 0; `skip` passes over a sample, which
    is then not chosen again.

    [bold]With a network of your own[/bold], say how it is built: -s model.name=nets:make calls
    make(num_classes=..., input_shape=...) of nets.py in the current folder. Images are normalised
    by -s 'data.mean=\[0.485,0.456,0.406]' and -s 'data.std=\[0.229,0.224,0.225]', those of your
    training.

    [bold]With a run[/bold], data, network, labels, strategy and seed are its own, and the choice is
    the one that the run makes next with that network. --data takes another pool; then what the run
    has labelled counts only if --labelled says it again.

    [bold]With a folder of scores[/bold], which `upslope score --data URL` wrote, no network is run:
    a score that is there gives the highest, and other strategies choose from the signals that were
    kept, in two stages where the pool is large.

    [bold]Examples[/bold]

      upslope select scores --strategy core-set --budget 10000

      upslope select w.pt --data photos -s model.name=nets:make -s data.size=224

      upslope select w.pt photos.yaml --labelled done.csv

      upslope select runs/digits/margin/seed-0 --budget 20 --strategy badge

      upslope select runs/photos --data more-photos --budget 100
    """
    with telling_errors():
        with importing_libraries():
            from upslope.config import find_source
            from upslope.errors import ConfigError
            from upslope.experiment.sheet import check_unanswered

        if out.suffix.lower() != ".csv":  # before anything is read that may take long
            raise ConfigError(f"Expected --out to end in .csv but got {out.name!r}.")
        check_unanswered(out)  # which may be the file of --labelled
        if (network / "pool.json").is_file():
            from upslope.cli.select_scored import select_scored

            options = {
                "--config": config, "--data": data, "--candidates": candidates,
                "--device": device, "--set": sets, "--skip-corrupt": skip_corrupt or None,
            }  # fmt: skip
            _refuse_useless(network, options)
            select_scored(network, strategy, budget, 0 if seed is None else seed, labelled, out)
            return
        overrides = {"device": device, "experiment.on_corrupt": "skip" if skip_corrupt else None}
        source = find_source(
            network, config, sets=_with_data(network, config, data, sets), overrides=overrides
        )
        ready = _load(source)
        answers = _labels(source, ready, labelled)
        choice = _choice(source, strategy, candidates, seed)
        selection = _query(source, ready, answers, choice, budget)
        _write(out, selection, ready.pool, choice.strategy.name, source.config.root)
        _tell(out, selection, choice.strategy.name, len(answers.labels))


def _refuse_useless(network: Path, options: Mapping[str, Any]) -> None:
    """Refuse options that mean nothing with a folder of scores. options: name -> value, or None."""
    from upslope.errors import ConfigError

    if useless := [name for name, value in options.items() if value is not None]:
        raise ConfigError(
            f"Expected no {', '.join(useless)} with {network}, a folder of scores from "
            "which is chosen without a network. Leave it out."
        )


def _is_own_data(source: Source) -> bool:
    """Whether the pool is that of a run, with what the run has labelled of it."""
    return source.run is not None and not source.elsewhere


def _load(source: Source) -> TrainedModel:
    """Return the trained network with the pool to choose from."""
    from upslope.config import data_options, load_trained_model
    from upslope.datasets import load
    from upslope.display import watching

    settings = source.config
    with watching(1) as observer:
        pool = None
        if _is_own_data(source):  # of it the pool alone may be asked, never the test set
            options = data_options(settings)
            pool = load(settings.data.name, settings.root, progress=observer, **options).pool
        return load_trained_model(source, observer, pool)


def _query(
    source: Source, ready: TrainedModel, answers: _KnownLabels, choice: _Choice, budget: int
) -> Query:
    """Return the samples to label next.

    Raises:
        ConfigError: all samples of the pool are labelled or skipped.
    """
    from upslope.display import watching
    from upslope.errors import ConfigError
    from upslope.experiment.query import query

    if len(ready.pool) <= len(answers.labels) + len(answers.passed):
        raise ConfigError(
            f"Expected unlabelled samples in the pool but all {len(ready.pool):,} are labelled "
            "or skipped. Give another pool with --data."
        )
    settings = source.config.experiment
    with watching(1) as observer:
        return query(
            ready.model,
            ready.pool,
            budget,
            choice.strategy,
            labelled=answers.labels or None,
            without=answers.passed,
            task=ready.task,
            seed=choice.seed,
            cycle=choice.cycle,
            candidates=choice.candidates,
            batch_size=settings.score_batch,
            on_corrupt=settings.on_corrupt,
            observer=observer,
        )


def _tell(out: Path, selection: Query, strategy: str, count_labelled: int) -> None:
    """Say how many samples were chosen, by which strategy, and which could not be read."""
    from upslope.datasets import list_ids

    lines = [
        f"{len(selection)} of {len(selection.candidates):,} candidates chosen by {strategy}, "
        f"{count_labelled:,} labelled before: {out}"
    ]
    if selection.skipped:
        lines.append(f"{len(selection.skipped):,} could not be read: {list_ids(selection.skipped)}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _count(candidates: str) -> int | str:
    return int(candidates) if candidates.isdecimal() else candidates


@dataclass(frozen=True)
class _Choice:
    """How samples are chosen: the arguments of `query` that a run has values of its own for."""

    strategy: Strategy
    candidates: str | int
    seed: int
    cycle: int


def _choice(
    source: Source, strategy: str | None, candidates: str | None, seed: int | None
) -> _Choice:
    """Return how to choose: as the options say, else as the run would, or as `query` does."""
    from upslope.config import find_strategy

    defaults = _defaults(source)
    return _Choice(
        find_strategy(strategy) if strategy else defaults.strategy,
        _count(candidates) if candidates else defaults.candidates,
        defaults.seed if seed is None else seed,
        defaults.cycle,
    )


def _defaults(source: Source) -> _Choice:
    """Return how a run would choose next; without one, what `query` does."""
    from upslope import strategies
    from upslope.config import find_strategy

    run = source.run
    if run is None or not run.cycles:
        return _Choice(find_strategy(DEFAULT_STRATEGY), "all", 0, 0)
    options = dict(run.config.get("strategy", {}))
    name = options.pop("name", DEFAULT_STRATEGY)
    # A strategy of the user's own is not in the registry: then it must be named.
    recorded_strategy = strategies.build(name, **options) if name in strategies.REGISTRY else None
    settings = run.config.get("experiment", {})
    return _Choice(
        recorded_strategy or find_strategy(DEFAULT_STRATEGY),
        settings.get("candidates", "all"),
        run.seed,
        run.cycles[-1].cycle,
    )


@dataclass(frozen=True)
class _KnownLabels:
    """labels: id -> answer. passed: ids that nobody would label."""

    labels: Mapping[str, Any]
    passed: tuple[str, ...] = ()


def _labels(source: Source, ready: TrainedModel, file: Path | None) -> _KnownLabels:
    """Return what is labelled: as the file says, or as the run has recorded."""
    from upslope.experiment.people import answer_reader
    from upslope.experiment.sheet import read_sheet, warn_of_empty
    from upslope.tasks.base import NamesClasses

    pool, task = ready.pool, ready.task
    names = ready.classes or (task.class_names if isinstance(task, NamesClasses) else ())
    if file is not None:
        sheet = read_sheet(file, set(pool.ids), names, answer_reader(task, names))
        warn_of_empty(file, sheet)
        return _KnownLabels(sheet.labels, tuple(sheet.passed))
    run = source.run
    if run is None or not _is_own_data(source):
        return _KnownLabels({})
    there = set(pool.ids)
    labels = {
        id_: names[label] if isinstance(label, int) else label
        for id_, label in run.labels.items()
        if id_ in there
    }
    passed_ids = {id_ for cycle in run.cycles for id_ in cycle.skipped}
    return _KnownLabels(
        labels, tuple(id_ for id_ in pool.ids if id_ in run.passed or id_ in passed_ids)
    )


_KINDS = {".npz": "npz", ".csv": "table", ".tsv": "table", ".parquet": "table", ".jsonl": "table"}


def _with_data(
    network: Path, config: Path | None, data: Path | None, sets: list[str] | None
) -> list[str]:
    """The assignments, with those that --data stands for in front, so that -s may say otherwise."""
    from upslope.config import run_folder
    from upslope.errors import ConfigError, DataError, ModelError

    assignments = list(sets or ())
    names = {one.partition("=")[0].strip() for one in assignments}
    if not network.exists():
        raise ModelError(
            f"Expected a checkpoint or the folder of a run at {network} but there is no such file "
            "or folder."
        )
    of_a_run = run_folder(network) is not None
    if data is None:
        if not of_a_run and config is None and not names & {"data", "data.name", "data.root"}:
            raise ConfigError(
                f"Expected --data, the pool to choose from, since no run explains {network}, but "
                "got none. Give a folder of images, an .npz, or a table."
            )
        return assignments
    if not data.exists():
        raise DataError(
            f"Expected --data to be a file or folder but there is no such path: {data}."
        )
    kind = "folder" if data.is_dir() else _KINDS.get(data.suffix.lower())
    names_data = of_a_run or config is not None or "data.name" in names
    if not names_data and kind is None:
        raise ConfigError(
            f"Expected --data to be a folder of images or a file that ends in {', '.join(_KINDS)} "
            f"but got {data.name!r}. Name the format with -s data.name=NAME; see `upslope list "
            "datasets`."
        )
    return [*([] if names_data else [f"data.name={kind}"]), f"data.root={data}", *assignments]


def _write(out: Path, selection: Any, pool: Dataset, strategy: str, root: str | None) -> None:
    from upslope.datasets import sample_file
    from upslope.experiment.sheet import Question, write_sheet

    folder = Path(root) if root else None
    questions = []
    for rank, (id_, position) in enumerate(zip(selection.ids, selection.positions, strict=True), 1):
        file = sample_file(pool, position, folder)
        content = {"rank": str(rank)}
        if selection.scores is not None:
            content["score"] = repr(selection.scores[rank - 1])
        questions.append(Question(id_, str(file) if file else "", strategy, content))
    write_sheet(out, questions)
