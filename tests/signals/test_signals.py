"""Signals against one-sample-at-a-time autograd, and the facts of the gradient norm scores."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from short_forms import mark_rest_long
from upslope.errors import ConfigError, GradientNormError, GradientNormWarning, ModelError
from upslope.gradnorm import entropy, expected
from upslope.pool import Need
from upslope.signals import REGISTRY, build, check, describe
from upslope.signals.criteria import CRITERIA
from upslope.tasks.classification import Classification

C = 5
TASK = Classification(num_classes=C)


def make_model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 8),
            nn.Tanh(),
            nn.Linear(8, C),
        )
        bn = model[1]
        assert isinstance(bn, nn.BatchNorm2d)
        bn.running_mean = torch.randn(4)
        bn.running_var = torch.rand(4) + 0.5
    return model.double().eval()


def make_inputs(n: int = 6) -> Tensor:
    return torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def by_autograd(model: nn.Module, loss: Tensor, norm: str, only: str = "") -> float:
    """The gradient norm of one sample's loss, the slow way."""
    layers = only.split(",") if only else [str(i) for i in range(7)]
    parameters = [p for n, p in model.named_parameters() if n.split(".")[0] in layers]
    grads = torch.autograd.grad(loss, parameters, retain_graph=True)
    norms = [float(g.norm()) for g in grads]
    return sum(norms) if norm == "tensor-sum" else math.hypot(*norms)


def compute(model: nn.Module, name: str, inputs: Tensor, **options: str | float | None) -> Tensor:
    return build(Need.of(name, **options)).compute(model, TASK, inputs)


def test_posteriors_and_uncertainties_by_hand() -> None:
    model, inputs = make_model(), make_inputs()
    p = F.softmax(model(inputs), dim=1).detach()
    ordered = p.sort(dim=1, descending=True).values
    assert torch.allclose(compute(model, "probabilities", inputs).double(), p, atol=1e-6)
    for measure, truth in {
        "least-confidence": 1 - ordered[:, 0],
        "margin": 1 - ordered[:, 0] + ordered[:, 1],
        "entropy": -(p * p.log()).sum(dim=1),
    }.items():
        values = compute(model, "uncertainty", inputs, measure=measure)
        assert values.shape == (6,)
        assert torch.allclose(values.double(), truth, atol=1e-6)


def test_uncertainty_of_a_certain_posterior_is_zero_not_nan() -> None:
    model = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1e4, 0], [0, 0], [0, 0]]))
    for measure in ("least-confidence", "margin", "entropy"):
        assert compute(model, "uncertainty", torch.tensor([[1.0, 0.0]]), measure=measure) == 0


def test_a_dense_task_takes_the_mean_over_positions() -> None:
    model, x = nn.Conv2d(1, C, 1), torch.randn(3, 1, 4, 4)
    p = model(x).softmax(dim=1).detach()
    expected = -(p * p.log()).sum(dim=1).mean(dim=(1, 2))
    assert torch.allclose(compute(model, "uncertainty", x, measure="entropy"), expected, atol=1e-6)
    with pytest.raises(GradientNormError, match="class for every pixel"):
        compute(model, "egl", x)


def test_features_are_what_the_head_takes() -> None:
    model, inputs = make_model(), make_inputs()
    assert torch.allclose(
        compute(model, "features", inputs).double(), model[:-1](inputs), atol=1e-6
    )


@pytest.mark.parametrize("norm", ["global", "tensor-sum"])
@pytest.mark.parametrize("only", mark_rest_long(["", "6", "1,4"], 3))
@pytest.mark.parametrize(
    ("loss", "criterion", "posterior"),
    [
        ("entropy", "cross-entropy", "graph"),
        ("expected", "cross-entropy", "graph"),
        ("expected", "label-smoothing", "graph"),
        ("expected", "label-smoothing", "detached"),
        ("expected", "focal", "graph"),
        ("expected", "focal", "detached"),
        ("expected", "hinge", "graph"),
        ("expected", "hinge", "detached"),
    ],
)
def test_gradnorm_is_autograds(
    loss: str, criterion: str, posterior: str, norm: str, only: str
) -> None:
    model, inputs = make_model(), make_inputs()
    values = compute(
        model,
        "gradnorm",
        inputs,
        loss=loss,
        criterion=criterion,
        posterior=posterior,
        norm=norm,
        parameters=only or None,
    )
    for x, value in zip(inputs, values, strict=True):
        z = model(x[None])
        p = z.softmax(dim=1)
        p = p.detach() if posterior == "detached" else p
        total = (p[0] * torch.stack([_criterion(criterion, z[0], i) for i in range(C)])).sum()
        assert float(value) == pytest.approx(by_autograd(model, total, norm, only), rel=1e-9)


def _criterion(name: str, z: Tensor, label: int) -> Tensor:
    """The published criteria, one sample and one label, from PyTorch's own where it has them."""
    target = torch.tensor(label)
    if name == "cross-entropy":
        return F.cross_entropy(z, target)
    if name == "label-smoothing":
        return F.cross_entropy(z, target, label_smoothing=0.1)
    if name == "hinge":
        return F.multi_margin_loss(z[None], target[None])
    p = z.softmax(dim=0)[label]
    return -((1 - p) ** 2) * p.log()


