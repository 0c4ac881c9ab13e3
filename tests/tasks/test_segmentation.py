"""Segmentation: losses, figures over a whole set, windows of images and masks together."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import jaccard_score
from torch import nn

from upslope import tasks
from upslope.errors import ConfigError, ModelError
from upslope.gradnorm import gradient_norms
from upslope.pool import Need
from upslope.signals import build
from upslope.signals.committee import FittedCommittee
from upslope.tasks import Segmentation, Task
from upslope.tasks.answers import MaskNeededError
from upslope.tasks.masks import random_window
from upslope.tasks.pixels import reduce_pixels
from upslope.training import evaluate


class ArrayOfMasks:
    name, classes, resident = "masks", ("a", "b"), True

    def __init__(self, images, masks):
        self.images, self.masks = images, masks
        self.input_shape = images.shape[1:]
        self.ids = [str(i) for i in range(len(images))]

    def __len__(self):
        return len(self.ids)

    def inputs(self, indices):
        return self.images[list(indices)]

    def targets(self, indices):
        return self.masks[list(indices)]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_losses_are_means_over_valid_pixels():
    logits = torch.randn(3, 4, 5, 6, generator=rng(), dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 4, (3, 5, 6), generator=rng(), dtype=torch.uint8)
    targets[0, :2] = 255
    targets[2] = 255
    losses = Segmentation(4).losses(logits, targets)
    p = logits.detach().softmax(dim=1).numpy()
    for i in (0, 1):
        picked = [
            -math.log(p[i, targets[i, y, x], y, x])
            for y in range(5)
            for x in range(6)
            if targets[i, y, x] != 255
        ]
        assert losses[i].item() == pytest.approx(np.mean(picked))
    assert losses[2].item() == 0  # nothing valid, and nothing to divide by
    losses.mean().backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[2] == 0).all()


def test_figures_over_batches_equal_those_of_all_pixels():
    targets = torch.randint(0, 3, (11, 6, 7), generator=rng(1))  # class 3 is never in a target
    logits = torch.randn(11, 5, 6, 7, generator=rng(2))
    logits[:, 4] = -9  # class 4 occurs nowhere
    targets[torch.rand(targets.shape, generator=rng(3)) < 0.2] = 200
    task = Segmentation(5, classes=tuple("abcde"), ignore_index=200)
    metrics = task.metrics()
    assert metrics.compute() == {}
    for rows in torch.arange(11).split(4):
        metrics.update(logits[rows], targets[rows].to(torch.uint8))
    figures = metrics.compute()
    valid = targets != 200
    truth, answer = targets[valid].numpy(), logits.argmax(dim=1)[valid].numpy()
    iou = jaccard_score(truth, answer, average=None, labels=range(4))
    assert figures == pytest.approx(
        {
            "miou": iou.mean(),
            "pixel_accuracy": (truth == answer).mean(),
            "mean_class_accuracy": np.mean([(answer[truth == k] == k).mean() for k in range(3)]),
            "loss": F.cross_entropy(logits, targets, ignore_index=200).item(),
            **{f"iou/{name}": v for name, v in zip("abcd", iou, strict=True)},
        },
        rel=1e-5,
    )
    assert metrics.matrix.sum() == valid.sum()


def test_one_matrix_is_not_a_mean_over_images():
    metrics = Segmentation(2).metrics()
    answers = torch.tensor([[[0, 0, 0, 0]], [[0, 1, 1, 1]]])
    targets = torch.tensor([[[0, 0, 0, 1]], [[1, 1, 1, 1]]])
    metrics.update(F.one_hot(answers, 2).permute(0, 3, 1, 2).float(), targets)
    # Class 0: 3 right of 5 in the union; class 1: 3 of 5.
    assert metrics.compute()["miou"] == pytest.approx(3 / 5)


def one_by_one(image, mask, size, draws, scale, flip, border, ignore):
    """The window of one image, pixel by pixel, in plain Python."""
    c, h, w = image.shape
    factor = math.exp((2 * draws[0] - 1) * math.log(scale))
    offsets = []
    for extent, window, draw in ((h, size[0], draws[1]), (w, size[1], draws[2])):
        slack = round(factor * extent) - window
        offsets.append(math.copysign(math.floor(draw * (abs(slack) + 1)), slack))
    out = np.empty((c, *size))
    labels = np.empty(size, dtype=int)
    for i in range(size[0]):
        for j in range(size[1]):
            k = size[1] - 1 - j if flip and draws[3] < 0.5 else j
            y = (i + offsets[0] + 0.5) / factor - 0.5
            x = (k + offsets[1] + 0.5) / factor - 0.5
            if not (-0.5 <= y < h - 0.5 and -0.5 <= x < w - 0.5):
                out[:, i, j], labels[i, j] = border, ignore
                continue
            labels[i, j] = mask[math.floor(y + 0.5), math.floor(x + 0.5)]
            y0, x0 = math.floor(y), math.floor(x)
            total = np.zeros(c)
            for dy, wy in ((0, 1 - (y - y0)), (1, y - y0)):
                for dx, wx in ((0, 1 - (x - x0)), (1, x - x0)):
                    row, column = min(max(y0 + dy, 0), h - 1), min(max(x0 + dx, 0), w - 1)
                    total += wy * wx * image[:, row, column]
            out[:, i, j] = total
    return out, labels


@pytest.mark.parametrize("size", [(6, 6), (11, 14), (9, 5)])
@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("flip", [True, False])
def test_windows_equal_the_loop(size, scale, flip):
    images = torch.randn(5, 2, 9, 8, generator=rng(4))
    masks = torch.randint(0, 4, (5, 9, 8), generator=rng(5), dtype=torch.uint8)
    border = torch.tensor([5.0, -5.0]).reshape(1, 2, 1, 1)
    got, labels = random_window(
        images, masks, size, flip=flip, scale=scale, border=border, ignore_index=77, rng=rng(6)
    )
    draws = torch.rand(4, 5, generator=rng(6), dtype=torch.float64).T.tolist()
    for i in range(5):
        expected = one_by_one(
            images[i].numpy(), masks[i].numpy(), size, draws[i], scale, flip, [5, -5], 77
        )
        np.testing.assert_allclose(got[i], expected[0], atol=1e-5)
        np.testing.assert_array_equal(labels[i], expected[1])


@pytest.mark.parametrize(
    ("ignore", "dtype"), [(-1, torch.uint8), (-100, torch.uint8), (255, torch.int8)]
)
def test_what_is_outside_is_ignored_whatever_the_masks_type(ignore, dtype):
    """-1 in a mask of bytes was class 255, and 255 in one of signed bytes an overflow."""
    task = Segmentation(3, ignore_index=ignore, crop=8)
    masks = torch.zeros(2, 4, 4, dtype=dtype)
    _, windows = task.augment(torch.rand(2, 3, 4, 4), masks, rng(0))
    assert sorted(windows.unique().tolist()) == sorted([ignore, 0])
    assert task.losses(torch.zeros(2, 3, 8, 8), windows).isfinite().all()


def test_a_text_too_long_for_a_path_is_no_mask():
    with pytest.raises(MaskNeededError, match="Expected a mask"):
        Segmentation(3).label("x" * 5000, ("a", "b", "c"))


def test_image_and_mask_move_together():
    """Where the image is its own mask, it still is after any window, at factor 1 to the bit."""
    masks = torch.randint(0, 5, (40, 20, 24), generator=rng(7), dtype=torch.uint8)
    task = Segmentation(5, flip=True, crop=16)
    images = masks[:, None].float()
    got, labels = task.augment(images, masks, rng(8))
    assert got.shape == (40, 1, 16, 16)
    assert torch.equal(got[:, 0], labels.float())
    mirrored = sum(
        any(torch.equal(labels[i], masks[i, a : a + 16, b : b + 16].flip(1))
            for a in range(5) for b in range(9))
        for i in range(40)
    )  # fmt: skip
    assert 8 <= mirrored <= 32
    # Enlarged edges of a half plane agree to within a pixel's interpolation.
    half = torch.zeros(30, 24, 24, dtype=torch.uint8)
    half[:, :, 12:] = 1
    got, labels = Segmentation(2, scale=3).augment(half[:, None].float(), half, rng(9))
    inside = labels != 255
    assert ((got[:, 0] - labels.float()).abs()[inside] <= 0.5).all()


def test_what_lies_outside_is_black_and_ignored():
    images = torch.full((64, 3, 8, 8), 255, dtype=torch.uint8)
    masks = torch.zeros(64, 8, 8, dtype=torch.uint8)
    task = Segmentation(2, (0.5, 0.4, 0.3), (0.2, 0.3, 0.1), crop=12)
    got, labels = task.augment(task.prepare(images), masks, rng())
    black = task.prepare(torch.zeros(1, 3, 1, 1, dtype=torch.uint8))
    white = task.prepare(images[:1, :, :1, :1])
    ignored = (labels == 255)[:, None].expand_as(got)
    torch.testing.assert_close(got, torch.where(ignored, black, white))
    assert (ignored[:, 0].sum(dim=(1, 2)) == 144 - 64).all()  # all of the image, somewhere
    plain = Segmentation(2)
    state = rng().get_state()
    same = rng()
    assert plain.augment(images, masks, same)[0] is images
    assert torch.equal(same.get_state(), state)


def test_gradient_norms_of_the_pixel_entropy():
    """The engine against one backward per sample of the mean pixel entropy (Eq. 7)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 5, 1)).double()
    x = torch.randn(3, 3, 6, 7, dtype=torch.float64)
    expected = []
    for i in range(3):
        p = model(x[i : i + 1]).softmax(dim=1)
        entropy = -(p * p.log()).sum(dim=1).mean()
        grads = torch.autograd.grad(entropy, tuple(model.parameters()))
        expected.append(torch.cat([g.flatten() for g in grads]).norm())
    torch.testing.assert_close(gradient_norms(model, x, "entropy"), torch.stack(expected))


