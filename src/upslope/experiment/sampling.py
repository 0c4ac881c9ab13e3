"""Random draws of the initial set and of the candidates, alike for all strategies."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from upslope.datasets.base import Dataset, place_of
from upslope.errors import DataError, SelectionError
from upslope.seeds import generator


def initial_set(
    pool: Dataset,
    count: int,
    *,
    seed: int,
    skip_corrupt: bool,
    without: Collection[int] = (),
) -> tuple[list[int], list[int]]:
    """(positions in pool order, positions that could not be read): `count` samples at random.

    without: positions that are not drawn; those drawn instead are the next in the same order.

    Raises:
        SelectionError: fewer than `count` samples can be read.
    """
    random_order = torch.randperm(len(pool), generator=generator(seed, "initial")).tolist()
    order = [i for i in random_order if i not in without]
    if not skip_corrupt:
        return sorted(order[:count]), []
    ids: list[int] = []
    passed_ids: list[int] = []
    for i in order:
        if len(ids) == count:
            break
        try:
            pool.inputs([i])
            ids.append(i)
        except DataError:
            passed_ids.append(i)
    if len(ids) < count:
        raise SelectionError(
            f"Expected `experiment.initial` to be at most the {len(ids)} samples of "
            f"{place_of(pool)} that can be read but got {count}. Lower it, or repair the "
            f"{len(passed_ids)} others."
        )
    return sorted(ids), passed_ids


def candidates(
    unlabelled: Sequence[int], count: int | None, pool: int, *, seed: int, cycle: int
) -> list[int]:
    """The random subset R_U of the paper (A.8), in pool order; all where `count` is None.

    They are the first unlabelled ones in a random order of the whole pool that all strategies
    share, so that their candidates overlap as far as their labelled sets do.
    """
    if count is None or count >= len(unlabelled):
        return list(unlabelled)
    rank = torch.randperm(pool, generator=generator(seed, "candidates", cycle)).tolist()
    return sorted(sorted(unlabelled, key=rank.__getitem__)[:count])
