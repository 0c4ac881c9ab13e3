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
    from upslope.scoring.shards import SIGNALS, TABLE
    from upslope.scoring.top import top_scores

    table = folder / TABLE
    if not table.is_file():
        raise RunError(
            f"Expected the scores of all shards in {table} but some shards are left. Run "
            "`upslope score` again: it goes on where it stopped."
        )
    columns = [n for n in pq.read_schema(table).names if n not in ("shard", "id")]
    known = _labelled_ids(labelled)
    name = strategy or (columns[0] if columns else None)
    if name is None:
        raise ConfigError(f"Expected --strategy, as {table} holds no scores, but got none.")
    if name in columns:
        rows: list[tuple[str, float | None]] = list(top_scores(table, name, budget, known))
        cells = ""
    else:
        selection = _from_signals(find_strategy(name), folder / SIGNALS, budget, seed, known)
        rows = [(id_, None) for id_ in selection.ids]
        name = find_strategy(name).name
        count = int(selection.notes["cells"])
        cells = f" in two stages, {count:,} cells," if count > 1 else ""
    _write(out, rows, name)
    console.print(
        f"{len(rows):,} samples chosen by {name},{cells} {len(known):,} labelled before: {out}",
        markup=False,
        soft_wrap=True,
    )


def _labelled_ids(path: Path | None) -> set[str]:
    """The ids of a sheet of labels, answered or passed; no other column is looked at."""
    from upslope.datasets.rows import read_rows

    return set() if path is None else set(read_rows(path, "id").ids)


def _from_signals(strategy: Any, folder: Path, budget: int, seed: int, known: set[str]) -> Any:
    from upslope.seeds import generator
    from upslope.signal_store import SignalStore
    from upslope.strategies.two_stage import select_in_cells

    store = SignalStore(folder)
    labelled = store.positions(known) if known else []
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
