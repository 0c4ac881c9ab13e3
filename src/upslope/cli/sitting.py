"""`upslope run` where people give the labels: one sitting, and what they are to do next."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from upslope.cli.console import out
from upslope.counts import format_count, list_some
from upslope.errors import ConfigError

if TYPE_CHECKING:
    from upslope.config import Config, Setup
    from upslope.experiment import EarlierLabels, Sitting
    from upslope.experiment.answers import AnswerCounts
    from upslope.experiment.sheet import Question
    from upslope.ledger import RunResult
    from upslope.progress import Observer

_MOST_NAMES = 8
WAITING = 7
"""Exit code of a run that waits for labels: no failure, and not the end either."""


def check_one_strategy(config: Config) -> None:
    """Raise ConfigError where a run would have several strategies, or all of them."""
    if len(config.strategies) == 1:
        return
    names = list_some([choice.label for choice in config.strategies], _MOST_NAMES)
    raise ConfigError(
        f"Expected one strategy, as `upslope run` runs one, but `strategies` names "
        f"{len(config.strategies)}: {names}. Say which with "
        "--strategy NAME, or take `upslope compare`, which runs them all."
    )


def waits_for_people(setup: Setup, folder: Path) -> bool:
    """Return whether samples of the pool have no label, or such a run has begun in the folder."""
    from upslope.datasets import wants_people
    from upslope.ledger.store import FILE

    return wants_people(setup.splits.pool) or (folder / FILE).is_file()


def labels_of(
    run: Path, config: Config, setup: Setup, recorded_run: RunResult | None
) -> EarlierLabels | None:
    """Match the labels of an earlier run, and say what matched and what did not.

    recorded_run: the new run, where it has begun. None is returned where it began with these
        labels.

    Raises:
        RunError, ConfigError: no run there, or several.
        DataError: no label matches, or the ids do not name samples.
    """
    from upslope.config import data_place, find_run
    from upslope.experiment import match_labels

    if (
        recorded_run
        and recorded_run.labels_from
        and Path(recorded_run.labels_from).is_relative_to(run.absolute())
    ):
        return None
    earlier = match_labels(find_run(run), setup.splits, setup.task, data_place(config))
    for note in earlier.notes:
        _say(f"labels: {note}")
    return earlier


def ask_people(
    config: Config,
    setup: Setup,
    folder: Path,
    title: str,
    earlier: EarlierLabels | None = None,
    further: Sequence[Observer] = (),
) -> None:
    """Take answers in, go on, and ask for more; at the end of the run, report.

    earlier: labels that a new run begins with. further: told of progress, too.

    Raises:
        ConfigError: several strategies or seeds, or references on all labels.
        typer.Exit: with `WAITING`, where people are asked for labels.
    """
    from upslope import report as reports
    from upslope.cli.show import show_report
    from upslope.display import watching
    from upslope.observers import together

    with watching(1) as observer:
        run, sitting = sit_once(config, setup, folder, together(observer, *further), earlier)
    show_sitting(config, setup, run, sitting)
    if not run.tested:
        show_status(run)
        return
    summary = reports.summarise(reports.study_of([run]))
    show_report(summary, reports.write(summary, folder / "report", title))


def run_folder(folder: Path, config: Config) -> Path:
    """Return where the one run is: the folder itself, or where `upslope compare` has begun it."""
    from upslope.ledger.store import FILE

    seed_folder = folder / config.strategies[0].label / f"seed-{config.seeds[0]}"
    return seed_folder if (seed_folder / FILE).is_file() else folder


def find_recorded_run(folder: Path, config: Config) -> RunResult | None:
    """Return the run in the folder, or the first run of a comparison there; None before the
    first.
    """
    from upslope.ledger import read_run
    from upslope.ledger.store import has_begun

    if has_begun(folder):
        return read_run(folder)
    for choice in config.strategies:
        path = folder / choice.label / f"seed-{config.seeds[0]}"
        if has_begun(path):
            return read_run(path)
    return None


def has_the_pool(run: RunResult, setup: Setup) -> bool:
    """Return whether the samples of the pool are those that the run began with."""
    from upslope.files import json_digest

    digest = run.config.get("samples", {}).get("pool_ids_sha256")
    return bool(digest == json_digest(list(setup.splits.pool.ids)))


def show_where(run: RunResult) -> None:
    """Print where a run that goes on stands, in place of the plan, which was shown before."""
    standing = f"{len(run.cycles)} of {run.info['cycles']} cycles finished"
    labels = format_count(len(run.labels), "label")
    _say(f"goes on: {run.path}, {standing}, {labels} (the plan: --dry-run)")


def sit_once(
    config: Config,
    setup: Setup,
    folder: Path,
    observer: Observer,
    earlier: EarlierLabels | None = None,
) -> tuple[RunResult, Sitting]:
    """Open the run of one strategy and one seed, take answers in, go on and ask for more.

    Raises:
        ConfigError: several strategies or seeds, or references on all labels: people label for
            one run.
    """
    from upslope.config.reopen import open_run
    from upslope.experiment import sit

    if len(config.strategies) != 1 or len(config.seeds) != 1 or config.full_data:
        raise ConfigError(
            "Expected one strategy and one seed, as people label for one run, but got "
            f"{len(config.strategies)} and {len(config.seeds)}"
            f"{', and full_data' if config.full_data else ''}. Give --strategy NAME and leave "
            "--seeds and --full-data out."
        )
    with open_run(run_folder(folder, config), config, observer, setup) as experiment:
        for change in experiment.changes:
            _say(f"changed: {change}")
        if earlier is not None:
            experiment.begin_with(earlier)
        sitting = sit(experiment, _question(config, setup))
        return experiment.result(), sitting


def show_sitting(config: Config, setup: Setup, run: RunResult, sitting: Sitting) -> None:
    """Show what was taken in and what is to do; exits with `WAITING` where people are asked."""
    from upslope.ledger.status import last_cycle, status, unfitted_words

    if words := recorded_words(sitting.counts, sitting.own):
        _say(f"recorded: {', '.join(words)}")
    for line in _change_words(sitting):
        _say(line)
    if not sitting.waiting:
        return
    standing = status(run)
    if run.cycles:
        _say(f"cycle {len(run.cycles)} of {standing['cycles']}: {last_cycle(standing)}")
        if run.unfitted and run.unfitted[-1] is run.cycles[-1]:
            _say(f"not fitted, {unfitted_words([len(run.cycles)], run.primary)}")
    count = len(sitting.waiting)
    waiting = f"{format_count(count, 'sample')} {'waits' if count == 1 else 'wait'}"
    _say(f"{waiting} for a label: {sitting.sheet}")
    _say(f"  {how_to_answer(config.task.name, setup.splits.pool.classes)}")
    _say("  Then run the same command again; a part of the answers will do:")
    _say(f"  {same_command()}")
    raise typer.Exit(WAITING)


def recorded_words(counts: AnswerCounts, own_labels: int = 0) -> list[str]:
    """Return what was recorded, by kinds with their counts.

    own_labels: how many labels were taken from the data set itself.
    """
    words = []
    if counts.labelled:
        late = f" ({counts.late:,} skipped before, beyond the cycle's count)" if counts.late else ""
        words.append(format_count(counts.labelled, "label") + late)
    if counts.corrected:
        words.append(format_count(counts.corrected, "correction"))
    if counts.passed:
        words.append(f"{counts.passed:,} skipped")
    if counts.withdrawn:
        words.append(f"{counts.withdrawn:,} taken back")
    if own_labels:
        count = format_count(own_labels, "label")
        words.append(f"{count} that the data set has itself")
    return words


def _change_words(sitting: Sitting) -> list[str]:
    """Return sentences on rows of the sheet that are gone, or lost their answers."""
    lines = []
    if sitting.vanished:
        lines.append(
            f"{format_count(len(sitting.vanished), 'sample')} that waited had no row in "
            f"{sitting.sheet.name}, first {sitting.vanished[0]!r}: still to be answered. Look "
            "whether answers were lost when the file was saved."
        )
    if sitting.emptied:
        lines.append(emptied_words(sitting.sheet.name, sitting.emptied))
    return lines


def emptied_words(name: str, ids: Sequence[str]) -> str:
    """Return a sentence on rows of a file that have no answer, where one is recorded."""
    return (
        f"{format_count(len(ids), 'row')} of {name} had no answer, first {ids[0]!r}, where one was "
        "recorded before: the recorded one stands. To withdraw it, write `take back` into the "
        "column `label`."
    )


def show_status(run: RunResult) -> None:
    """Show where a run without a test set has arrived: there is no curve to show."""
    from upslope.ledger.status import lines, status

    for title, text in lines(status(run)):
        _say(f"{title:11} {text}")


def how_to_answer(task: str, classes: tuple[str, ...]) -> str:
    """Return one sentence on how to answer for a task."""
    names = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
    skip = "or `skip`, or `skip: reason`, for those that cannot be labelled."
    if task == "segmentation":
        return (
            "Draw the mask of each into the data set as masks/<id>.png, such as "
            f"masks/unlabelled/<name>.png; in the column `label`, write nothing, {skip}"
        )
    what = {
        "multi-label": f"the names that hold, with semicolons between, or none ({names}),",
        "regression": f"the number ({names}), several with semicolons between,",
    }.get(task, f"one of {names}")
    return f"Write into the column `label` {what} {skip}"


def same_command() -> str:
    """Return the command line as it was given."""
    return shlex.join(["upslope", *sys.argv[1:]])


def _question(config: Config, setup: Setup) -> Callable[[str, str], Question]:
    """Return what makes the row of the sheet for an id and the reason for which it is asked."""
    from upslope.datasets import root_of, row_contents, sample_file
    from upslope.experiment.sheet import Question

    root = root_of(config.data.name, config.root)
    pool = setup.splits.pool
    contents: dict[str, dict[str, str]] = {}
    if root is not None and config.data.name in ("table", "text"):
        contents = row_contents(root, config.data.options)
    position = {id_: i for i, id_ in enumerate(pool.ids)}

    def question(id_: str, why: str) -> Question:
        file = sample_file(pool, position[id_], root)
        path = str(file.absolute()) if file else ""
        return Question(id_, path, why, contents.get(id_, {}))

    return question


def _say(line: str) -> None:
    out.print(line, markup=False, soft_wrap=True)
