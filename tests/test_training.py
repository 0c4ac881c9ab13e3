"""Training: the numbers of a plain loop, seeds by purpose, and resumption at any batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from small_tasks import MODEL, TASK, Points, perceptron
from upslope import datasets, models, tasks
from upslope.errors import ConfigError, DataError, ModelError
from upslope.gradnorm import gradient_norms
from upslope.progress import Interrupted, Progress, Stop
from upslope.seeds import derive, generator, global_generator
from upslope.training import Step, TrainingSettings, evaluate, loop, train
from upslope.training.loop import epoch_batches
from upslope.training.schedule import learning_rate

CPU = torch.device("cpu")
SETTINGS = TrainingSettings(epochs=3, batch_size=16, lr=0.1)


def fresh(**options: object) -> nn.Module:
    with global_generator(0, "weights", device=CPU):
        return perceptron(**options)  # type: ignore[arg-type]


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.state_dict().values()])


def fit(model: nn.Module, settings: TrainingSettings = SETTINGS, **options: object) -> Tensor:
    data = options.pop("data", Points(50))
    train(model, TASK, data, range(50), settings, seed=3, device=CPU, **options)  # type: ignore[arg-type]
    return weights(model)


def test_it_is_the_plain_loop() -> None:
    settings = replace(SETTINGS, schedule="constant", momentum=0.9, weight_decay=1e-3)
    model, plain, data = fresh(), fresh(), Points(50)
    report = train(model, TASK, data, range(50), settings, seed=3, cycle=2, device=CPU)
    sgd = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for epoch in range(3):
        total = 0.0
        order = torch.randperm(50, generator=generator(3, "order", 2, epoch))
        for batch in order.split(16):  # 50 = 3 * 16 + 2
            sgd.zero_grad()
            loss = F.cross_entropy(plain(data.inputs(batch)), data.targets(batch))
            loss.backward()
            sgd.step()
            total += loss.item() * len(batch)
    torch.testing.assert_close(weights(model), weights(plain), rtol=1e-6, atol=1e-7)
    assert report.loss == pytest.approx(total / 50, rel=1e-5)


def test_seeds_depend_on_the_whole_purpose() -> None:
    purposes = [(0, "order", 1, 2), (0, "order", 2, 1), (1, "order", 1, 2), (0, "order", 12)]
    purposes += [(0, "order", "1", 2), (0, "augment", 1, 2)]
    assert len({derive(*p) for p in purposes}) == len(purposes)  # type: ignore[arg-type]
    assert derive(0, "order", 1, 2) == derive(0, "order", 1, 2)
    assert all(0 <= derive(s, "x") < 2**63 for s in range(50))


def test_every_epoch_has_every_sample_once_and_no_lone_batch() -> None:
    for n in (1, 2, 15, 16, 17, 33, 48):
        batches = epoch_batches(n, 16, seed=0, cycle=0, epoch=0)
        assert sorted(torch.cat(batches).tolist()) == list(range(n))
        assert n == 1 or min(len(b) for b in batches) > 1
    assert [len(b) for b in epoch_batches(5, 1, seed=0, cycle=0, epoch=0)] == [1] * 5
    orders = [torch.cat(epoch_batches(33, 16, 0, 0, epoch)).tolist() for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]


def test_schedules() -> None:
    paper = TrainingSettings(epochs=200, lr=0.1, schedule="milestones", milestones=(160,))
    rates = [learning_rate(paper, epoch, epoch / 200) for epoch in (0, 159, 160, 199)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01])
    one = TrainingSettings(lr=1.0, schedule="one-cycle")
    rates = [learning_rate(one, 0, p) for p in (0, 0.1, 0.2, 0.6, 1.0)]
    assert rates == pytest.approx([0.1, 0.55, 1.0, 0.5, 0.0])


def test_epochs_that_are_not_given_make_enough_steps_of_few_labels() -> None:
    settings = TrainingSettings(batch_size=64)
    expected = {1: 400, 64: 400, 65: 400, 66: 200, 100: 200, 150: 134, 1280: 20, 6400: 20}
    assert {n: settings.epochs_for(n) for n in expected} == expected
    assert settings.steps_for(100) == 400
    assert settings.steps_for(6400) == 2000
    assert TrainingSettings(epochs=4, batch_size=64).steps_for(100) == 8  # as it is said


def test_steps_of_an_epoch_are_its_batches() -> None:
    for size in (1, 2, 16):
        settings = replace(SETTINGS, batch_size=size)
        for n in (1, 2, 15, 16, 17, 18, 32, 33, 48):
            assert settings.steps_per_epoch(n) == len(epoch_batches(n, size, 0, 0, 0))


def test_the_default_fits_a_hundred_digits() -> None:
    digits, apart = datasets.load("digits"), range(0, 1400, 14)  # neighbours have one writer
    mean, std = datasets.statistics(digits.pool)
    task = tasks.build("classification", num_classes=10, mean=mean, std=std)
    with global_generator(0, "weights", device=CPU):
        model = models.build("cnn-small", num_classes=10, input_shape=(1, 8, 8))
    train(model, task, digits.pool, apart, TrainingSettings(), seed=0, device=CPU)
    figures = evaluate(model, task, digits.pool, apart, device=CPU)
    assert figures["accuracy"] > 0.99
    assert evaluate(model, task, digits.test, device=CPU)["accuracy"] > 0.88


def test_settings_name_every_fault() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainingSettings(epochs=0, lr=-1.0, optimizer="lbfgs")  # type: ignore[arg-type]
    assert all(f"`{name}`" in str(caught.value) for name in ("epochs", "lr", "optimizer"))
    with pytest.raises(ConfigError, match="milestones"):
        TrainingSettings(schedule="milestones")


def test_global_randomness_is_left_alone() -> None:
    model = fresh(dropout=0.5)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    fit(model)
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_streamed_and_resident_data_train_alike() -> None:
    assert torch.equal(fit(fresh()), fit(fresh(), data=Points(50, resident=False)))


class Guess:
    """A companion that learns to predict losses from outputs, through its own optimiser."""

    def begin(self, model: nn.Module, device: torch.device, seed: int) -> None:
        with global_generator(seed, "guess", device=device):
            self.head = nn.Linear(3, 1)
        self.optimizer = torch.optim.SGD(self.head.parameters(), lr=0.1, momentum=0.9)
        self.ended = False

    def loss(self, step: Step) -> Tensor:
        return (self.head(step.outputs).squeeze(1) - step.losses.detach()).square().mean()

    def step(self, step: Step) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def end(self) -> None:
        self.ended = True

    def state(self) -> dict[str, Tensor]:
        states = self.optimizer.state_dict()["state"]
        momenta = {f"momentum.{i}": s["momentum_buffer"] for i, s in states.items()}
        return {**self.head.state_dict(), **momenta}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.head.load_state_dict({k: v for k, v in state.items() if "momentum" not in k})
        for i, p in enumerate(self.head.parameters()):
            if f"momentum.{i}" in state:
                self.optimizer.state[p]["momentum_buffer"] = state[f"momentum.{i}"].clone()

    def signal(self, need: object) -> None:
        return None


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("batch", [1, 4, 6, 10])
def test_stopped_at_any_batch_it_goes_on_bit_for_bit(
    tmp_path: Path, optimizer: str, batch: int
) -> None:
    settings = replace(SETTINGS, optimizer=optimizer, lr=0.01)
    options = {"dropout": 0.3, "norm": True}
    validation = Points(30, seed=5)
    guess = Guess()
    whole = fit(fresh(**options), settings, validation=validation, companion=guess)

    stop, checkpoint = Stop(), tmp_path / "training.safetensors"

    def watch(progress: Progress) -> None:
        if progress.done == batch:
            stop.request()

    again = Guess()
    common = {"validation": validation, "companion": again, "checkpoint": checkpoint}
    with pytest.raises(Interrupted):
        fit(fresh(**options), settings, observer=watch, stop=stop, **common)
    assert again.ended
    resumed = fit(fresh(**options), settings, **common)
    assert torch.equal(resumed, whole)
    assert all(torch.equal(v, again.state()[k]) for k, v in guess.state().items())


def test_a_checkpoint_of_another_training_is_not_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    file = tmp_path / "training.safetensors"
    fit(fresh(), checkpoint=file)
    assert file.exists()
    other = replace(SETTINGS, lr=0.02)
    assert torch.equal(fit(fresh(), other, checkpoint=file), fit(fresh(), other))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut in half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "a bit of the weights": lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
    "a bit of the loss": lambda data: data.replace(b"loss_sum", b"loss_rum"),
    "the name of the digest": lambda data: data.replace(b"digest", b"diges4"),
    "another format": lambda data: b"PK\x03\x04" + data[4:],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_checkpoint_that_cannot_be_used_is_set_aside_and_training_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    file = tmp_path / "training.safetensors"
    whole = fit(fresh(), checkpoint=file)
    damaged = damage(file.read_bytes())
    assert damaged != file.read_bytes()
    file.write_bytes(damaged)
    with pytest.warns(UserWarning, match=r"is damaged. It is set aside as .*, and this training"):
        again = fit(fresh(), checkpoint=file)
    assert torch.equal(again, whole)
    assert file.with_name("training.safetensors.damaged").read_bytes() == damaged


def test_validation_chooses_the_weights() -> None:
    settings = replace(SETTINGS, epochs=6, lr=0.5, schedule="constant")
    validation, model = Points(40, seed=9), fresh()
    report = train(
        model, TASK, Points(50), range(50), settings, seed=3, device=CPU, validation=validation
    )
    figures = []
    for epochs in range(1, 7):
        part = fresh()
        fit(part, replace(settings, epochs=epochs))
        figures.append(evaluate(part, TASK, validation, device=CPU)["accuracy"])
    assert evaluate(model, TASK, validation, device=CPU)["accuracy"] == max(figures)
    assert report.best_epoch == figures.index(max(figures))


def test_a_diverging_loss_is_named() -> None:
    with pytest.raises(ModelError, match=r"epoch 1 of 3, at learning rate .* Lower `training.lr`"):
        fit(fresh(), replace(SETTINGS, lr=1e30, schedule="constant"))


def test_one_sample_and_batchnorm() -> None:
    with pytest.raises(ModelError, match="at least two labelled samples"):
        train(fresh(norm=True), TASK, Points(1), [0], SETTINGS, seed=0, device=CPU)
    train(MODEL(), TASK, Points(1), [0], SETTINGS, seed=0, device=CPU)
    train(fresh(norm=True), TASK, Points(17), range(17), SETTINGS, seed=0, device=CPU)


def test_nothing_to_train_or_evaluate_on() -> None:
    with pytest.raises(DataError, match="labelled sample"):
        train(MODEL(), TASK, Points(5), [], SETTINGS, seed=0, device=CPU)
    with pytest.raises(DataError, match="evaluate"):
        evaluate(MODEL(), TASK, Points(5), [], device=CPU)
    frozen = MODEL().requires_grad_(False)
    with pytest.raises(ModelError, match="trainable"):
        train(frozen, TASK, Points(5), range(5), SETTINGS, seed=0, device=CPU)


def test_evaluation_keeps_every_mode_and_statistic() -> None:
    model = fresh(norm=True)
    model[1].eval()
    before = weights(model)
    figures = evaluate(model, TASK, Points(33), device=CPU, batch_size=8)
    assert [m.training for m in model.children()] == [True, False, True, True, True]
    assert torch.equal(weights(model), before)
    data, everything = Points(33), range(33)
    with torch.no_grad():
        right = model.eval()(data.inputs(everything)).argmax(1) == data.targets(everything)
    assert figures["accuracy"] == pytest.approx(float(right.float().mean()))


def test_bfloat16_and_channels_last_train() -> None:
    settings = replace(SETTINGS, autocast="bf16", channels_last=True)
    assert bool(torch.isfinite(fit(fresh(), settings)).all())


@dataclass(frozen=True)
class Grids(Points):
    """Points with images or volumes of three channels and 5 positions a side."""

    dimensions: int = 2

    def inputs(self, indices: Sequence[int]) -> Tensor:
        shape = (self.n, 3, *[5] * self.dimensions)
        return torch.randn(shape, generator=generator(0, "grids"))[torch.as_tensor(indices)]


@pytest.mark.parametrize("dimensions", [2, 3])
def test_channels_last_holds_for_images_and_volumes(dimensions: int) -> None:
    convolution = (nn.Conv2d, nn.Conv3d)[dimensions - 2]
    norm = (nn.BatchNorm2d, nn.BatchNorm3d)[dimensions - 2]
    torch.manual_seed(0)
    plain = nn.Sequential(
        convolution(3, 4, 3), norm(4), convolution(4, 4, 2), nn.Flatten(), nn.LazyLinear(3)
    )
    plain(torch.zeros(2, 3, *[5] * dimensions))
    model = copy.deepcopy(plain)
    data = Grids(20, dimensions=dimensions)
    for network, settings in ((plain, SETTINGS), (model, replace(SETTINGS, channels_last=True))):
        train(network, TASK, data, range(20), settings, seed=3, device=CPU)
    order = (torch.channels_last, torch.channels_last_3d)[dimensions - 2]
    assert model[0].weight.is_contiguous(memory_format=order)
    assert not plain[0].weight.is_contiguous(memory_format=order)
    torch.testing.assert_close(weights(model), weights(plain), rtol=1e-4, atol=1e-5)
    x = data.inputs(range(6))
    norms = [gradient_norms(network.eval(), x, "entropy") for network in (plain, model)]
    torch.testing.assert_close(norms[1], norms[0], rtol=1e-3, atol=1e-5)
