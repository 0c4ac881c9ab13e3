"""Label sets: every number against the sigmoids themselves, and an experiment to the end."""

import itertools

import numpy as np
import pytest
import torch
from one_by_one import norms
from sklearn.metrics import average_precision_score, f1_score
from torch import nn

from upslope.errors import DataError, GradientNormError, ModelError
from upslope.pool import Need
from upslope.signals import build
from upslope.strategies import build as strategy
from upslope.tasks import MultiLabel, Task
from upslope.tasks import build as task_of

LABELS = 4


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, LABELS)).double().eval()


def inputs(n=6):
    return torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_losses_are_binary_cross_entropies():
    z = torch.randn(5, LABELS, dtype=torch.float64)
    y = torch.randint(0, 2, (5, LABELS))
    expected = nn.functional.binary_cross_entropy(z.sigmoid(), y.double(), reduction="none")
    torch.testing.assert_close(MultiLabel(LABELS).losses(z, y), expected.mean(dim=1))
    torch.testing.assert_close(MultiLabel(LABELS).losses(z, y.to(torch.uint8)), expected.mean(1))
    with pytest.raises(DataError, match=r"\(5, 4\).*got \(5,\).*kind: labels"):
        MultiLabel(LABELS).losses(z, torch.zeros(5, dtype=torch.int64))


def set_probability(p, labels):
    return torch.where(labels.bool(), p, 1 - p).prod()


def test_expected_loss_is_that_over_all_label_sets():
    # Eq. 6 over 2^L label sets, one autograd pass per sample, against the engine's one batch.
    model, x = network(), inputs()
    sets = [torch.tensor(s) for s in itertools.product((0, 1), repeat=LABELS)]

    def expected(outputs, _):
        p = outputs[0].sigmoid()
        return sum(
            set_probability(p, s) * nn.functional.binary_cross_entropy(p, s.to(p), reduction="mean")
            for s in sets
        )

    truth = norms(model, x, expected)
    for options in ({"loss": "entropy"}, {"loss": "expected"}):
        found = build(Need.of("gradnorm", **options)).compute(model, MultiLabel(LABELS), x)
        torch.testing.assert_close(found, truth, rtol=1e-10, atol=0)


def test_uncertainty_is_the_mean_binary_entropy():
    model, x = network(), inputs()
    p = model(x).sigmoid().detach()
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).mean(dim=1)
    found = build(Need.of("uncertainty", measure="entropy")).compute(model, MultiLabel(LABELS), x)
    torch.testing.assert_close(found.double(), entropy, rtol=1e-5, atol=0)


def test_posteriors_of_one_label_a_sample_are_refused():
    model, x, task = network(), inputs(2), MultiLabel(LABELS)
    with pytest.raises(GradientNormError, match="logits of shape"):
        build(Need.of("egl")).compute(model, task, x)
    badge = strategy("badge")
    signals = {need: build(need).compute(model, task, x) for need in badge.needs}
    with pytest.raises(ModelError, match="one posterior per sample"):
        badge.check_shapes(signals)


def test_figures_equal_scikit_learns():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(90, LABELS)).round(1)  # some scores are equal
    y = rng.random((90, LABELS)) < 1 / (1 + np.exp(-z))
    y[:, 3] = False  # a label that nobody has
    task = MultiLabel(LABELS, classes=tuple("abcd"))
    metrics = task.metrics()
    assert metrics.compute() == {}
    for rows in np.array_split(np.arange(90), 4):
        metrics.update(torch.tensor(z[rows]), torch.tensor(y[rows].astype(np.int64)))
    precision = {c: average_precision_score(y[:, i], z[:, i]) for i, c in enumerate("abc")}
    assert metrics.compute() == pytest.approx(
        {
            "map": np.mean(list(precision.values())),
            "micro_f1": f1_score(y, z > 0, average="micro"),
            "macro_f1": f1_score(y, z > 0, average="macro"),
            "exact_match": (y == (z > 0)).all(axis=1).mean(),
            "loss": np.log1p(np.exp(np.where(y, -z, z))).mean(),
            **{f"average_precision/{c}": v for c, v in precision.items()},
        }
    )


def test_labels_of_one_name_count_each_for_itself():
    """The mean left all but the last of them out."""
    z = torch.tensor([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0]])
    y = torch.tensor([[1, 1], [0, 1], [0, 0]])
    named, alike = (MultiLabel(2, classes=names).metrics() for names in (("a", "b"), ("a", "a")))
    for metrics in (named, alike):
        metrics.update(z, y)
    assert alike.compute()["map"] == named.compute()["map"]


def test_check_and_answers():
    task: Task = task_of("multi-label", num_classes=LABELS)
    task.check(network().float(), inputs(1).float())
    with pytest.raises(ModelError, match=r"\(2, 4\), one row per sample and one number per label"):
        task.check(nn.Linear(5, 3), inputs(2).float())
    z = torch.tensor([[1.0, -1.0, 0.5, -2.0]])
    assert task.predictions(z).tolist() == [[1, 0, 1, 0]]
