"""The parts of the recipe for small images: each against its definition, and all together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from small_tasks import TASK, Points
from test_training import SETTINGS, fit, fresh, weights
from upslope import datasets, models, tasks
from upslope.config.read import load
from upslope.errors import ConfigError, ModelError
from upslope.progress import Interrupted, Progress, Stop
from upslope.seeds import global_generator
from upslope.training import TrainingSettings, loop, train
from upslope.training.muon import MuonWithSGD
from upslope.training.task import trained_task

CPU = torch.device("cpu")
MUON = replace(SETTINGS, optimizer="muon", lr=0.02, momentum=0.6, nesterov=True, weight_decay=0.1)
NEEDS_MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has no Muon")


def image_network() -> nn.Module:
    with global_generator(0, "weights", device=CPU):
        return models.build("cnn-fast", num_classes=3, input_shape=(3, 20, 24), channels=(4, 6, 8))


@NEEDS_MUON
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_moves_filters_as_the_matrices_that_they_are(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
    model.to(memory_format=layout)
    filters = model[0].weight.detach().clone(memory_format=torch.contiguous_format)
    matrix, bias = filters.reshape(4, 27), model[0].bias.detach().clone()
    plain = torch.optim.Muon([matrix], lr=0.1, momentum=0.6, weight_decay=0.1, ns_steps=3)
    ours = MuonWithSGD(model, lr=0.1, sgd_lr=0.01, momentum=0.6, weight_decay=0.1)
    for _ in range(3):
        model(torch.randn(5, 3, 8, 8)).square().sum().backward()
        matrix.grad = model[0].weight.grad.reshape(4, 27).clone()
        before, gradient = model[0].bias.detach().clone(), model[0].bias.grad.clone()
        ours.step()
        plain.step()
        torch.testing.assert_close(
            model[0].weight.reshape(4, 27),
            matrix,
            rtol=2e-2,
            atol=2e-3,  # bfloat16 inside
        )
        model[0].weight.data.copy_(matrix.reshape(4, 3, 3, 3))
        if torch.equal(before, bias):  # the first step: momentum g + 0.6 g of Nesterov
            torch.testing.assert_close(model[0].bias, bias - 0.01 * 1.6 * gradient)
        ours.zero_grad()


@NEEDS_MUON
@pytest.mark.parametrize("batch", [1, 5, 8])
def test_a_muon_training_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path, batch: int) -> None:
    settings = replace(MUON, batch_statistics="recomputed", label_smoothing=0.1)
    whole = fit(fresh(norm=True, dropout=0.2), settings)
    stop = Stop()

    def watch(progress: Progress) -> None:
        if progress.done == batch:
            stop.request()

    checkpoint = tmp_path / "training.safetensors"
    with pytest.raises(Interrupted):
        fit(
            fresh(norm=True, dropout=0.2),
            settings,
            observer=watch,
            stop=stop,
            checkpoint=checkpoint,
        )
    again = fit(fresh(norm=True, dropout=0.2), settings, checkpoint=checkpoint)
    assert torch.equal(again, whole)


def test_whitened_patches_are_uncorrelated() -> None:
    model = image_network()
    images = torch.randn(50, 3, 20, 24).cumsum(dim=3).cumsum(dim=1)
    model.whiten(images)
    with torch.no_grad():
        out = model.whitening(images)
    rows = out.transpose(0, 1).flatten(1).double()
    moments = rows @ rows.T / rows.shape[1]
    half = len(rows) // 2
    torch.testing.assert_close(moments[:half, :half].diagonal(), torch.ones(half).double(), **TOL)
    off = moments[:half, :half] - moments[:half, :half].diagonal().diag()
    assert off.abs().max() < 1e-3
    assert torch.equal(out[:, :half], -out[:, half:])
    assert not model.whitening.weight.requires_grad


TOL = {"rtol": 0.02, "atol": 0.0}


def test_whitening_needs_a_network_that_has_it() -> None:
    with pytest.raises(ModelError, match="cnn-fast"):
        fit(fresh(), replace(SETTINGS, whitening=True))


def test_sample_passes_do_not_depend_on_the_labels() -> None:
    settings = TrainingSettings(sample_passes=1000, batch_size=10)
    assert [settings.epochs_for(n) for n in (10, 100, 400, 5000)] == [100, 10, 2, 1]
    with pytest.raises(ConfigError, match="epochs"):
        TrainingSettings(sample_passes=1000, epochs=3)


class Seen(nn.Module):
    """Keeps the first pixel column of what it is given, and learns a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x[:, 0].detach().clone())
        return self.bias.expand(len(x), 2)


class Images(Points):
    """Image i holds i + 1 in its left half, -(i + 1) in its right half."""

    def inputs(self, indices):  # type: ignore[no-untyped-def]
        number = torch.as_tensor(list(indices)).float() + 1
        half = number.reshape(-1, 1, 1, 1).expand(-1, 1, 8, 4)
        return torch.cat([half, -half], dim=3)

    def targets(self, indices):  # type: ignore[no-untyped-def]
        return torch.zeros(len(indices), dtype=torch.int64)


def test_alternating_flips_show_each_image_once_a_side_in_two_epochs() -> None:
    model = Seen()
    task = tasks.build("classification", num_classes=2, augmentation="flip-crop", pad=1)
    settings = TrainingSettings(epochs=4, batch_size=16, flip="alternate")
    train(model, task, Images(16), range(16), settings, seed=1, device=CPU)
    sides = []
    for images in model.seen:
        number = images.abs().amax(dim=(1, 2)).long()
        left = images[:, 4, 2].sign()
        sides.append(torch.zeros(17).scatter(0, number, left)[1:])
    assert torch.equal(sides[0], -sides[1])
    assert torch.equal(sides[0], sides[2])
    assert torch.equal(sides[1], sides[3])
    assert 0 < (sides[0] > 0).sum() < 16


