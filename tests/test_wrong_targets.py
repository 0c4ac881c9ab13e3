"""Targets of another kind than the task's are refused by name, before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from upslope import Experiment, ExperimentSettings, Splits, query, strategies, tasks
from upslope.datasets.subset import Subset
from upslope.errors import DataError
from upslope.experiment.labels import oracle
from upslope.tasks import Classification, MultiLabel, Regression, Segmentation
from upslope.tasks.base import ChecksTargets
from upslope.tasks.mask_answers import decode_mask
from upslope.training import TrainingSettings

Y = torch.arange(30) % 3
NAMES = tuple(f"s{i}" for i in range(30))


@dataclass
class Own:
    """A data set of the user's own, whose targets nobody has looked at."""

    y: torch.Tensor
    name: str = "own"
    classes: tuple[str, ...] = ("a", "b", "c")
    input_shape: tuple[int, ...] = (4,)
    resident: bool = True

    @property
    def ids(self):
        return NAMES[: len(self.y)]

    def __len__(self):
        return len(self.y)

    def inputs(self, indices):
        x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
        return x[list(indices)]

    def targets(self, indices):
        return self.y[list(indices)]


def own_loop(model, labelled, context):
    for x, y in torch.utils.data.DataLoader(labelled, batch_size=5):
        nn.functional.cross_entropy(model(x), y).backward()
    return model


def run(folder, pool, test, task=None, trainer=None):
    training = None if trainer else TrainingSettings(epochs=1)
    with Experiment(
        folder, splits=Splits(pool, test), task=task or Classification(3), trainer=trainer,
        model=lambda: nn.Linear(4, 3), strategy=strategies.build("random"), training=training,
        settings=ExperimentSettings(initial=10, budget=5, cycles=1), device="cpu",
    ) as experiment:  # fmt: skip
        return experiment.run()


NO_CLASSES = {
    "whole floats": Y.float(),
    "floats": Y + 0.5,
    "NaN": torch.full((30,), torch.nan),
    "truth values": Y > 0,
    "a column": Y[:, None],
    "one-hot rows": nn.functional.one_hot(Y),
    "posteriors": nn.functional.one_hot(Y).float(),
    "below 0": Y - 1,
    "beyond the last class": Y + 1,
}


@pytest.mark.parametrize("trainer", [None, own_loop], ids=["our loop", "own loop"])
@pytest.mark.parametrize("what", NO_CLASSES)
def test_targets_that_are_no_classes_are_refused_by_name(tmp_path, what, trainer):
    wrong = NO_CLASSES[what]
    with pytest.raises(DataError, match=r"whole number|class between 0 and 2 in the target of 's"):
        run(tmp_path / "pool", Own(wrong), Own(Y), trainer=trainer)
    with pytest.raises(DataError, match=r"whole numbers|class between 0 and 2 in the target of 's"):
        run(tmp_path / "test", Own(Y), Own(wrong), trainer=trainer)


def test_a_query_refuses_them_too():
    for wrong in (NO_CLASSES["one-hot rows"], NO_CLASSES["floats"], NO_CLASSES["below 0"]):
        with pytest.raises(DataError, match=r"for the task classification|class between 0 and 2"):
            query(nn.Linear(4, 3), Own(wrong), 5, "core-set", labelled=range(9), progress=False)


def test_another_kind_is_told_before_a_ledger_is_begun(tmp_path):
    for wrong in (NO_CLASSES["floats"], NO_CLASSES["one-hot rows"]):
        with pytest.raises(DataError, match="for the task classification"):
            run(tmp_path / "run", Own(wrong), Own(Y))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_classes_of_any_whole_numbers_give_the_same_run(tmp_path, dtype):
    runs = [run(tmp_path / str(y.dtype), Own(y), Own(y)) for y in (Y, Y.to(dtype))]
    assert runs[0].cycles[0].metrics == runs[1].cycles[0].metrics
    assert runs[0].cycles[0].model_sha256 == runs[1].cycles[0].model_sha256


@pytest.mark.parametrize("wrong", [2.5, 1.0, True, torch.nan])
def test_no_label_is_rounded(wrong):
    values = torch.tensor([wrong])
    with pytest.raises(DataError, match=r"'s0' to be a whole number between 0 and 2"):
        oracle(Own(values), {"s0": 0}, ["s0"])


ANY = np.random.default_rng(0)
X = ANY.normal(size=(30, 4)).astype(np.float32)
SPLITS = {
    "class": Splits.from_arrays(X, Y, X, Y),
    "numbers": Splits.from_arrays(X, X[:, :3], X, X[:, :3], kind="numbers"),
    "labels": Splits.from_arrays(X, (X[:, :3] > 0) * 1, X, (X[:, :3] > 0) * 1, kind="labels"),
}
TASK_OF = {"class": "classification", "numbers": "regression", "labels": "multi-label"}


