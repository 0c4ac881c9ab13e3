"""What Tables 1, 2, 4 and 5 and Figure 3 measure, from models and data alone: no experiment here.

    Table 1     of the samples a strategy selected, how many are among the K of largest
                ||grad L(T^c(x))|| with the known label              `label_norms`, `top_overlap`
    Table 2     the K samples that Eq. 5 selects against the K that Eq. 3 selects
                                                                     `influences`, `top_overlap`
    Table 4, 5  of the samples selected, how many have a gradient norm in the next cycle that is no
                larger, by the loss of Eq. 6 and of Eq. 7            `scheme_norms`, `reduced`
    Figure 3    the four terms, averaged over the unlabelled samples `figure_3_terms`

How Table 2 is read. Eq. 3 adds sum_j I_loss(x, x_j) to the test loss when x is left out, so the K
samples that it selects are those with the largest *signed* sum: leaving out a sample with a large
negative sum would lower the test loss. The absolute value enters in Eq. 4. L_test and 1/n are the
same for every x and do not move the order. The paper "temporarily observes" the label of each x for
Eq. 3, which is `scheme="label"`; Eq. 5 "is the data selection criterion used in our algorithm",
which is `scheme_norms`. Two things in the paper do not fit that reading, so both ends are here in
every loss, and a report should say which it took:

- Table 1 finds 677 of the samples chosen by entropy among the 2500 of largest label norm in cycle
  0, where Table 2 finds 2290 of those that Eq. 5 selects among those of Eq. 3. If Eq. 5 is by
  entropy in both, at most 677 + (2500 - 2290) = 887 of the Eq. 3 set have large label norms. It is
  likelier that Table 2 has the same loss at both ends.
- Eq. 3 is at T^(c+1), Table 2 has seven columns and Tables 4 and 5 say that T^(c+1) is not there
  yet after the last one. Table 2 is then either at T^c, or with one more model trained.

A model is run in eval mode, on data as its task prepares it, without augmentation, and left as it
was found. Samples are read in batches; data that is not `resident` is never in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from upslope.batches import evaluating
from upslope.datasets.base import Dataset
from upslope.errors import SelectionError
from upslope.gradnorm import gradient_norms
from upslope.reproduction.theory_data import Batches
from upslope.reproduction.theory_influence import (
    Scheme,
    figure_3_terms,
    influences,
    influences_by_loss,
)
from upslope.signals.gradnorm import GradNorm
from upslope.tasks.base import Task

__all__ = [
    "chance_overlap",
    "figure_3_terms",
    "influences",
    "influences_by_loss",
    "label_norms",
    "reduced",
    "scheme_norms",
    "top_overlap",
]

Norm = Literal["global", "tensor-sum"]


def top_overlap(true_scores: Tensor, selected: Sequence[int], k: int) -> int:
    """How many of `selected` are among the `k` largest of `true_scores` (Tables 1 and 2).

    true_scores: (n,). selected: distinct positions in it.

    Where equal scores straddle the cut, which of them are among the k largest is arbitrary; an
    order by position would favour a strategy that breaks its own ties by position. They count by
    their expectation over a random choice: with r places left for m equal scores, t of them
    selected, t r / m, rounded half up once.

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
    chosen = torch.as_tensor(list(selected), dtype=torch.int64)
    outside = chosen[(chosen < 0) | (chosen >= n)]
    if len(outside) or len(set(chosen.tolist())) != len(chosen):
        what = f"{int(outside[0])}" if len(outside) else "one of them twice"
        raise SelectionError(
            f"Expected `selected` to be distinct positions from 0 to {n - 1} but got {what}."
        )
    scores = true_scores.detach().cpu()
    cut = scores.topk(k).values[-1]
    above, tied = scores > cut, scores == cut
    places = k - int(above.sum())
    sure, drawn = int(above[chosen].sum()), int(tied[chosen].sum())
    ties = int(tied.sum())
    return sure + (2 * drawn * places + ties) // (2 * ties)


def chance_overlap(k: int, candidates: int) -> float:
    """The expected `top_overlap` of k samples drawn at random from `candidates`: k^2 / candidates.

    Raises:
        SelectionError: k is not between 1 and `candidates`.
    """
    if not 1 <= k <= candidates:
        raise SelectionError(
            f"Expected `k` from 1 to the number of candidates, {candidates}, but got {k}."
        )
    return k * k / candidates


def label_norms(
    model: nn.Module,
    task: Task,
    dataset: Dataset,
    indices: Sequence[int],
    targets: Tensor,
    *,
    device: torch.device,
    batch_size: int,
    norm: Norm = "global",
) -> Tensor:
    """||grad L(T(x))|| with L the training criterion at the known label, (n,) float64 on the CPU.

    targets: (n, ...), of the samples at `indices`. norm: as `upslope.gradient_norms`.

    Raises:
        DataError: a sample cannot be read.
        GradientNormError: a loss or a gradient is not finite; the model mixes samples.
    """

    def norms(inputs: Tensor, known: Tensor) -> Tensor:
        return gradient_norms(model, inputs, lambda out: task.losses(out, known), norm=norm)

    batches = Batches(task, dataset, indices, targets, device, batch_size)
    with evaluating(model):
        return torch.cat([norms(x, y).cpu() for x, y in batches])


def scheme_norms(
    model: nn.Module,
    task: Task,
    dataset: Dataset,
    indices: Sequence[int],
    scheme: Scheme,
    *,
    norm: Norm = "global",
    device: torch.device,
    batch_size: int,
) -> Tensor:
    """||grad L(T(x))|| with L of Eq. 7 ("entropy") or Eq. 6 ("expected"), (n,) float64 on the CPU.

    The score that entropy-gradnorm and expected-gradnorm select by. With cross-entropy, Eq. 6 is
    Eq. 7, so the two differ by rounding alone.

    Raises:
        DataError: a sample cannot be read.
        GradientNormError: a loss or a gradient is not finite; the model mixes samples.
    """
    score = GradNorm(loss=scheme, norm=norm)
    batches = Batches(task, dataset, indices, None, device, batch_size)
    with evaluating(model):
        return torch.cat([score.compute(model, task, x).cpu() for x, _ in batches])


def reduced(previous: Tensor, later: Tensor) -> int:
    """How many norms are no larger at the later model, as the captions of Tables 4 and 5 have it.

    previous, later: (n,), of the same samples in the same order.

    Raises:
        SelectionError: they have other lengths, or a norm is not finite.
    """
    if previous.shape != later.shape or previous.ndim != 1:
        raise SelectionError(
            "Expected the norms of the same samples at two models, (n,) each, but got shapes "
            f"{tuple(previous.shape)} and {tuple(later.shape)}."
        )
    if not bool((previous.isfinite() & later.isfinite()).all()):
        raise SelectionError("Expected finite norms but got NaN or infinity.")
    return int((later <= previous).sum())
