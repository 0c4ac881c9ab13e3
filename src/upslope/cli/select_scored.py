"""`upslope select SCORES`: the next samples of a pool that was scored by shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upslope.cli.console import out as console


def select_scored(
    folder: Path, strategy: str | None, budget: int, seed: int, labelled: Path | None, out: Path
) -> None:
    """Choose from the scores of a folder, or from the signals kept there, and write the ids."""
    import pyarrow.parquet as pq

    from upslope.config import find_strategy
    from upslope.errors import ConfigError, RunError
    from upslope.reading import reporting_damage
    from upslope.scoring.score_files import check_joined
    from upslope.scoring.shards import SIGNALS, TABLE
    from upslope.scoring.top import REMEDY, top_scores
    from upslope.strategies.base import TopStrategy

    table = folder / TABLE
    if not table.is_file():
        raise RunError(
            f"Expected the scores of all shards in {table} but some shards are left. Run "
            "`upslope score` again: it goes on where it stopped."
        )
    check_joined(table)
    with reporting_damage(f"a Parquet file of scores in {table}", REMEDY):
        columns = [n for n in pq.read_schema(table).names if n not in ("shard", "id")]
    name = strategy or (columns[0] if columns else None)
    if name is None:
        raise ConfigError(f"Expected --strategy, as {table} holds no scores, but got none.")
    chooser = None if name in columns else find_strategy(name)
    if isinstance(chooser, TopStrategy):
        raise ConfigError(
            f"Expected one of the scores in {table}, {', '.join(columns) or 'none'}, but got "
            f"{name!r}, a score that was not computed. Compute it into another folder: `upslope "
            f"score RUN --data URL --out FOLDER --scores {','.join([*columns, chooser.name])}`."
        )
    # Strategies of the user's own need not say whether they read labels.
    reads_labels = labelled is not None and getattr(chooser, "reads_labels", False)
    classes = _classes(folder, name) if reads_labels else ()
    labels, passes = _labels(labelled, table, classes)
    labelled_ids = {*labels, *passes}
    if chooser is None:
        rows: list[tuple[str, float | None]] = list(top_scores(table, name, budget, labelled_ids))
        cells = ""
    else:
        answers = {**(labels if classes else dict.fromkeys(labels, 0)), **dict.fromkeys(passes, -1)}
        selection = _from_signals(chooser, folder / SIGNALS, budget, seed, answers)
        rows = [(id_, None) for id_ in selection.ids]
        name = chooser.name
        part = "blocks" if "blocks" in selection.notes else "cells"
        count = int(selection.notes[part])
        cells = f" in two stages, {count:,} {part}," if count > 1 else ""
    _write(out, rows, name)
    console.print(
        f"{len(rows):,} samples chosen by {name},{cells} {len(labels):,} labelled before: {out}",
        markup=False,
        soft_wrap=True,
    )


def _labels(
    path: Path | None, table: Path, classes: Sequence[str]
) -> tuple[Mapping[str, Any], set[str]]:
    """Return what a sheet labels, id -> answer, and the ids that it passes over.

    classes: by which answers are positions; without them, answers are what people wrote.
    """
    from upslope.experiment.sheet import ids_meant, read_sheet, warn_of_empty
    from upslope.scoring.top import ids_among
    from upslope.tasks.answers import class_answer, class_label

    def read(text: str) -> int:
        return class_label(class_answer(text, classes), classes)

    if path is None:
        return {}, set()
    ids = ids_among(table, ids_meant(path))
    sheet = read_sheet(path, ids, classes, read if classes else str)
    warn_of_empty(path, sheet)
    return sheet.labels, set(sheet.passed)


def _classes(folder: Path, name: str) -> Sequence[str]:
    """Return the names of the classes that a folder was scored for, by which a strategy reads
    labels.
    """
    from upslope.errors import ConfigError
    from upslope.files import read_digested_json
    from upslope.scoring.shards import RECORD

    classes: Sequence[str] = (read_digested_json(folder / RECORD) or {}).get("classes", ())
    if not classes:
        raise ConfigError(
            f"Expected the names of the classes in {folder / RECORD}, by which {name} reads "
            "labels, but it has none. Score the pool into another folder, with a run that knows "
            "them, or take u-herding."
        )
    return classes


def _from_signals(
    strategy: Any,
    folder: Path,
    budget: int,
    seed: int,
    answers: Mapping[str, int],
) -> Any:
    """Return the selection. answers: id -> class, or any number where the strategy reads none; -1
    of what was passed over."""
    import torch

    from upslope.errors import DataError
    from upslope.seeds import generator
    from upslope.signal_store import SignalStore
    from upslope.strategies.two_stage import select_in_cells

    store = SignalStore(folder)
    labelled = store.positions(set(answers)) if answers else []
    if len(labelled) < len(answers):
        raise DataError(
            f"Expected signals of all {len(answers):,} labelled samples in {folder} but "
            f"{len(answers) - len(labelled):,} have none there. Where ids were told apart by "
            "--ids-by-shard, choose by a score: signals are kept under the ids of the shards."
        )
    rng = generator(seed, "select", 0)
    labels = torch.tensor([answers[id_] for id_ in store.ids(labelled)]) if labelled else None
    return select_in_cells(strategy, store, budget, rng, labelled=labelled, labels=labels)


def _write(out: Path, rows: list[tuple[str, float | None]], strategy: str) -> None:
    from upslope.experiment.sheet import Question, write_sheet

    questions = []
    for rank, (id_, score) in enumerate(rows, 1):
        content = {"rank": str(rank)}
        if score is not None:
            content["score"] = repr(score)
        questions.append(Question(id_, "", strategy, content))
    write_sheet(out, questions)
