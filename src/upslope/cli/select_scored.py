"""`upslope select SCORES`: the next samples of a pool that was scored by shards."""

from __future__ import annotations

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

    table = folder / TABLE
    if not table.is_file():
        raise RunError(
            f"Expected the scores of all shards in {table} but some shards are left. Run "
            "`upslope score` again: it goes on where it stopped."
        )
    check_joined(table)
    with reporting_damage(f"a Parquet file of scores in {table}", REMEDY):
        columns = [n for n in pq.read_schema(table).names if n not in ("shard", "id")]
    labelled_ids, count_labelled = _labelled_ids(labelled, table)
    name = strategy or (columns[0] if columns else None)
    if name is None:
        raise ConfigError(f"Expected --strategy, as {table} holds no scores, but got none.")
    if name in columns:
        rows: list[tuple[str, float | None]] = list(top_scores(table, name, budget, labelled_ids))
        cells = ""
    else:
        selection = _from_signals(find_strategy(name), folder / SIGNALS, budget, seed, labelled_ids)
        rows = [(id_, None) for id_ in selection.ids]
        name = find_strategy(name).name
        count = int(selection.notes["cells"])
        cells = f" in two stages, {count:,} cells," if count > 1 else ""
    _write(out, rows, name)
    console.print(
        f"{len(rows):,} samples chosen by {name},{cells} {count_labelled:,} labelled before: {out}",
        markup=False,
        soft_wrap=True,
    )


def _labelled_ids(path: Path | None, table: Path) -> tuple[set[str], int]:
    """The ids that a sheet labels or passes over, and how many it labels.

    Labels are what people wrote: the folder does not know the classes.
    """
    from upslope.experiment.sheet import ids_meant, read_sheet
    from upslope.scoring.top import ids_among

    if path is None:
        return set(), 0
    sheet = read_sheet(path, ids_among(table, ids_meant(path)), (), str)
    return {*sheet.labels, *sheet.passed}, len(sheet.labels)


def _from_signals(
    strategy: Any, folder: Path, budget: int, seed: int, labelled_ids: set[str]
) -> Any:
    from upslope.errors import DataError
    from upslope.seeds import generator
    from upslope.signal_store import SignalStore
    from upslope.strategies.two_stage import select_in_cells

    store = SignalStore(folder)
    labelled = store.positions(labelled_ids) if labelled_ids else []
    if len(labelled) < len(labelled_ids):
        raise DataError(
            f"Expected signals of all {len(labelled_ids):,} labelled samples in {folder} but "
            f"{len(labelled_ids) - len(labelled):,} have none there. Where ids were told apart by "
            "--ids-by-shard, choose by a score: signals are kept under the ids of the shards."
        )
    rng = generator(seed, "select", 0)
    return select_in_cells(strategy, store, budget, rng, labelled=labelled)


def _write(out: Path, rows: list[tuple[str, float | None]], strategy: str) -> None:
    from upslope.experiment.sheet import Question, write_sheet

    questions = []
    for rank, (id_, score) in enumerate(rows, 1):
        content = {"rank": str(rank)}
        if score is not None:
            content["score"] = repr(score)
        questions.append(Question(id_, "", strategy, content))
    write_sheet(out, questions)
