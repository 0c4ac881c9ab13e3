"""Batched augmentation against a loop over images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.errors import ConfigError
from upslope.tasks import Classification
from upslope.tasks.augmentation import padded_crop


def one_by_one(images, pad, flip, border, seed):
    """Pad, crop at the drawn place, mirror if drawn: one image after the other, in NumPy."""
    rng = torch.Generator().manual_seed(seed)
    n, c, h, w = images.shape
    offsets = torch.randint(0, 2 * pad + 1, (2, n), generator=rng)
    coins = torch.randint(0, 2, (n, 1), generator=rng) if flip else torch.zeros(n, 1)
    crops = []
    for i, image in enumerate(images.numpy()):
        canvas = np.broadcast_to(border, (c, h + 2 * pad, w + 2 * pad)).copy()
        canvas[:, pad : pad + h, pad : pad + w] = image
        top, left = offsets[:, i].tolist()
        crop = canvas[:, top : top + h, left : left + w]
        crops.append(crop[:, :, ::-1] if coins[i] else crop)
    return np.stack(crops)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 6),
    c=st.integers(1, 3),
    h=st.integers(2, 9),
    w=st.integers(2, 9),
    pad=st.integers(1, 4),
    flip=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_loop(n, c, h, w, pad, flip, seed):
    images = torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(seed))
    border = torch.arange(1.0, c + 1).reshape(1, c, 1, 1)
    rng = torch.Generator().manual_seed(seed)
    got = padded_crop(images, pad, flip=flip, border=border, rng=rng)
    expected = one_by_one(images, pad, flip, border[0].numpy(), seed)
    np.testing.assert_array_equal(got.numpy(), expected)
    rng = torch.Generator().manual_seed(seed)
    plain = padded_crop(images, pad, flip=flip, border=None, rng=rng)
    np.testing.assert_array_equal(plain.numpy(), one_by_one(images, pad, flip, np.float32(0), seed))


def test_border_is_black_before_normalisation():
    """As padding raw images and then normalising, which is what the authors' code does."""
    images = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
    task = Classification(2, mean, std, augmentation="flip-crop", pad=3)
    targets = torch.zeros(64, dtype=torch.long)
    got, same = task.augment(task.prepare(images), targets, torch.Generator().manual_seed(1))
    assert same is targets
    raw = padded_crop(
        images.float(), 3, flip=True, border=None, rng=torch.Generator().manual_seed(1)
    )
    torch.testing.assert_close(got, task.prepare(raw.to(torch.uint8)), atol=1e-5, rtol=0)


def test_draws_cover_all_places_and_both_sides():
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 3, 2] = 1
    task = Classification(2, augmentation="flip-crop")  # pad is an eighth of the image
    batch = image.expand(2000, 1, 8, 8)
    got, _ = task.augment(
        batch, torch.zeros(2000, dtype=torch.long), torch.Generator().manual_seed(0)
    )
    counts = got.sum(dim=(0, 1)).numpy()
    expected = np.zeros((8, 8))
    expected[2:5, [1, 2, 3, 4, 5, 6]] = 2000 / 18
    assert counts[expected == 0].sum() == 0
    assert np.abs(counts - expected).max() < 5 * np.sqrt(2000 / 18)


def test_none_leaves_alone_and_shift_never_mirrors():
    images = torch.arange(8.0).expand(50, 1, 8, 8).contiguous()
    targets = torch.zeros(50, dtype=torch.long)
    rng = torch.Generator().manual_seed(0)
    state = rng.get_state()
    assert Classification(2).augment(images, targets, rng)[0] is images
    assert torch.equal(rng.get_state(), state)
    shifted, _ = Classification(2, augmentation="shift", pad=2).augment(images, targets, rng)
    inside = shifted[:, :, 3:5, 3:5]  # no shift of 2 brings the border here
    assert (inside.diff(dim=3) == 1).all()
    assert len({tuple(row) for row in shifted[:, 0, 4].tolist()}) == 5


def test_inputs_that_are_no_images():
    task = Classification(2, augmentation="shift")
    with pytest.raises(ConfigError, match=r"\(n, c, h, w\).*\(3, 7\).*'none'"):
        task.augment(torch.zeros(3, 7), torch.zeros(3), torch.Generator())