def test_check_wants_the_size_of_the_image():
    task = Segmentation(3)
    task.check(nn.Conv2d(2, 3, 3, padding=1), torch.zeros(2, 2, 8, 9))
    with pytest.raises(ModelError, match=r"\(2, 3, 8, 9\).*size of the image.*\(2, 3, 6, 7\)"):
        task.check(nn.Conv2d(2, 3, 3), torch.zeros(2, 2, 8, 9))


class Place(nn.Module):
    """Logits that tell where in its window a pixel is: any mistake of place shows."""

    def forward(self, x):
        rows = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * torch.ones_like(x[0, 0])
        return torch.stack(
            (x[:, 0], x[:, 0] * rows, x.mean(dim=(1, 2, 3))[:, None, None] + rows), 1
        )


@pytest.mark.parametrize(("window", "overlap"), [(4, 0.5), (5, 0.0), (3, 0.7), (6, 0.25)])
def test_sliding_windows_equal_the_loop_over_pixels(window, overlap):
    h, w = 11, 7
    x = torch.randn(2, 3, h, w, generator=rng(1), dtype=torch.float64)
    task = Segmentation(3, evaluation="sliding", window=window, overlap=overlap)
    got = task.predict(Place(), x)
    step = max(1, round(window * (1 - overlap)))

    def begin(extent):
        last = max(0, extent - window)
        return sorted({*(s for s in range(0, extent, step) if s < last), last})

    sums, seen = torch.zeros_like(got), torch.zeros(h, w)
    for top in begin(h):
        for left in begin(w):
            part = Place()(x[:, :, top : top + window, left : left + window])
            for i in range(part.shape[2]):
                for j in range(part.shape[3]):
                    sums[:, :, top + i, left + j] += part[:, :, i, j]
                    seen[top + i, left + j] += 1
    assert seen.min() >= 1
    torch.testing.assert_close(got, sums / seen)


