"""The cells of the study: a data set, a range of labels, and how a network learns from them.

Four regimes: a linear head on frozen features (`benchmarks/frozen_features.py` writes them, but
for the tables of scikit-learn, whose standardised columns are the features); a small network from
scratch by the recipe `fast`; the last blocks of a network that was trained on ImageNet; a bag of
words on texts. Cells called confirm-... are on data on
which no setting and no rule was chosen. Read by `benchmarks/verdict.py`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from torch import nn  # noqa: E402

from upslope import config, datasets, tasks  # noqa: E402
from upslope.datasets.splits import Splits  # noqa: E402
from upslope.errors import UpslopeError  # noqa: E402
from upslope.tasks.base import Task  # noqa: E402
from upslope.training import TrainingSettings  # noqa: E402


@dataclass(frozen=True)
class Cell:
    """A data set and a range of labels.

    data: a file of features without its ending, `sklearn-NAME`, or what `whole` names. candidates:
    scored in each cycle. cut: what is done to the pool of a file of features. whole: the
    configuration of a network that is trained whole, not a head on features.
    """

    data: str
    initial: int
    budget: int
    cycles: int
    candidates: int | str
    cut: str = ""
    whole: str = ""


CELLS = {
    "sign-digits-low": Cell("sign-digits", 20, 20, 10, "all"),
    "cifar10-low": Cell("cifar10", 20, 20, 10, 2500),
    "fashion-mnist-low": Cell("fashion-mnist", 20, 20, 10, 2500),
    "sign-digits-high": Cell("sign-digits", 100, 100, 6, "all"),
    "cifar10-high": Cell("cifar10", 100, 100, 10, 2500),
    "fashion-mnist-high": Cell("fashion-mnist", 100, 100, 10, 2500),
    "text-sst2": Cell("sst2", 100, 100, 6, 2500, whole="text"),
    "scratch-fashion-mnist": Cell("fashion-mnist", 100, 100, 5, 5000, whole="scratch"),
    "fine-tuned-sign-digits": Cell("sign-digits", 50, 50, 4, "all", whole="fine-tuned"),
    "confirm-digits": Cell("sklearn-digits", 20, 20, 10, "all"),
    "confirm-breast-cancer": Cell("sklearn-breast_cancer", 4, 4, 10, "all"),
    "confirm-wine": Cell("sklearn-wine", 6, 3, 10, "all"),
    "confirm-tiny-imagenet": Cell("tiny-imagenet-32", 100, 100, 8, 2500),
    "confirm-imbalanced": Cell("cifar10", 20, 20, 10, 2500, cut="imbalanced"),
    "confirm-near-copies": Cell("cifar10", 20, 20, 10, 2500, cut="near-copies"),
    "confirm-people": Cell("cifar10", 20, 20, 10, 2500, cut="people"),
}

HEAD = TrainingSettings(epochs=100, batch_size=1024, optimizer="adam", lr=0.03, weight_decay=0.03)
"""Full batches, one-cycle. Chosen by accuracy on random labels alone, at 20, 100 and 200 to 400."""

WHOLE: dict[str, dict[str, Any]] = {
    "text": {
        "data": {"name": "text", "text": "text", "target": "class"},
        "model": "bag-of-words",
        "training": {
            "epochs": 15, "batch_size": 32, "optimizer": "adam", "lr": 0.005, "weight_decay": 0,
        },
    },
    "scratch": {
        "data": {"name": "fashion-mnist", "test_limit": 2000},
        "model": "cnn-fast",
        "task": {
            "name": "classification", "augmentation": "flip-crop", "pad": 2, "views": "flip",
        },
        "training": {"recipe": "fast", "autocast": "bf16", "sample_passes": 15_000},
    },
    "fine-tuned": {
        "data": {"name": "folder", "size": 64, "test_share": 0.25},
        "model": {"name": "pretrained", "blocks": 3},
        "task": {"name": "classification", "augmentation": "photographs"},
        "training": {
            "epochs": 15, "batch_size": 32, "optimizer": "adam", "lr": 0.003, "backbone_rate": 0.1,
        },
    },
}  # fmt: skip
TEXTS = {"train.tsv": "train", "dev.tsv": "test"}
"""Files of texts and classes, a tab between; what each is for."""


@dataclass(frozen=True)
class Problem:
    """What a comparison in a cell takes: the data, the task, fresh networks, their training."""

    splits: Splits
    task: Task
    model: Callable[[], nn.Module]
    training: TrainingSettings


def head(classes: int, width: int) -> nn.Module:
    """Return the linear head that each cycle trains on frozen features."""
    return nn.Linear(width, classes)


def training_of(cell: Cell) -> dict[str, Any]:
    """Return the settings with which the cell's networks are trained, as a record."""
    if not cell.whole:
        return HEAD.record()
    return config.load({**WHOLE[cell.whole], "data": "digits"}).training.record()


