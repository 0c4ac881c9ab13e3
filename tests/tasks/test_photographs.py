"""Augmentation of photographs against loops over images, and what it leaves as it is."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope import datasets, models
from upslope.tasks import Classification
from upslope.tasks.photographs import RATIO, colour_jitter, resized_crop
from upslope.training import TrainingSettings, train


def sample_bilinear(image, y, x):
    """The value between pixel centres, with the border repeated; image (c, h, w)."""
    _, h, w = image.shape
    y, x = min(max(y - 0.5, 0), h - 1), min(max(x - 0.5, 0), w - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
    a, b = y - top, x - left
    upper = (1 - b) * image[:, top, left] + b * image[:, top, right]
    lower = (1 - b) * image[:, bottom, left] + b * image[:, bottom, right]
    return (1 - a) * upper + a * lower


def crops_one_by_one(images, area, flip, seed):
    rng = torch.Generator().manual_seed(seed)
    n, _, h, w = images.shape
    uniform = torch.rand((4, n), generator=rng, dtype=torch.float64).numpy()
    coins = torch.randint(0, 2, (n,), generator=rng).tolist() if flip else [0] * n
    out = np.empty_like(images)
    for k in range(n):
        share = area + (1 - area) * uniform[0, k]
        ratio = math.exp(
            math.log(RATIO[0]) + uniform[1, k] * (math.log(RATIO[1]) - math.log(RATIO[0]))
        )
        ratio = min(max(ratio, share), 1 / share)
        height, width = math.sqrt(share / ratio) * h, math.sqrt(share * ratio) * w
        top, left = (h - height) * uniform[2, k], (w - width) * uniform[3, k]
        for i in range(h):
            for j in range(w):
                column = w - 1 - j if coins[k] else j
                y, x = top + height * (i + 0.5) / h, left + width * (column + 0.5) / w
                out[k, :, i, j] = sample_bilinear(images[k], y, x)
    return out


@pytest.mark.parametrize("area", [0.5, 0.9, 1.0])
def test_a_window_has_the_least_area_at_the_least(area):
    h, w = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    ramps = torch.stack((h, w)).expand(500, 2, 8, 8).double()
    crops = resized_crop(ramps, area, flip=False, rng=torch.Generator().manual_seed(0))
    # A step of a crop, between pixels that are not of the border, is its share of the image.
    height, width = crops[:, 0, 4, 4] - crops[:, 0, 3, 4], crops[:, 1, 4, 4] - crops[:, 1, 4, 3]
    assert float((height * width).min()) >= area - 1e-9
    if area == 1:
        torch.testing.assert_close(crops, ramps)


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 3),
    h=st.integers(2, 7),
    w=st.integers(2, 7),
    area=st.floats(0.05, 1.0),
    flip=st.booleans(),
    seed=st.integers(0, 99),
)
def test_crops_equal_the_loop(n, h, w, area, flip, seed):
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 3, h, w, generator=rng, dtype=torch.float64)
    rng = torch.Generator().manual_seed(seed)
    got = resized_crop(images, area, flip=flip, rng=rng)
    expected = crops_one_by_one(images.numpy(), area, flip, seed)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_equal_the_loop(channels):
    rng = torch.Generator().manual_seed(4)
    raw = torch.rand(5, channels, 4, 3, generator=rng, dtype=torch.float64)
    mean = torch.full((1, channels, 1, 1), 0.4, dtype=torch.float64)
    std = torch.full((1, channels, 1, 1), 0.2, dtype=torch.float64)
    rng = torch.Generator().manual_seed(7)
    got = colour_jitter((raw - mean) / std, 0.6, mean=mean, std=std, rng=rng) * std + mean
    rng = torch.Generator().manual_seed(7)
    factors = 1 + 0.6 * (2 * torch.rand((3, 5), generator=rng, dtype=torch.float64) - 1)
    weights = np.array([0.299, 0.587, 0.114]) if channels == 3 else np.ones(1)
    for k, image in enumerate(raw.numpy()):
        pixels = np.clip(image * float(factors[0, k]), 0, 1)
        grey = np.tensordot(weights, pixels, axes=1)
        pixels = np.clip(grey.mean() + float(factors[1, k]) * (pixels - grey.mean()), 0, 1)
        if channels == 3:
            grey = np.tensordot(weights, pixels, axes=1)
            pixels = np.clip(grey + float(factors[2, k]) * (pixels - grey), 0, 1)
        np.testing.assert_allclose(got[k].numpy(), pixels, atol=1e-9)


def test_a_flat_image_stays_flat_without_colour():
    task = Classification(2, augmentation="photographs-unmirrored", colour=0.0)
    flat = torch.full((4, 3, 8, 8), 0.25)
    same, _ = task.augment(flat, torch.zeros(4), torch.Generator().manual_seed(0))
    torch.testing.assert_close(same, flat)


def test_mirrors_on_demand():
    images = torch.arange(8.0).expand(2, 1, 8, 8).contiguous()
    task = Classification(2, augmentation="photographs", area=0.9, colour=0.0)
    mirrored = torch.tensor([True, False])
    got, _ = task.augment(
        images, torch.zeros(2), torch.Generator().manual_seed(0), mirrored=mirrored
    )
    slopes = (got[:, 0, 0, -1] - got[:, 0, 0, 0]).tolist()
    assert slopes[0] < 0 < slopes[1]


def test_normalised_images_stay_between_black_and_white():
    task = Classification(
        2, (0.4, 0.5, 0.6), (0.2, 0.3, 0.1), augmentation="photographs", colour=0.9
    )
    images = task.prepare(torch.randint(0, 256, (32, 3, 8, 8), dtype=torch.uint8))
    got, _ = task.augment(images, torch.zeros(32), torch.Generator().manual_seed(0))
    mean, std = task.statistics_of(got)
    raw = got * std + mean
    assert raw.min() >= -1e-6
    assert raw.max() <= 1 + 1e-6
    assert not torch.equal(got, images)


def test_a_training_draws_the_same_by_seed_cycle_and_epoch():
    splits = datasets.load("digits", limit=60, test_limit=10)
    task = Classification(10, augmentation="photographs")

    def weights(seed, cycle, epochs=2):
        torch.manual_seed(0)
        model = models.build("mlp", num_classes=10, input_shape=(1, 8, 8), hidden=8)
        train(
            model,
            task,
            splits.pool,
            range(30),
            TrainingSettings(epochs=epochs, batch_size=16),
            seed=seed,
            cycle=cycle,
            device=torch.device("cpu"),
        )
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    first = weights(0, 0)
    assert torch.equal(first, weights(0, 0))
    assert not torch.equal(first, weights(1, 0))
    assert not torch.equal(first, weights(0, 1))
