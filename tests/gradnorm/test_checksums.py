"""Random combinations of a sample's entries, by which backward passes are compared."""

from __future__ import annotations

import torch

from upslope.gradnorm.core.layouts import separation
from upslope.gradnorm.core.layouts.separation import checksum


def test_checksums_stay_the_same_when_longer_ones_are_taken(monkeypatch):
    monkeypatch.setattr(separation, "_mixes", {})
    rows = torch.randn(3, 70_000)
    before, size = checksum(rows[:, :100])
    checksum(rows)
    after, same_size = checksum(rows[:, :100])
    assert torch.equal(before, after)
    assert torch.equal(size, same_size)


def test_all_lengths_share_their_random_numbers(monkeypatch):
    monkeypatch.setattr(separation, "_mixes", {})
    for length in (1, 1_000, 65_536, 65_537, 200_000, 300):
        checksum(torch.ones(2, length))
    (mix,) = separation._mixes.values()
    assert len(mix) == 4 * 65_536
    assert abs(float(mix.mean())) < 0.01
    assert abs(float(mix.std()) - 1) < 0.01
    assert len(mix.unique()) > 0.99 * len(mix)


def test_scaling_a_sample_by_a_power_of_two_scales_its_checksum():
    rows = torch.randn(4, 5, 7, dtype=torch.float64)
    u = torch.tensor([1.0, 2.0, 0.5, 1024.0], dtype=torch.float64)
    once, _ = checksum(rows)
    scaled, _ = checksum(rows * u.view(-1, 1, 1))
    assert torch.equal(scaled, once * u)
