"""Which strategies a task and a network can serve is known before any training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from short_forms import mark_rest_long
from upslope import models
from upslope.config import Config, Setup, assemble, check_compatible, load
from upslope.datasets import Splits
from upslope.errors import ConfigError, ModelError
from upslope.experiment import Experiment, ExperimentSettings
from upslope.strategies import REGISTRY, build
from upslope.tasks.segmentation import Segmentation
from upslope.training import TrainingSettings

DROPOUT = {"bald", "mc-entropy", "variation-ratio", "mean-std", "batch-bald"}
FOR_MASKS = {"foreground-random"}


@dataclass(frozen=True)
class Halves:
    """Images of two halves, told apart by brightness, at a random place."""

    n: int = 24
    name: str = "halves"
    classes: tuple[str, ...] = ("dark", "bright")
    input_shape: tuple[int, ...] = (1, 16, 16)
    resident: bool = True

    @property
    def ids(self) -> Sequence[str]:
        return tuple(f"h{i:02d}" for i in range(self.n))

    def __len__(self) -> int:
        return self.n

    def targets(self, indices: Sequence[int]) -> Tensor:
        edge = 2 + torch.tensor(list(indices))[:, None, None] * 7 % 12
        return (torch.arange(16).expand(len(indices), 16, 16) >= edge).to(torch.uint8)

    def inputs(self, indices: Sequence[int]) -> Tensor:
        noise = torch.randn(self.n, 16, 16, generator=torch.Generator().manual_seed(0))
        return (self.targets(indices) + 0.2 * noise[list(indices)])[:, None]


def dense(*names: str, every: bool = False) -> tuple[Config, Setup]:
    network = partial(
        models.build, "dilated-small", num_classes=2, input_shape=(1, 16, 16), width=4
    )
    chosen = {name: build(name) for name in names}
    data = Halves()
    return Config(every=every), Setup(
        Splits(data, data), Segmentation(num_classes=2), network, chosen
    )


def test_all_is_what_the_network_can_do_and_the_rest_is_named() -> None:
    config = load(overrides={"strategies": "all"})
    setup = check_compatible(config, assemble(config))
    assert set(setup.left_out) == DROPOUT | FOR_MASKS
    assert all("--set model.dropout" in setup.left_out[name] for name in DROPOUT)
    served = [n for n in REGISTRY if n not in DROPOUT | FOR_MASKS | {"oracle"}]
    assert [*setup.strategies] == served
    config = load(overrides={"strategies": "all"}, sets=["model.dropout=0.1"])
    setup = check_compatible(config, assemble(config))
    assert {*setup.left_out} == FOR_MASKS
    assert {*setup.strategies} == {*REGISTRY} - FOR_MASKS - {"oracle"}


def test_what_was_asked_by_name_is_refused_with_every_reason() -> None:
    config = load(sets=["strategies=[random, bald, mean-std]"])
    with pytest.raises(ConfigError) as caught:
        check_compatible(config, assemble(config))
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["strategies.bald", "strategies.mean-std"]


def test_masks_leave_out_what_wants_one_label_or_features() -> None:
    config, setup = dense(*REGISTRY, every=True)
    fitted = check_compatible(config, setup)
    served = {"random", "least-confidence", "margin", "entropy", "entropy-gradnorm", "ll4al"}
    served |= {"expected-gradnorm", "gradnorm-diverse", "lcmd", "vaal", "qbc", "isal", "emcm"}
    served |= {"foreground-random", "power"}
    assert set(fitted.strategies) == served
    assert "one label per sample" in fitted.left_out["sraal"]


@pytest.mark.parametrize(
    "name", mark_rest_long(["qbc", "isal", "ll4al", "vaal", "gradnorm-diverse"], 2)
)
def test_masks_reach_what_learns_from_them(name: str, tmp_path: Path) -> None:
    _, setup = dense()
    options: dict[str, object] = {"vaal": {"steps": 3}, "qbc": {"epochs": 2}}.get(name, {})
    with run(setup, tmp_path, build(name, **options)) as experiment:
        result = experiment.run()
    assert [c.n_labelled for c in result.cycles] == [6, 9]


def test_a_cost_budget_decides_how_many_are_asked(tmp_path: Path) -> None:
    _, setup = dense()
    strategy = build("qbc", epochs=8, costs="boundary", cost_budget=90)
    with run(setup, tmp_path, strategy) as experiment:
        experiment.tell(dict.fromkeys(experiment.ask()))
        asked = experiment.ask()
        assert len(asked) != 3
        model, data = experiment.model(), setup.splits.pool
        position = {id_: i for i, id_ in enumerate(data.ids)}
        x = setup.task.prepare(data.inputs([position[i] for i in asked]))
        masks = model(x).argmax(dim=1)
        pairs = (masks.diff(dim=1) != 0).sum() + (masks.diff(dim=2) != 0).sum()
        assert pairs <= 90
        result = experiment.run()
    assert result.cycles[-1].n_labelled == 6 + len(asked)


def test_a_cost_budget_is_not_compared_at_equal_numbers_of_labels() -> None:
    _, setup = dense("random")
    by_cost = {"qbc": build("qbc", costs="boundary", cost_budget=90)}
    alone = replace(setup, strategies=by_cost)
    assert check_compatible(Config(), alone).strategies == by_cost
    with pytest.raises(ConfigError, match=r"strategies\.qbc: .* got 1 strategies and 2 seeds"):
        check_compatible(Config(seeds=(0, 1)), alone)
    beside = replace(setup, strategies={**setup.strategies, **by_cost})
    with pytest.raises(ConfigError, match=r"got 2 strategies and 1 seeds"):
        check_compatible(Config(), beside)


def test_an_experiment_alone_refuses_before_its_first_training(tmp_path: Path) -> None:
    _, setup = dense()
    with run(setup, tmp_path, build("sraal")) as experiment:
        experiment.tell(dict.fromkeys(experiment.ask()))
        with pytest.raises(ModelError, match="one label per sample for sraal"):
            experiment.ask()
        assert experiment.state.trained is None


def run(setup: Setup, path: Path, strategy: object) -> Experiment:
    return Experiment(
        path,
        splits=setup.splits,
        task=setup.task,
        model=setup.model,
        strategy=strategy,  # type: ignore[arg-type]
        settings=ExperimentSettings(initial=6, budget=3, cycles=2, candidates="all"),
        training=TrainingSettings(epochs=8, batch_size=3, optimizer="adam", lr=0.02),
        device="cpu",
    )