@pytest.mark.parametrize("window", [12, 40])
def test_a_window_that_covers_the_image_is_the_whole(window):
    model = nn.Conv2d(3, 4, 3, padding=1)
    x = torch.randn(2, 3, 12, 9)
    task = Segmentation(4, evaluation="sliding", window=window)
    assert torch.equal(task.predict(model, x), Segmentation(4).predict(model, x))


def test_evaluation_slides_and_training_windows_are_the_default():
    model, x = nn.Conv2d(3, 4, 3, padding=1), torch.randn(1, 3, 12, 12)
    by_crop = Segmentation(4, evaluation="sliding", crop=5).predict(model, x)
    by_window = Segmentation(4, evaluation="sliding", crop=8, window=5).predict(model, x)
    assert torch.equal(by_crop, by_window)
    assert not torch.equal(by_crop, model(x))  # windows have borders of their own
    with pytest.raises(ConfigError, match=r"`task.window`, the side of the windows"):
        Segmentation(4, evaluation="sliding")


def test_figures_come_from_the_windows():
    torch.manual_seed(0)
    model = nn.Conv2d(1, 2, 5, padding=2)
    data = ArrayOfMasks(torch.randn(5, 1, 9, 9), torch.randint(0, 2, (5, 9, 9)))
    task = Segmentation(2, evaluation="sliding", window=4)
    figures = evaluate(model, task, data, device=torch.device("cpu"), batch_size=2)
    metrics = Segmentation(2).metrics()
    with torch.no_grad():
        metrics.update(task.predict(model, data.images), data.masks)
    assert figures == pytest.approx(metrics.compute())
    whole = evaluate(model, Segmentation(2), data, device=torch.device("cpu"))
    assert whole["loss"] != pytest.approx(figures["loss"])


