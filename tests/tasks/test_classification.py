"""Classification: losses, figures, preparation, checks."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from upslope import tasks
from upslope.errors import ConfigError, ModelError
from upslope.tasks import Classification, Task


def test_losses_by_hand_with_label_smoothing():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0]], dtype=torch.float64)
    targets = torch.tensor([2, 0])
    logp = [[v - math.log(sum(math.exp(w) for w in row)) for v in row] for row in logits.tolist()]
    plain = Classification(3).losses(logits, targets)
    assert plain.tolist() == pytest.approx([-logp[0][2], -logp[1][0]])
    smooth = Classification(3, label_smoothing=0.3).losses(logits, targets)
    expected = [-0.7 * row[t] - 0.1 * sum(row) for row, t in zip(logp, (2, 0), strict=True)]
    assert smooth.tolist() == pytest.approx(expected)


def test_prepare_normalises_uint8_and_passes_floats():
    images = torch.randint(0, 256, (4, 2, 5, 3), dtype=torch.uint8)
    task = Classification(3, mean=(0.4, 0.6), std=(0.2, 0.5))
    expected = (images.numpy() / 255 - np.array([0.4, 0.6]).reshape(1, 2, 1, 1)) / np.array(
        [0.2, 0.5]
    ).reshape(1, 2, 1, 1)
    prepared = task.prepare(images)
    assert prepared.dtype == torch.float32
    np.testing.assert_allclose(prepared.numpy(), expected, atol=1e-6)
    assert images.dtype == torch.uint8
    floats = torch.randn(4, 7)
    assert task.prepare(floats) is floats
    torch.testing.assert_close(Classification(3).prepare(images), images.float() / 255)
    with pytest.raises(ConfigError, match=r"2 channels.*\(4, 3, 5, 3\)"):
        task.prepare(torch.zeros(4, 3, 5, 3, dtype=torch.uint8))


def test_metrics_over_batches_equal_numpy_over_all():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(97, 4)) * 2
    targets = rng.integers(0, 3, 97)  # class 3 is never seen
    metrics = Classification(4, classes=("a", "b", "c", "d")).metrics()
    assert metrics.compute() == {}
    for rows in np.array_split(np.arange(97), 5):
        metrics.update(
            torch.tensor(logits[rows], dtype=torch.float32), torch.from_numpy(targets[rows])
        )
    figures = metrics.compute()
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    answer, confidence = p.argmax(1), p.max(1)
    right = answer == targets
    gaps = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            gaps += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    by_class = [right[targets == k].mean() for k in range(3)]
    assert figures == pytest.approx(
        {
            "accuracy": right.mean(),
            "mean_class_accuracy": np.mean(by_class),
            "loss": -np.log(p[np.arange(97), targets]).mean(),
            "calibration_error": gaps,
            **{f"accuracy/{name}": v for name, v in zip("abc", by_class, strict=True)},
        },
        rel=1e-5,
    )


@dataclass
class Output:
    logits: torch.Tensor


class Wrapped(nn.Linear):
    def forward(self, x):
        return Output(super().forward(x))


def test_check_passes_and_leaves_every_mode_as_it_was():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    model.train()
    model[1].eval()
    mean = model[1].running_mean.clone()
    Classification(3).check(model, torch.ones(1, 4))
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert torch.equal(model[1].running_mean, mean)
    Classification(3).check(Wrapped(4, 3), torch.ones(2, 4))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(4, 5), r"shape \(2, 3\), .* got \(2, 5\)"),
        (nn.Linear(6, 3), r"batch of shape \(2, 4\) but it raised RuntimeError"),
        (nn.LSTM(4, 3), "got tuple"),
        (nn.Sequential(nn.Linear(4, 3), nn.Threshold(1e9, float("nan"))), "finite logits"),
    ],
)
def test_check_names_what_cannot_serve(model, message):
    with pytest.raises(ModelError, match=message):
        Classification(3).check(model.train(), torch.ones(2, 4))
    assert model.training


def test_fields_out_of_range():
    for arguments, message in (
        ({"num_classes": 1}, "at least 2 classes"),
        ({"num_classes": 2, "classes": ("a",)}, "2 class names"),
        ({"num_classes": 2, "mean": (0.5,)}, "one number per channel"),
        ({"num_classes": 2, "mean": (0.5,), "std": (0.0,)}, "each std above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            Classification(**arguments)


def test_table():
    task: Task = tasks.build(
        "classification", num_classes=2, mean=[0.5], std=[0.5], augmentation="shift"
    )
    assert task == Classification(2, (0.5,), (0.5,), augmentation="shift")
    with pytest.raises(ConfigError) as error:
        tasks.build("classification", num_classes=2, augmentation="rotate", label_smooting=0.1)
    assert "'rotate'" in str(error.value)
    assert "did you mean `label_smoothing`" in str(error.value)
    line = tasks.describe()[0]
    names = ["augmentation", "pad", "area", "colour", "label_smoothing", "views"]
    assert [o.name for o in line.options] == names
    assert all(o.help for o in line.options)


def test_outputs_that_are_no_numbers_are_told_not_counted():
    metrics = Classification(3, classes=("a", "b", "c")).metrics()
    outputs = torch.zeros(4, 3)
    outputs[1, 2] = math.nan
    with pytest.raises(ModelError, match="of 1 of 4 samples are NaN: the network has diverged"):
        metrics.update(outputs, torch.tensor([0, 1, 2, 0]))