@cache
def problem(cell: Cell, features: Path) -> Problem | str:
    """Return what a comparison in the cell takes, or, in words, what is missing for it."""
    if cell.whole:
        return _whole(cell)
    if cell.data.startswith("sklearn-"):
        splits = _table(cell.data.removeprefix("sklearn-"))
    elif (file := features / f"{cell.data}.npz").is_file():
        splits = _features(file, cell.cut)
    else:
        return f"no features of {cell.data} in {features}"
    classes, (width,) = len(splits.pool.classes), splits.pool.input_shape
    task = tasks.build("classification", num_classes=classes)
    return Problem(splits, task, partial(head, classes, width), HEAD)


def _whole(cell: Cell) -> Problem | str:
    """A network that is trained whole, on the data of `$UPSLOPE_DATA`."""
    folder = Path(os.environ.get("UPSLOPE_DATA", "data")) / cell.data
    with tempfile.TemporaryDirectory() as made:
        if cell.whole == "text":
            missing = [part for part in TEXTS if not (folder / part).is_file()]
            if missing:
                return f"no {' and no '.join(missing)} in {folder}"
            root = _one_table(folder, Path(made))
        else:
            root = folder
        whole = WHOLE[cell.whole]
        try:
            settings = config.load({**whole, "data": {**whole["data"], "root": str(root)}})
            setup = config.assemble(settings)
        except UpslopeError as error:
            return str(error)
    return Problem(setup.splits, setup.task, setup.model, settings.training)


def _one_table(folder: Path, made: Path) -> Path:
    """Write the texts of a folder as one table that says of each row where it belongs."""
    rows = ["text\tclass\tsplit"]
    for name, split in TEXTS.items():
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        rows += [f"{line}\t{split}" for line in lines]
    (made / "texts.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return made / "texts.tsv"


def _table(name: str) -> Splits:
    """A table of scikit-learn, each column standardised by the pool's mean and deviation."""
    import sklearn.datasets
    from sklearn.model_selection import train_test_split

    load = getattr(sklearn.datasets, f"load_{name}")
    inputs, labels = load(return_X_y=True)
    x, x_test, y, y_test = train_test_split(
        inputs, labels, test_size=0.3, stratify=labels, random_state=0
    )
    mean, spread = x.mean(axis=0), x.std(axis=0)
    spread[spread == 0] = 1
    return _splits(
        {
            "x_train": (x - mean) / spread, "x_test": (x_test - mean) / spread,
            "y_train": y, "y_test": y_test,
        }
    )  # fmt: skip


def _features(file: Path, cut: str) -> Splits:
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return _splits({**arrays, **CUTS[cut](arrays)} if cut else arrays)


def _splits(arrays: Mapping[str, NDArray[Any]]) -> Splits:
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "arrays.npz", **arrays)
        return datasets.load("npz", Path(folder) / "arrays.npz")


def imbalanced(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return a pool whose rarest class has a twentieth of the samples of its commonest.

    Sizes fall geometrically from class to class; the test set stays balanced.
    """
    rng, labels = np.random.default_rng(0), arrays["y_train"]
    classes, sizes = np.unique(labels, return_counts=True)
    shares = 20.0 ** -(np.arange(len(classes)) / (len(classes) - 1))
    rows = [
        rng.permutation(np.flatnonzero(labels == c))[: round(sizes.min() * share)]
        for c, share in zip(classes, shares, strict=True)
    ]
    chosen = np.sort(np.concatenate(rows))
    return {"x_train": arrays["x_train"][chosen], "y_train": labels[chosen]}


def near_copies(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return a pool of a tenth of the samples, each with nine near-copies.

    Features of a copy differ by noise of a tenth of their root mean square.
    """
    rng = np.random.default_rng(0)
    x, y = arrays["x_train"], arrays["y_train"]
    rows = np.repeat(rng.permutation(len(x))[: len(x) // 10], 10)
    noise = 0.1 * np.sqrt(np.square(x).mean()) * rng.standard_normal((len(rows), x.shape[1]))
    noise[::10] = 0
    return {"x_train": (x[rows] + noise).astype(x.dtype), "y_train": y[rows]}


def people(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the pool with what one person answered for each image of CIFAR-10 (CIFAR-10N).

    17% of the answers are wrong; the labels of the test set are right.

    Raises:
        FileNotFoundError: `cifar10n` is not in `$UPSLOPE_DATA`.
        ValueError: the pool is not the sample of CIFAR-10 that `frozen_features.py` draws.
    """
    y = arrays["y_train"]
    with np.load(Path(os.environ.get("UPSLOPE_DATA", "data")) / "cifar10n/cifar10n.npz") as file:
        answers, truth = file["random_label1"], file["clean_label"]
    drawn = np.random.default_rng(0).permutation(len(truth))[: len(y)]
    for rows in (np.sort(drawn), drawn):  # files of features were in the order drawn before
        if np.array_equal(truth[rows], y):
            return {"y_train": answers[rows].astype(y.dtype)}
    raise ValueError("Expected the pool that frozen_features.py draws from CIFAR-10.")


CUTS = {"imbalanced": imbalanced, "near-copies": near_copies, "people": people}
