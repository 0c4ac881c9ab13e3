"""Regression: losses, figures, and the gradient norm at what a committee answers."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from one_by_one import norms
from sklearn.metrics import mean_absolute_error, r2_score
from torch import nn

from upslope import models
from upslope.errors import ConfigError, DataError, ModelError, UpslopeError
from upslope.experiment.checks import check_fit
from upslope.signals import FitContext
from upslope.signals.model_change import FittedModelChange, ModelChange
from upslope.strategies import REGISTRY, build
from upslope.tasks import Classification, Regression, Segmentation
from upslope.tasks.regression_metrics import RegressionMetrics


@dataclass
class Numbers:
    x: torch.Tensor
    y: torch.Tensor

    def inputs(self, indices):
        return self.x[list(indices)]


def network(outputs=2, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, outputs)).double().eval()


def inputs(n=5):
    return torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_losses_and_answers_by_hand():
    task = Regression(2, centre=(10.0, -1.0), scale=(2.0, 0.5))
    outputs = torch.tensor([[0.5, 1.0], [0.0, 0.0]], dtype=torch.float64)
    targets = torch.tensor([[11.0, -1.0], [14.0, 0.0]])
    # standardised: (0.5, 0), (2, 2)
    assert task.losses(outputs, targets).tolist() == [0.5, 4.0]
    assert task.predictions(outputs).tolist() == [[11.0, -0.5], [10.0, -1.0]]
    for wrong in (torch.tensor([1, 0]), torch.zeros(2, 1), torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises(DataError, match=r"\(2, 2\), floats.*kind: numbers"):
            task.losses(outputs, wrong)


def test_fields_out_of_range():
    for options, message in (
        ({"centre": (1.0,)}, "`centre` to hold 2"),
        ({"scale": (1.0, 0.0)}, "`scale` above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            Regression(2, **options)
    with pytest.raises(ModelError, match=r"\(5, 2\), one row per sample and one column per target"):
        Regression(2).check(network(3), inputs())


def test_figures_equal_scikit_learns():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(70, 2)) * [3, 0.1] + [1000, 0]
    f = y + rng.normal(size=(70, 2)) * [1, 0.2]
    metrics = Regression(2, classes=("a", "b")).metrics()
    assert metrics.compute() == {}
    for rows in np.array_split(np.arange(70), 4):
        metrics.update(torch.tensor(f[rows]), torch.tensor(y[rows]))
    rmse = np.sqrt(((y - f) ** 2).mean(axis=0))
    assert metrics.compute() == pytest.approx(
        {
            "r2": r2_score(y, f),
            "rmse": np.sqrt(((y - f) ** 2).mean()),
            "mae": mean_absolute_error(y, f),
            "rmse/a": rmse[0],
            "rmse/b": rmse[1],
        }
    )


@pytest.mark.parametrize(("error", "r2"), [(0.0, 1.0), (1.0, 0.0)])
def test_r2_of_a_target_that_is_the_same_everywhere(error, r2):
    metrics = RegressionMetrics(Regression(1), ("a",))
    y = torch.full((4, 1), 3.0, dtype=torch.float64)
    metrics.update(y + error, y)
    assert metrics.compute()["r2"] == r2


@pytest.mark.parametrize("norm", ["global", "tensor-sum"])
def test_expected_change_is_gradient_norm_times_pseudo_residual(norm):
    # One number per sample: ||grad f|| E|f - f_k|, from another formula than the code's.
    task = Regression(1, centre=(5.0,), scale=(3.0,))
    model, x = network(1), inputs()
    members = tuple(network(1, seed) for seed in (1, 2, 3))
    found = FittedModelChange(members, norm, None).compute(model, task, x)
    residual = torch.stack([(model(x) - f(x)).abs()[:, 0] for f in members]).mean(0).detach()
    if norm == "global":
        steep = norms(model, x, lambda outputs, _: outputs[0, 0])
    else:
        steep = torch.stack(
            [
                sum(g.norm() for g in torch.autograd.grad(model(row)[0], list(model.parameters())))
                for row in x
            ]
        )
    torch.testing.assert_close(found, steep * residual, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("task", "loss"),
    [
        pytest.param(Regression(2), lambda o, f: (o - f).square().sum() / 2, id="several numbers"),
        pytest.param(Classification(4), lambda o, f: -o.log_softmax(0)[f.argmax()], id="votes"),
    ],
)
def test_expected_change_is_the_mean_over_what_members_answer(task, loss):
    model, x = network(task.num_classes), inputs()
    members = tuple(network(task.num_classes, seed) for seed in (1, 2))
    found = FittedModelChange(members, "global", None).compute(model, task, x)
    each = [norms(model, x, lambda o, i, f=f: loss(o[0], f(x)[i].detach())) for f in members]
    torch.testing.assert_close(found, torch.stack(each).mean(0), rtol=1e-10, atol=0)


def test_expected_change_of_masks_is_at_the_masks_drawn():
    torch.manual_seed(3)
    model, member = (nn.Conv2d(1, 3, 3, padding=1).double() for _ in range(2))
    x = torch.randn(3, 1, 5, 4, dtype=torch.float64)
    found = FittedModelChange((member,), "global", None).compute(model, Segmentation(3), x)
    mask = member(x).argmax(dim=1)
    truth = norms(
        model, x, lambda o, i: nn.functional.cross_entropy(o, mask[i : i + 1], reduction="mean")
    )
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=0)


def test_the_committee_learns_on_bootstraps_of_the_labels():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(2))
    data = Numbers(x, 100 + 20 * x[:, :1])
    task = Regression(1, centre=(100.0,), scale=(20.0,))
    context = FitContext(
        model=network(1).float(),
        task=task,
        dataset=data,
        unlabelled=range(40, 60),
        labelled=range(40),
        targets=data.y[:40],
        device=torch.device("cpu"),
        rng=torch.Generator().manual_seed(0),
        progress=lambda done, total: None,
    )
    fitted = ModelChange(members=3, epochs=300).fit(context)
    answers = torch.stack([task.predictions(m(x[40:])) for m in fitted.members]).detach()
    assert (answers - data.y[40:]).square().mean().sqrt() < 8  # the deviation is 20
    assert answers.std(dim=0).min() > 0
    again = ModelChange(members=3, epochs=300)
    context.rng.manual_seed(0)
    same = again.fit(context).compute(context.model, task, x)
    assert torch.equal(fitted.compute(context.model, task, x), same)
    with pytest.raises(ModelError, match="labelled samples, on which the committee"):
        again.fit(replace(context, labelled=()))


def test_what_reads_a_posterior_is_refused_and_the_rest_is_not():
    model = models.build("mlp", num_classes=1, input_shape=(3,), hidden=8, dropout=0.2)
    served, refused = set(), {}
    for name in REGISTRY:
        try:
            check_fit(build(name), model, Regression(1), inputs().float())
            served.add(name)
        except UpslopeError as error:
            refused[name] = str(error)
    assert all("regression has none" in why or "posterior" in why for why in refused.values())
    assert {"random", "emcm", "core-set", "ll4al", "vaal"} <= served
    assert refused.keys() >= {
        "entropy", "margin", "entropy-gradnorm", "expected-gradnorm", "egl", "egl-rms", "badge",
        "gradnorm-diverse", "lcmd", "qbc", "isal", "bait", "sraal", "bald", "batch-bald",
    }  # fmt: skip
