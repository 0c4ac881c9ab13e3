"""Signals that a strategy cannot compute with: posteriors that are none, vectors near the limits
of floating point. `base.QueryStrategy` calls it with every signal before it chooses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from upslope.errors import SelectionError
from upslope.pool import Need

CLASSES = {"probabilities": 1, "mc-posteriors": 2}
"""Signals that are posteriors, and the dimension of their classes."""
ROUNDING = 0.02
"""By how much a posterior may miss the sum of 1: half precision with some classes does by 0.01."""
SMALLEST, LARGEST = 1e-10, 1e15
"""Between these lies the largest entry of a vector, unless all its entries are 0. Squares of larger
vectors, summed over entries, leave float32; vectors of length below 1e-12 are not normalised."""

MOST_NEW = 1e7
"""What a sample may say, by what is known of it already with the ridge (phi^T M^-1 phi). Adding it
leaves 1 / (1 + that) unknown, of which 16 digits hold the square of it times 2e-16: beyond, which
sample is best to leave out again, or beside it, is rounding."""


def check_new(strategy: str, largest: float, ridge: float) -> None:
    """Refuse information so far above the ridge that rounding decides what is chosen.

    strategy: its name, for the message. largest: the largest phi^T M^-1 phi of a candidate.

    Raises:
        SelectionError: names the strategy and the ridge.
    """
    if largest > MOST_NEW:
        raise SelectionError(
            f"Expected candidates for {strategy} whose information is at most {MOST_NEW:g} times "
            f"what is known with the ridge {ridge:g} but that of one is {largest:.3g} times it: "
            "rounding would decide what is chosen. Scale the features, or raise `ridge`."
        )


def check_numbers(strategy: str, need: Need, values: Tensor, ids: Sequence[str]) -> None:
    """Refuse posteriors that are none and vectors that are too large or too small.

    strategy: its name, for the message. values: (n, ...), finite. ids: of its n samples.

    Raises:
        SelectionError: names the strategy, the signal and the first such samples.
    """
    if not len(values):
        return
    if need.name in CLASSES and values.ndim > CLASSES[need.name]:
        _check_posteriors(strategy, need, values, ids)
    elif need.name.endswith("features") or need.name == "gradient-sketch":
        sizes = values.flatten(start_dim=1).abs().amax(dim=1) if values[0].numel() else values
        small = (sizes < SMALLEST) & (sizes > 0)
        # The gradient of a sample that the model is sure of is as good as zero beside the others,
        # and counts by its length: nobody scales it up.
        if need.name == "gradient-sketch" and bool(small.any()) and bool((sizes > SMALLEST).any()):
            small = torch.zeros_like(small)
        wrong = (sizes > LARGEST) | small
        if values[0].numel() and bool(wrong.any()):
            first = int(wrong.int().argmax())
            raise SelectionError(
                f"Expected vectors with entries of {SMALLEST:g} to {LARGEST:g} in size in the "
                f"signal {need} for {strategy} but that of {ids[first]!r} has "
                f"{float(sizes[first]):.3g} ({int(wrong.sum())} of {len(ids)} such samples). Look "
                "at the training loss: a diverged model gives such vectors. Or scale them."
            )


def _check_posteriors(strategy: str, need: Need, values: Tensor, ids: Sequence[str]) -> None:
    classes = CLASSES[need.name]
    sums = values.sum(dim=classes, dtype=torch.float64)
    wrong = ((sums - 1).abs() > ROUNDING).reshape(len(sums), -1).any(dim=1)
    wrong |= (values < 0).flatten(start_dim=1).any(dim=1)
    if bool(wrong.any()):
        some_ids = [ids[i] for i in wrong.nonzero().flatten()[:3].tolist()]
        first = int(wrong.int().argmax())
        raise SelectionError(
            f"Expected posteriors, numbers of 0 or more that sum to 1 over the classes, for "
            f"{strategy} but the signal {need} has a least number of "
            f"{float(values[first].min()):.3g} and a sum of {float(sums[first].max()):.3g} at "
            f"{some_ids[0]!r} ({int(wrong.sum())} of {len(ids)} such samples, first {some_ids}). "
            "Give "
            "softmax outputs, not logits or counts."
        )
