"""Labels that the data set has otherwise by now than the run recorded them.

Those that the ledger holds count: what was trained and chosen rests on them. Masks stay in the data
set, and are as they are there. Either way, whoever goes on with a run on corrected labels, or on
those of another version of the data, must know that it has both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from upslope.datasets.base import Dataset
from upslope.errors import DataError, warn_user
from upslope.experiment.answers import differs, has_label
from upslope.experiment.labels import mask_digest
from upslope.ledger import State

_MOST_LABELS = 1000
"""Labels that are compared: a data set of the user's own may read something for each."""
_MOST_MASKS = 16
"""Masks that are compared: a file is decoded for each."""


def warn_of_changed_labels(
    folder: Path,
    pool: Dataset,
    position: Mapping[str, int],
    state: State,
    *,
    is_simulation: bool,
) -> None:
    """Warn where the data set has other labels than those that a run recorded.

    folder: of the run. position: id -> place in the pool. state: of the run. is_simulation: all
    labels came from the data set, so that one that it has no more is told too.
    """
    labels = state.labels
    ids = _evenly([i for i, v in labels.items() if isinstance(v, int | list)], _MOST_LABELS)
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
            f"at, the data set has {' and '.join(sentences)}. The recorded ones count. To take "
            "those of the data set, tell None for these samples (`Experiment.tell`), or begin "
            "another run.",
            UserWarning,
        )
    mask_ids = _evenly([i for i in state.masks if labels.get(i, 0) is None], _MOST_MASKS)
    if new_ids := [i for i in mask_ids if _digest(pool, position[i]) != state.masks[i]]:
        warn_user(
            f"Expected the masks that the run in {folder} was told of but, of {len(mask_ids):,} "
            f"looked at, {len(new_ids):,} are others by now, first that of {new_ids[0]!r}. Masks "
            "stay in the data set: these count from the next training on, and models that were "
            "trained before cannot be made again. To record that they are meant, tell None for "
            "these samples (`Experiment.tell`); else bring the old ones back.",
            UserWarning,
        )


def _evenly(ids: Sequence[str], most: int) -> Sequence[str]:
    """At most so many of the ids, evenly over them."""
    return ids[:: -(-len(ids) // most) or 1]


def _digest(pool: Dataset, index: int) -> str:
    """The digest of a mask, empty where it cannot be read any more."""
    try:
        return mask_digest(pool.targets([index])[0])
    except DataError:
        return ""
