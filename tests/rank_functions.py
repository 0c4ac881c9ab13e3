"""What the ranks of the tests do: functions for `rank_processes`; not a test itself."""

from __future__ import annotations

import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from small_tasks import TASK, Points, perceptron
from upslope import datasets, models, strategies, tasks
from upslope.cli.engines import sharing
from upslope.datasets import Dataset, Splits
from upslope.distributed.fingerprint import Fingerprint
from upslope.distributed.ranks import Ranks
from upslope.experiment import Experiment, ExperimentSettings
from upslope.ledger import read_run
from upslope.pool import Need
from upslope.progress import Progress
from upslope.scoring import compute_signals, score_to_file
from upslope.seeds import global_generator
from upslope.signals import Signal
from upslope.tasks import Task
from upslope.training import TrainingSettings, evaluate, loop, train

CPU = torch.device("cpu")


def _leading(
    ranks: Ranks | None, data: dict[str, Dataset], make_model: Any
) -> AbstractContextManager[bool]:
    if ranks is None:
        return nullcontext(True)
    sizes = {name: len(dataset) for name, dataset in data.items()}
    return ranks.together(data, CPU, make_model, Fingerprint(sizes))


def digits(resident: bool = True) -> Splits:
    splits = datasets.load("digits", limit=120, test_limit=60)
    return splits if resident else Splits(Streamed(splits.pool), splits.test)


class Streamed:
    """A pool that is read batch by batch, as one that does not fit into memory."""

    def __init__(self, pool: Dataset) -> None:
        self.name, self.classes, self.input_shape = pool.name, pool.classes, pool.input_shape
        self.ids, self.resident, self._pool = pool.ids, False, pool

    def __len__(self) -> int:
        return len(self._pool)

    def inputs(self, indices: Any) -> Tensor:
        return self._pool.inputs(indices)

    def targets(self, indices: Any) -> Tensor:
        return self._pool.targets(indices)