def norm_with_inputs(model: nn.Module, data: Points) -> tuple[nn.BatchNorm1d, Tensor]:
    """The normalisation of a network, and what it gets of all 50 samples."""
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm1d))
    inputs: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        model.eval()(data.inputs(range(50)))
    return norm, inputs[0]


@pytest.mark.parametrize("most", [loop.STATISTICS_BATCH, 45])  # 50 samples: not 45 and 5
def test_recomputed_statistics_are_those_of_the_labelled_set(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Where they take several batches, every sample weighs the same."""
    monkeypatch.setattr(loop, "STATISTICS_BATCH", most)
    model, data = fresh(norm=True), Points(50)
    settings = replace(SETTINGS, batch_statistics="recomputed")
    train(model, TASK, data, range(50), settings, seed=3, device=CPU)
    norm, inputs = norm_with_inputs(model, data)
    torch.testing.assert_close(norm.running_mean, inputs.mean(dim=0))
    if most > 50:
        torch.testing.assert_close(norm.running_var, inputs.var(dim=0))
    assert norm.momentum == 0.1


def test_label_smoothing_of_training_leaves_the_task_of_scores_alone() -> None:
    settings = replace(SETTINGS, label_smoothing=0.2)
    logits, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    expected = F.cross_entropy(logits, targets, reduction="none", label_smoothing=0.2)
    torch.testing.assert_close(trained_task(TASK, settings).losses(logits, targets), expected)
    assert trained_task(TASK, SETTINGS) is TASK
    with pytest.raises(ConfigError, match="Regression"):
        trained_task(tasks.build("regression", num_classes=2), settings)
    with pytest.raises(ConfigError, match="one of task"):
        trained_task(replace(TASK, label_smoothing=0.1), settings)


def test_views_are_the_mean_posterior_of_mirrored_and_shifted_images() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4))
    images = torch.randn(5, 3, 8, 8)
    task = tasks.build("classification", num_classes=4, views="flip-shift")
    down = torch.zeros_like(images)
    down[:, :, 1:, 1:] = images[:, :, :-1, :-1]
    up = torch.zeros_like(images)
    up[:, :, :-1, :-1] = images[:, :, 1:, 1:]
    parts = [(images, 0.5), (down, 0.25), (up, 0.25)]
    expected = sum(
        w * (model(x).softmax(dim=1) + model(x.flip(3)).softmax(dim=1)) / 2 for x, w in parts
    )
    torch.testing.assert_close(task.predict(model, images).exp(), expected)
    flip = tasks.build("classification", num_classes=4, views="flip").predict(model, images)
    both = (model(images).softmax(dim=1) + model(images.flip(3)).softmax(dim=1)) / 2
    torch.testing.assert_close(flip.softmax(dim=1), both)


def test_a_recipe_stands_for_its_values_and_gives_way_to_others() -> None:
    config = load({"training": {"recipe": "fast", "lr": 0.07}})
    assert config.training == TrainingSettings.from_recipe("fast", lr=0.07)
    assert config.training.optimizer == "muon"
    assert load({"training": {"recipe": "fast", "epochs": 3}}).training.epochs_for(10) == 3
    with pytest.raises(ConfigError, match=r"training.recipe: expected one of fast"):
        load({"training": {"recipe": "quick"}})


def test_what_was_recorded_before_is_recorded_alike() -> None:
    assert set(TrainingSettings().record()) == {
        "epochs", "batch_size", "optimizer", "lr", "momentum", "weight_decay", "schedule",
        "milestones", "gamma", "augment", "channels_last", "autocast",
    }  # fmt: skip
    assert TrainingSettings(flip="alternate").record()["flip"] == "alternate"


def test_triangular_rises_and_falls_in_lines() -> None:
    from upslope.training.schedule import learning_rate

    settings = TrainingSettings(lr=1.0, schedule="triangular")
    rates = [learning_rate(settings, 0, p) for p in (0, 0.1, 0.2, 0.6, 1.0)]
    assert rates == pytest.approx([0.1, 0.55, 1.0, 0.5, 0.0])


@pytest.mark.long
@NEEDS_MUON
def test_the_recipe_learns_and_depends_on_the_seed_alone() -> None:
    digits = datasets.load("digits")

    class Large(Points):
        def inputs(self, indices):  # type: ignore[no-untyped-def]
            return digits.pool.inputs(indices).repeat_interleave(3, 2).repeat_interleave(3, 3)

        def targets(self, indices):  # type: ignore[no-untyped-def]
            return digits.pool.targets(indices)

    data, task = Large(300), tasks.build("classification", num_classes=10)
    found = []
    for _ in range(2):
        with global_generator(0, "weights", device=CPU):
            model = models.build(
                "cnn-fast", num_classes=10, input_shape=(1, 24, 24), channels=(8, 8, 16)
            )
        settings = TrainingSettings.from_recipe("fast", sample_passes=6000, batch_size=50)
        train(model, task, data, range(100), settings, seed=0, device=CPU)
        found.append(weights(model))
    assert torch.equal(found[0], found[1])
    with torch.no_grad():
        right = model.eval()(task.prepare(data.inputs(range(100, 300)))).argmax(dim=1)
    assert (right == data.targets(range(100, 300))).float().mean() > 0.8
