"""Counts that Tables 1, 2, 4 and 5 print, made of scores alone; the metrics call them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from upslope.errors import SelectionError


def top_overlap(true_scores: Tensor, picks: Sequence[int], k: int) -> int:
    """Count how many of `picks` are among the `k` largest of `true_scores` (Tables 1 and 2).

    true_scores: (n,). picks: distinct positions in it. k: from 1 to n.

    Where equal scores straddle the cut, which of them are among the k largest is arbitrary; an
    order by position would favour a strategy that breaks its own ties by position. They count by
    their expectation over a random choice: with r places left for m equal scores, t of them
    picked, t r / m, rounded half up once.

    Raises:
        SelectionError: k is not between 1 and n, a position is out of range or occurs twice, or a
            score is NaN.
    """
    n = len(true_scores)
    if true_scores.ndim != 1 or not 1 <= k <= n:
        raise SelectionError(
            f"Expected `true_scores` of shape (n,) and `k` from 1 to n but got shape "
            f"{tuple(true_scores.shape)} and {k}."
        )
    if bool(true_scores.isnan().any()):
        where = int(torch.nonzero(true_scores.isnan())[0])
        raise SelectionError(
            f"Expected scores that can be ordered but position {where} of {n} is NaN. Look at that "
            "sample and the model's outputs on it."
        )
    positions = torch.as_tensor(list(picks), dtype=torch.int64)
    outside = positions[(positions < 0) | (positions >= n)]
    if len(outside) or len(set(positions.tolist())) != len(positions):
        what = f"{int(outside[0])}" if len(outside) else "one of them twice"
        raise SelectionError(
            f"Expected `picks` to be distinct positions from 0 to {n - 1} but got {what}."
        )
    scores = true_scores.detach().cpu()
    cut = scores.topk(k).values[-1]
    above, equal = scores > cut, scores == cut
    places, ties = k - int(above.sum()), int(equal.sum())
    selected_above, selected_ties = int(above[positions].sum()), int(equal[positions].sum())
    return selected_above + (2 * selected_ties * places + ties) // (2 * ties)


def chance_overlap(k: int, candidates: int) -> float:
    """Return the expected `top_overlap` of k candidates drawn at random: k^2 / candidates.

    Raises:
        SelectionError: k is not between 1 and `candidates`.
    """
    if not 1 <= k <= candidates:
        raise SelectionError(
            f"Expected `k` from 1 to the number of candidates, {candidates}, but got {k}."
        )
    return k * k / candidates


def count_reduced(previous: Tensor, later: Tensor) -> int:
    """Count the norms that are no larger at the later model, as Tables 4 and 5 do.

    previous, later: (n,), of the same samples in the same order.

    Raises:
        SelectionError: the two have different lengths, or a norm is not finite.
    """
    if previous.shape != later.shape or previous.ndim != 1:
        raise SelectionError(
            "Expected the norms of the same samples at two models, (n,) each, but got shapes "
            f"{tuple(previous.shape)} and {tuple(later.shape)}."
        )
    if not bool((previous.isfinite() & later.isfinite()).all()):
        raise SelectionError("Expected finite norms but got NaN or infinity.")
    return int((later <= previous).sum())