class Normalised(nn.Module):
    """Batch normalisation as a module and as a function, and a layer that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.scale = nn.Parameter(torch.ones(6))
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu().mean(dim=(2, 3))
        x = torch.nn.functional.batch_norm(x + 3, None, None, self.scale, None, training=True)
        logits: Tensor = self.head(x)
        return logits


def network() -> nn.Module:
    with global_generator(3, device=CPU):
        return Normalised()


def digits_task(splits: Splits, augmentation: str = "shift") -> Task:
    mean, std = datasets.statistics(splits.pool)
    return tasks.build(
        "classification", num_classes=10, mean=mean, std=std, augmentation=augmentation
    )


def trained(
    ranks: Ranks | None, resident: bool, augmentation: str, n: int, **settings: Any
) -> dict[str, Tensor] | None:
    """The weights and the mean loss after an epoch over `n` digits, in batches of 16."""
    splits = digits(resident)
    model = network()
    with _leading(ranks, {"pool": splits.pool}, network) as leads:
        if not leads:
            return None
        report = train(
            model,
            digits_task(splits, augmentation),
            splits.pool,
            range(n),
            TrainingSettings(**{"epochs": 1, "batch_size": 16, "optimizer": "sgd", **settings}),
            seed=5,
            device=CPU,
            validation=splits.test,
        )
        return {**model.state_dict(), "loss": torch.tensor(report.loss)}


def needs_of(name: str) -> tuple[Need, ...]:
    """The signals of a strategy; of "latents", which is a signal, that with few steps."""
    return (
        (Need.of("latents", steps=4, latent=2, width=4),)
        if name == "latents"
        else strategies.build(name).needs
    )


def points_network() -> nn.Module:
    with global_generator(1, device=CPU):
        return perceptron(norm=True, dropout=0.5).eval()


def scored(ranks: Ranks | None, names: tuple[str, ...], corrupt: frozenset[int]) -> Any:
    """The signals of some needs over a pool of points, those that could be read, and figures."""
    pool, test = Points(150, corrupt=corrupt), Points(90, seed=1, name="test points")

    model = points_network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)  # other weights than those that each rank makes by itself
    with _leading(ranks, {"pool": pool, "test": test}, points_network) as leads:
        if not leads:
            return None
        table = compute_signals(
            [need for name in names for need in needs_of(name)],
            model,
            TASK,
            pool,
            range(150),
            device=CPU,
            seed=2,
            batch_size=16,
            on_corrupt="skip" if corrupt == frozenset({40}) else "fail",
        )
        figures = evaluate(model, TASK, test, device=CPU, batch_size=16)
        return table.signals, table.candidates, table.skipped, figures


def scores_in_file(ranks: Ranks | None, path: Path) -> None:
    """Scores of a pool in a file, which rank 0 writes."""
    pool, model = Points(100), points_network()
    with _leading(ranks, {"pool": pool}, points_network) as leads:
        if leads:
            scorers = {"margin": strategies.build("margin")}
            score_to_file(
                path, scorers, model=model, task=TASK, dataset=pool, device=CPU, batch_size=8
            )  # type: ignore[arg-type]


def chosen(ranks: Ranks | None, folder: Path, pause: float = 0.0) -> list[list[str]] | None:
    """What a short run on digits asks for in each cycle. pause: seconds after each batch."""
    loop.CHECKPOINT_SECONDS = 0.0
    splits = digits()
    shape = splits.pool.input_shape
    make = partial(models.build, "cnn-small", num_classes=10, input_shape=shape)

    def watch(progress: Progress) -> None:
        if progress.phase == "train":
            print(f"cycle {progress.cycle}", flush=True)
            time.sleep(pause)

    with _leading(ranks, {"pool": splits.pool, "test": splits.test}, make) as leads:
        if not leads:
            return None
        with Experiment(
            folder,
            splits=splits,
            task=digits_task(splits),
            model=make,
            strategy=strategies.build("entropy-gradnorm"),
            settings=ExperimentSettings(initial=40, budget=10, cycles=3, candidates="all"),
            training=TrainingSettings(epochs=4, batch_size=16, optimizer="adam", lr=2e-3),
            device="cpu",
            observer=watch,
        ) as run:
            run.run()
        return asked(folder)


def asked(folder: Path) -> list[list[str]]:
    """The ids that a run has asked for, cycle by cycle."""
    run = read_run(folder)
    return [list(run.initial), *(list(cycle.asked) for cycle in run.cycles)]


def trained_with(
    ranks: Ranks | None, arguments: tuple[Any, ...], settings: dict[str, Any]
) -> dict[str, Tensor] | None:
    """`trained`, with settings that travel as a mapping."""
    return trained(ranks, *arguments, **settings)


def trained_on_torn(ranks: Ranks, sample: int) -> None:
    """A training on points of which one cannot be read."""
    pool = Points(48, corrupt=frozenset({sample}), resident=False)
    with _leading(ranks, {"pool": pool}, perceptron) as leads:
        if leads:
            settings = TrainingSettings(epochs=2, batch_size=16)
            train(perceptron(), TASK, pool, range(48), settings, seed=0, device=CPU)


def trained_on_other_data(ranks: Ranks) -> None:
    """Ranks that open pools of other sizes."""
    with _leading(ranks, {"pool": Points(40 + ranks.rank)}, perceptron):
        pass


def trained_on_another_network(ranks: Ranks) -> None:
    """Ranks whose function of a network gives another rate of dropout, as older code would."""
    make_model = partial(perceptron, dropout=0.1 * ranks.rank)
    with sharing(ranks, {"pool": Points(40)}, CPU, make_model):
        pass


@dataclass(frozen=True)
class Unpicklable:
    """A signal that holds a function without a name."""

    double: Any
    name: ClassVar[str] = "unpicklable"

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:
        return self.double(inputs.sum(dim=1))


class Doubling:
    """Knows one signal, which cannot travel."""

    def signal(self, need: Need) -> Signal | None:
        return Unpicklable(lambda x: 2 * x) if need.name == "unpicklable" else None


def scored_without_pickle(ranks: Ranks | None) -> Tensor | None:
    """A signal that cannot be pickled, over points."""
    warnings.showwarning = lambda message, *_: print(message, flush=True)
    need, pool = Need.of("unpicklable"), Points(40)
    with _leading(ranks, {"pool": pool}, perceptron) as leads:
        if not leads:
            return None
        table = compute_signals(
            [need], perceptron().eval(), TASK, pool, range(40),
            device=CPU, seed=0, batch_size=8, companion=Doubling(),
        )  # fmt: skip
        return table.signals[need]