@pytest.mark.parametrize("kind", SPLITS)
@pytest.mark.parametrize("name", TASK_OF.values())
def test_each_kind_of_targets_serves_its_own_task_alone(tmp_path, kind, name):
    task, data = tasks.build(name, num_classes=3), SPLITS[kind]
    if TASK_OF[kind] == name:
        assert run(tmp_path, data.pool, data.test, task).finished
        return
    with pytest.raises(DataError, match=f"for the task {name}|0 or 1 for each label"):
        run(tmp_path, data.pool, data.test, task)


id_of = "pq".__getitem__
WRONG = {
    "labels of 0.5": (MultiLabel(2), torch.tensor([[0, 1], [0.5, 1]]), "'q' but got 0.5"),
    "labels unknown": (MultiLabel(2), torch.tensor([[0, 1], [-1, -1]]), "'q' but got -1"),
    "NaN": (Regression(1), torch.tensor([[1.0], [torch.nan]]), "'q' but got nan"),
    "infinity": (Regression(1), torch.tensor([[torch.inf], [0.0]]), "'p' but got inf"),
    "one number for each of two": (Regression(2), torch.zeros(2), r"shape \(2, 2\)"),
    "mask of 3": (Segmentation(3), torch.tensor([[[0, 255]], [[2, 3]]]), "'q' but got 3"),
    "mask of floats": (Segmentation(3), torch.zeros(2, 4, 4), "whole numbers"),
    "one-hot masks": (Segmentation(3), torch.zeros(2, 3, 4, 4).long(), "'h', 'w'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_numbers_are_named_with_their_sample(what):
    task, targets, message = WRONG[what]
    assert isinstance(task, ChecksTargets)
    with pytest.raises(DataError, match=message):
        task.check_targets(targets, id_of)


def test_right_numbers_pass():
    MultiLabel(2).check_targets(torch.tensor([[0.0, 1.0], [1.0, 1.0]]), id_of)
    Regression(1).check_targets(torch.tensor([[1e30], [-3.0]]), id_of)
    Segmentation(3).check_targets(torch.tensor([[[0, 255]], [[2, 1]]], dtype=torch.uint8), id_of)
    Segmentation(3, ignore_index=-100).check_targets(torch.tensor([[[-100]], [[2]]]), id_of)


def test_masks_of_another_size_than_the_outputs_are_told():
    with pytest.raises(DataError, match=r"shape \(1, 4, 4\).*\(1, 3, 4\)"):
        Segmentation(3).losses(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4).long())


NONE_COUNTS = {
    "masks": ("segmentation", torch.full((30, 4, 4), 255), lambda: nn.Conv2d(3, 3, 1)),
    "labels": ("multi-label", torch.zeros(30, 3, dtype=torch.int64), lambda: nn.Linear(4, 3)),
}


@pytest.mark.parametrize("part", ["test", "validation"])
@pytest.mark.parametrize("kind", NONE_COUNTS)
def test_a_part_by_which_nothing_is_measured_is_told(tmp_path, kind, part):
    name, targets, model = NONE_COUNTS[kind]
    x = ANY.normal(size=(30, 3, 4, 4)).astype(np.float32) if kind == "masks" else X
    known = (targets * 0 + 1).clamp(max=2)
    made = Splits.from_arrays(x, known, x, targets, kind=kind, classes=["a", "b", "c"])
    splits = made if part == "test" else Splits(made.pool, Subset(made.pool, range(5)), made.test)
    experiment = Experiment(
        tmp_path, splits=splits, task=tasks.build(name, num_classes=3), model=model,
        strategy=strategies.build("random"), training=TrainingSettings(epochs=1), device="cpu",
        settings=ExperimentSettings(initial=10, budget=5, cycles=1), progress=False,
    )  # fmt: skip
    with experiment, pytest.raises(DataError, match=f"measure .* by in the targets of the {part}"):
        experiment.run()


@pytest.mark.parametrize("answer", [1e39, -1e39, 10**400, float("inf")])
def test_a_number_beyond_single_precision_is_no_answer(answer):
    with pytest.raises(DataError, match="a finite number, price"):
        Regression(1).label(answer, ["price"])
    assert Regression(1).label(3.4e38, ["price"]) == [3.4e38]


def test_a_mask_as_an_answer_is_turned_as_its_exif_data_say(tmp_path):
    mask = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down, as photographs beside it
    Image.fromarray(mask).save(tmp_path / "mask.png", exif=exif)
    text = Segmentation(6).label(tmp_path / "mask.png", [])
    assert decode_mask(text).tolist() == mask[::-1, ::-1].tolist()
