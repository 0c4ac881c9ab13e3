"""Foreground-aware random: how much of the batch, among whom, and with which predictions."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from pools import generator
from torch import Tensor, nn

from upslope.errors import ModelError, SelectionError
from upslope.pool import Need, PoolView
from upslope.signals import build
from upslope.strategies import build as strategy
from upslope.tasks.classification import Classification
from upslope.tasks.segmentation import Segmentation

(NEED,) = strategy("foreground-random").needs


def pool_of(foreground: list[float]) -> PoolView:
    shares = torch.tensor([[1 - f, f / 2, f / 2] for f in foreground])
    return PoolView([f"{i:02d}" for i in range(len(foreground))], {NEED: shares})


def test_a_share_of_the_batch_holds_foreground_and_both_parts_are_uniform() -> None:
    pool = pool_of([0.1, 0.9, 0.2, 0.4] + [0.0] * 16)
    counts: Counter[str] = Counter()
    for seed in range(2000):
        ids = strategy("foreground-random", share=0.5).select(pool, 4, generator(seed)).ids
        assert len(set(ids)) == 4
        assert all(i in pool.candidates[:4] for i in ids[:2])
        counts.update(ids)
    # 2 of the 4 by the share, and 2 of the 18 left, of which 2 hold foreground.
    rare, other = (2 + 2 * 2 / 18) / 4, 2 / 18
    for i, name in enumerate(pool.candidates):
        expected = 2000 * (rare if i < 4 else other)
        assert abs(counts[name] - expected) < 5 * expected**0.5


def test_without_foreground_it_is_random() -> None:
    pool = pool_of([0.0] * 20)
    for seed in range(5):
        ids = strategy("foreground-random").select(pool, 6, generator(seed)).ids
        assert ids == strategy("random").select(pool, 6, generator(seed)).ids


def test_a_background_that_is_no_class_is_refused() -> None:
    with pytest.raises(SelectionError, match="3 classes"):
        strategy("foreground-random", background=3).select(pool_of([0.5, 0.5]), 1, generator())


class Fixed(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[: len(x)]


def test_shares_of_predicted_classes_are_counted_by_hand() -> None:
    masks = torch.tensor([[[0, 0], [2, 1]], [[1, 1], [1, 1]]])
    logits = torch.nn.functional.one_hot(masks, 3).movedim(-1, 1).float()
    task = Segmentation(num_classes=3)
    shares = build(NEED).compute(Fixed(logits), task, torch.zeros(2, 1, 2, 2))
    assert shares.tolist() == [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]]


def test_one_prediction_per_sample_is_refused_where_masks_are_wanted() -> None:
    model, task = Fixed(torch.eye(3)), Classification(num_classes=3)
    with pytest.raises(ModelError, match="Take the strategy random"):
        build(NEED).compute(model, task, torch.zeros(3, 2))
    one_hot = build(Need.of("predicted-classes")).compute(model, task, torch.zeros(3, 2))
    assert torch.equal(one_hot, torch.eye(3))