def test_uncertainties_by_each_rule():
    torch.manual_seed(1)
    model, x = nn.Conv2d(2, 4, 1), torch.randn(3, 2, 5, 6)
    p = model(x).softmax(dim=1).detach()
    entropy = -(p * p.log()).sum(dim=1)
    answer = p.argmax(dim=1)
    for i in range(3):
        ordered = sorted(entropy[i].flatten().tolist(), reverse=True)
        by_class = [entropy[i][answer[i] == c].mean().item() for c in answer[i].unique()]
        assert len(by_class) > 1
        truth = {
            "mean": np.mean(ordered),
            "top": np.mean(ordered[:8]),  # a quarter of 30, rounded up
            "class-balanced": np.mean(by_class),
        }
        for rule, expected in truth.items():
            task = Segmentation(4, pixels=rule, top_share=0.25)
            signal = build(Need.of("uncertainty", measure="entropy"))
            assert signal.compute(model, task, x)[i].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("share", "count"), [(0.07, 7), (0.55, 55), (0.555, 56), (1e-9, 1)])
def test_the_top_share_is_rounded_up_from_the_number_that_was_given(share, count):
    """0.07 of 100 pixels were 8, as the product is 7.000000000000001."""
    values = torch.arange(100.0).reshape(1, 10, 10)
    top = reduce_pixels(values, torch.zeros(1, 10, 10), "top", share, 2)
    assert top.item() == 99 - (count - 1) / 2


def test_disagreements_go_by_the_same_rule():
    torch.manual_seed(1)
    members = tuple(nn.Conv2d(2, 3, 1) for _ in range(2))
    x = torch.randn(2, 2, 4, 4)
    p = torch.stack([m(x).softmax(dim=1) for m in members]).detach()
    mean = p.mean(dim=0)
    each = torch.special.entr(mean).sum(1) - torch.special.entr(p).sum(2).mean(0)
    got = FittedCommittee(members).compute(members[0], Segmentation(3, pixels="top"), x)
    torch.testing.assert_close(got, each.flatten(1).topk(2, dim=1).values.mean(dim=1))


def test_table_and_ranges():
    task: Task = tasks.build("segmentation", num_classes=3, crop=64, flip=True, scale=2)
    assert task == Segmentation(3, crop=64, flip=True, scale=2.0)
    with pytest.raises(ConfigError, match=r"`scale`.*0\.5"):
        tasks.build("segmentation", num_classes=3, scale=0.5)
    with pytest.raises(ConfigError, match=r"`task.ignore_index` to be no class but 2"):
        Segmentation(3, ignore_index=2)
