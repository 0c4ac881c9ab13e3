"""Labels that the data set has otherwise by now than the run recorded them.

The recorded ones count: what was trained and chosen rests on them. But whoever goes on with a run
on corrected labels, or on those of another version of the data, must know that it has both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from upslope.datasets.base import Dataset
from upslope.errors import warn_user
from upslope.experiment.answers import differs, has_label
from upslope.ledger import Label

_MOST_LOOKED_AT = 1000
"""Labels that are compared, evenly over those recorded: a data set may read a file for each."""


def warn_of_changed_labels(
    folder: Path,
    pool: Dataset,
    position: Mapping[str, int],
    labels: Mapping[str, Label],
    *,
    is_simulation: bool,
) -> None:
    """Warn where the data set has other labels than those that a run recorded.

    Masks, which the ledger does not hold, are not compared. folder: of the run. position: id ->
    place in the pool. labels: as recorded. is_simulation: all came from the data set, so that one
    that it has no more is told too.
    """
    ids = [id_ for id_, label in labels.items() if label is not None and not isinstance(label, str)]
    ids = ids[:: -(-len(ids) // _MOST_LOOKED_AT) or 1]
    other_ids = [id_ for id_ in ids if differs(pool, position[id_], labels[id_])]
    absent_ids = [id_ for id_ in ids if is_simulation and not has_label(pool, position[id_])]
    sentences = []
    if other_ids:
        first = other_ids[0]
        now = pool.targets([position[first]])[0].tolist()
        counts = f"another for {len(other_ids):,}"
        sentences.append(f"{counts}, first {first!r} ({labels[first]} there, {now} now)")
    if absent_ids:
        sentences.append(f"none any more for {len(absent_ids):,}, first {absent_ids[0]!r}")
    if sentences:
        warn_user(
            f"Expected the labels that the run in {folder} recorded but, of {len(ids):,} looked "
            f"at, the data set has {' and '.join(sentences)}. The recorded ones count. To "
            "take those of the data set, tell None for these samples (`Experiment.tell`), or "
            "begin another run.",
            UserWarning,
        )