@pytest.mark.parametrize("norm", ["global", "tensor-sum"])
@pytest.mark.parametrize("kind", ["mean", "rms"])
def test_egl_is_autograds(kind: str, norm: str) -> None:
    model, inputs = make_model(), make_inputs()
    values = compute(model, "egl", inputs, kind=kind, norm=norm)
    for x, value in zip(inputs, values, strict=True):
        z = model(x[None])
        p = z.softmax(dim=1)[0].tolist()
        lengths = [
            by_autograd(model, F.cross_entropy(z, torch.tensor([i])), norm) for i in range(C)
        ]
        expected = (
            sum(q * n for q, n in zip(p, lengths, strict=True))
            if kind == "mean"
            else math.sqrt(sum(q * n**2 for q, n in zip(p, lengths, strict=True)))
        )
        assert float(value) == pytest.approx(expected, rel=1e-9)


def test_eq6_is_eq7_under_cross_entropy() -> None:
    z = torch.randn(7, C, dtype=torch.float64)
    assert torch.allclose(expected()(z), entropy(z), rtol=1e-14)
    model, inputs = make_model(), make_inputs()
    assert torch.allclose(
        compute(model, "gradnorm", inputs, loss="expected"),
        compute(model, "gradnorm", inputs, loss="entropy"),
        rtol=1e-12,
    )


def test_detached_posterior_under_cross_entropy_has_no_gradient() -> None:
    z = torch.randn(7, C, dtype=torch.float64, requires_grad=True)
    expected(posterior="detached")(z).sum().backward()
    assert z.grad is not None
    assert z.grad.abs().max() < 1e-15
    with pytest.raises(ConfigError, match="zero for every sample"):
        build(Need.of("gradnorm", loss="expected", posterior="detached"))


@pytest.mark.parametrize("ties", [2, 3, C])
def test_zero_at_exact_ties_where_egl_is_not(ties: int) -> None:
    """All the mass equally on some classes: the entropy is stationary, the lengths are not."""
    model = nn.Linear(3, C, dtype=torch.float64)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([0.0] * ties + [-1e4] * (C - ties)))
    inputs = torch.randn(4, 3, dtype=torch.float64)
    with warnings.catch_warnings():  # told where they are exactly zero, which rounding decides
        warnings.simplefilter("ignore", GradientNormWarning)
        assert compute(model, "gradnorm", inputs).abs().max() < 1e-12
    assert compute(model, "egl", inputs).min() > 0.1
    assert compute(model, "uncertainty", inputs, measure="margin").tolist() == [1.0] * 4


def test_scoring_leaves_the_model_as_it_was() -> None:
    model, inputs = make_model(), make_inputs()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for name in ("probabilities", "uncertainty", "features", "gradnorm", "egl"):
        compute(model, name, inputs)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(not m._forward_hooks and not m._backward_hooks for m in model.modules())


def test_parameters_that_are_not_there_are_refused() -> None:
    with pytest.raises(GradientNormError, match="'fc'"):
        compute(make_model(), "gradnorm", make_inputs(), parameters="6, fc")


@pytest.mark.parametrize("name", ["label-smoothing", "focal"])
def test_criteria_of_a_dense_task_are_those_of_each_position(name: str) -> None:
    z, labels = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
    dense = CRITERIA[name](z, labels, reduction="none")
    one = CRITERIA[name](z[:, :, 1, 2], labels[:, 1, 2], reduction="none")
    assert torch.allclose(dense[:, 1, 2], one)


def test_table_describes_itself_and_refuses_unknown_names() -> None:
    assert [row.name for row in describe()] == list(REGISTRY)
    assert all(row.summary for row in describe())
    with pytest.raises(ConfigError, match="got 'gradnrm'; did you mean `gradnorm`"):
        build(Need.of("gradnrm"))
    with pytest.raises(ConfigError, match="did you mean `norm`"):
        build(Need.of("gradnorm", nrm="global"))


@pytest.mark.parametrize("n", [1, 2])
def test_check_tells_before_training_what_the_model_cannot_give(n: int) -> None:
    model = make_model().train()
    model[1].eval()
    needs = [
        Need.of(name) for name in ("probabilities", "uncertainty", "features", "gradnorm", "egl")
    ]
    untold = [Need.of("vaal"), Need.of("predicted-loss")]
    check([*needs, *untold], model, TASK, make_inputs(n))
    assert model.training
    assert not model[1].training
    with pytest.raises(ModelError, match="dropout"):
        check([Need.of("mc-dropout")], model, TASK, make_inputs(n))
    assert model.training


def test_predictions_are_also_given_by_the_signal_s_former_name() -> None:
    model, x = make_model(), torch.randn(6, 1, 6, 6, dtype=torch.float64)
    given = {
        name: build(Need.of(name)).compute(model, TASK, x) for name in ("predictions", "answers")
    }
    assert given["answers"].tolist() == model(x).argmax(dim=1).tolist()
    assert torch.equal(given["predictions"], given["answers"])
