"""A cycle of active learning, trained and selected, against the way in which it is published.

    UPSLOPE_DATA=... python benchmarks/whole_cycle.py
    python benchmarks/whole_cycle.py --models resnet18-cifar --pool 3000 --epochs 5 --threads 1

The published way: a loader of PIL images that are cropped and flipped one by one, training in
float32, and a forward and a backward pass of each candidate by itself for the norm of its gradient.
The same labels, steps, batch size, optimiser and candidates in both, on CIFAR-10: 10% of the pool
at first, 5% more by the norm of the entropy's gradient, and training from scratch with those. Both
select with our model of the first cycle, so that the selections can be compared; evaluation on test
images is in neither figure. They take turns; times are of the wall clock, medians of the rounds.
A network that is sure of everything gives norms of 0, whose order means nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from upslope import datasets, models, strategies, tasks
from upslope.experiment import Experiment, ExperimentSettings
from upslope.ledger import RunResult
from upslope.training import TrainingSettings

BATCH, RATE, MOMENTUM, DECAY, PAD = 32, 0.02, 0.9, 5e-4, 4
Seconds = dict[str, float]


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images as PIL, made into normalised tensors when they are read.

    pixels: (n, 32, 32, 3). augmented: whether they are cropped from a padded image and flipped.
    """

    def __init__(
        self, pixels: np.ndarray, targets: Sequence[int], mean: Tensor, std: Tensor, augmented: bool
    ) -> None:
        self.pixels, self.targets, self.augmented = pixels, targets, augmented
        self.mean, self.std = mean[:, None, None], std[:, None, None]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.pixels[i])
        if self.augmented:
            x, y = torch.randint(0, 2 * PAD + 1, (2,)).tolist()
            image = ImageOps.expand(image, PAD).crop((x, y, x + image.width, y + image.height))
            if torch.rand(()) < 0.5:
                image = ImageOps.mirror(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (pixels - self.mean) / self.std, self.targets[i]


def train(network: nn.Module, labelled: Dataset[tuple[Tensor, int]], epochs: int) -> None:
    """Train as an ordinary script does, by SGD at a constant rate."""
    loader = DataLoader(labelled, batch_size=BATCH, shuffle=True)
    sgd = torch.optim.SGD(network.parameters(), RATE, MOMENTUM, weight_decay=DECAY)
    network.train()
    for _ in range(epochs):
        for x, y in loader:
            sgd.zero_grad()
            F.cross_entropy(network(x), y).backward()
            sgd.step()


def select(network: nn.Module, candidates: Dataset[tuple[Tensor, int]], budget: int) -> list[int]:
    """Return the positions whose entropy has the largest gradients, each by a pass of its own."""
    network.eval()
    norms = []
    for x, _ in DataLoader(candidates, batch_size=1):
        network.zero_grad()
        log_p = network(x).log_softmax(1)
        (-(log_p.exp() * log_p).sum()).backward()
        squares = [p.grad.square().sum() for p in network.parameters() if p.grad is not None]
        norms.append(torch.stack(squares).sum().sqrt())
    return torch.stack(norms).topk(budget).indices.tolist()


def run_ours(folder: Path, splits: Any, network: Callable[[], nn.Module], epochs: int) -> RunResult:
    """Return the run of both cycles."""
    mean, std = datasets.statistics(splits.pool)
    task = tasks.build(
        "classification", num_classes=10, mean=mean, std=std, augmentation="flip-crop", pad=PAD
    )
    with Experiment(
        folder, splits=splits, task=task, model=network, progress=False, device="cpu",
        strategy=strategies.build("entropy-gradnorm"),
        settings=ExperimentSettings(
            initial=0.1, budget=0.05, cycles=2, candidates="all", keep_models="all"
        ),
        training=TrainingSettings(
            epochs=epochs, batch_size=BATCH, optimizer="sgd", lr=RATE, momentum=MOMENTUM,
            weight_decay=DECAY, schedule="constant",
        ),
    ) as experiment:  # fmt: skip
        return experiment.run()


def run_published(
    splits: Any, network: Callable[[], nn.Module], ours: RunResult, epochs: int
) -> tuple[Seconds, float]:
    """Return (seconds of training and of selection, share of the samples that both selected)."""
    pool, (first, second) = splits.pool, ours.cycles
    pixels = pool.inputs(range(len(pool))).permute(0, 2, 3, 1).contiguous().numpy()
    targets = pool.targets(range(len(pool))).tolist()
    mean, std = datasets.statistics(pool)
    plain, augmented = (
        Pictures(pixels, targets, torch.tensor(mean), torch.tensor(std), augmented)
        for augmented in (False, True)
    )
    place = {sample: i for i, sample in enumerate(pool.ids)}
    initial = [place[sample] for sample in ours.initial]
    asked = [place[sample] for sample in first.asked]
    rest = sorted(set(range(len(pool))) - set(initial))
    seconds = {"train": 0.0}
    for labelled in (initial, [*initial, *asked]):
        fresh = network()
        start = time.perf_counter()
        train(fresh, Subset(augmented, labelled), epochs)
        seconds["train"] += time.perf_counter() - start
    trained = network()
    trained.load_state_dict(load_file(ours.path / first.model_file))
    start = time.perf_counter()
    picks = select(trained, Subset(plain, rest), len(asked))
    seconds["select"] = time.perf_counter() - start
    assert second.n_labelled == len(initial) + len(asked)
    return seconds, len({rest[i] for i in picks} & set(asked)) / len(asked)


def measure(name: str, splits: Any, epochs: int, rounds: int) -> None:
    """Print the row of a network."""

    def network() -> nn.Module:
        return models.build(name, num_classes=10, input_shape=(3, 32, 32))

    rows: dict[str, list[Seconds]] = {"published": [], "ours": []}
    shares = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            run = run_ours(Path(folder) / "run", splits, network, epochs)
            wall = time.perf_counter() - start
            train_seconds = sum(cycle.train_seconds for cycle in run.cycles)
            select_seconds = run.cycles[0].select_seconds
            rows["ours"].append({"train": train_seconds, "select": select_seconds, "wall": wall})
            published, share = run_published(splits, network, run, epochs)
        rows["published"].append(published)
        shares.append(share)
    for each in rows.values():
        for seconds in each:
            seconds["both"] = seconds["train"] + seconds["select"]
    cells = []
    for part in ("train", "select", "both"):
        a, b = (
            statistics.median(seconds[part] for seconds in rows[way])
            for way in ("published", "ours")
        )
        cells.append(f"{a:.1f} / {b:.1f} = {a / b:.2f}")
    wall = statistics.median(seconds["wall"] for seconds in rows["ours"])
    learnt = run.cycles[0].train_metrics["accuracy"]
    last = f"{wall:.1f} | {learnt:.2f} | {min(shares):.3f}"
    print(f"| {name} | {' | '.join(cells)} | {last} |", flush=True)


def main() -> None:
    """Measure the networks and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", default="resnet-small,resnet18-cifar")
    parser.add_argument("--pool", type=int, default=3000, help="images")
    parser.add_argument("--epochs", type=int, default=5, help="of each of the two trainings")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    splits = datasets.load("cifar10", limit=options.pool, test_limit=10, progress=lambda _: None)
    print(
        "| network | training, published / ours, s | selection | both | ours with evaluation, s "
        "| accuracy on its labels | selected by both |\n"
        "| --- | --- | --- | --- | --: | --: | --: |"
    )
    for name in options.models.split(","):
        measure(name, splits, options.epochs, options.rounds)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.pool:,} images, "
          f"{options.epochs} epochs")  # fmt: skip


if __name__ == "__main__":
    main()
