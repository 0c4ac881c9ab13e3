"""What runs record of the samples that they chose: guesses by task, and histograms of scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from upslope import tasks
from upslope.datasets.splits import Splits
from upslope.errors import DataError
from upslope.experiment.guesses import BINS, count_scores, predict_chosen
from upslope.ledger import Event, fold
from upslope.pool import PoolView, Selection
from upslope.progress import Stop
from upslope.tasks.mask_answers import decode_mask

CPU = torch.device("cpu")


def pool(n: int, *shape: int) -> Any:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, *shape, generator=generator)
    return Splits.from_arrays(inputs, torch.arange(n) % 3, inputs[:3], torch.arange(3)).pool


def predicted(model: nn.Module, task: Any, dataset: Any, positions: list[int]) -> dict[str, Any]:
    return predict_chosen(model.eval(), task, dataset, positions, CPU, 4, Stop())


def test_classes_have_the_probability_of_the_guess() -> None:
    dataset, model = pool(12, 5), nn.Linear(5, 3)
    body = predicted(model, tasks.build("classification", num_classes=3), dataset, [7, 2, 11])
    with torch.no_grad():
        posterior = model(dataset.inputs([7, 2, 11])).softmax(1)
    assert body["guesses"] == posterior.argmax(1).tolist()
    assert body["confidences"] == pytest.approx(posterior.amax(1).tolist(), abs=1e-6)
    assert predicted(model, tasks.build("classification", num_classes=3), dataset, []) == {}


def test_label_sets_and_numbers_are_told_as_they_are_recorded() -> None:
    dataset, model = pool(12, 5), nn.Linear(5, 3)
    with torch.no_grad():
        outputs = model(dataset.inputs([1, 4]))
    body = predicted(model, tasks.build("multi-label", num_classes=3), dataset, [1, 4])
    assert body == {"guesses": (outputs > 0).long().tolist()}
    task = tasks.build("regression", num_classes=3)
    body = predicted(model, task, dataset, [1, 4])
    assert body["guesses"] == [pytest.approx(row) for row in task.predictions(outputs).tolist()]
    assert "confidences" not in body


def test_masks_are_small_and_lossless() -> None:
    dataset = pool(4, 1, 200, 100)
    model = nn.Conv2d(1, 3, 1)
    task = tasks.build("segmentation", num_classes=3)
    (text,) = predicted(model, task, dataset, [2])["guesses"]
    mask = decode_mask(text)
    assert mask.shape == (96, 48)
    with torch.no_grad():
        whole = model(dataset.inputs([2])).argmax(1)[0].numpy()
    assert set(np.unique(mask)) <= set(np.unique(whole))
    assert mask[0, 0] == whole[0, 0]


def test_a_sample_that_cannot_be_read_has_no_guess() -> None:
    class Torn:
        def __init__(self, whole: Any) -> None:
            self.__dict__.update(name="torn", ids=whole.ids, classes=whole.classes,
                                 input_shape=whole.input_shape, resident=True)  # fmt: skip
            self.whole = whole

        def __len__(self) -> int:
            return len(self.whole)

        def inputs(self, indices: Any) -> torch.Tensor:
            if 3 in list(indices):
                raise DataError("Expected an image but it is torn.")
            return self.whole.inputs(indices)

        def targets(self, indices: Any) -> torch.Tensor:
            return self.whole.targets(indices)

    model, task = nn.Linear(5, 3), tasks.build("classification", num_classes=3)
    whole = pool(8, 5)
    body, all_ = (predicted(model, task, data, [2, 3, 5]) for data in (Torn(whole), whole))
    assert body["guesses"] == [all_["guesses"][0], None, all_["guesses"][2]]
    assert body["confidences"][1] is None
    assert body["confidences"][2] == all_["confidences"][2]


def test_histograms_count_every_candidate() -> None:
    scores = torch.cat([torch.zeros(3), torch.linspace(0, 1, 90), torch.ones(4)])
    view = PoolView([str(i) for i in range(len(scores))])
    made = count_scores(view, Selection(("0",), scores))["histogram"]
    expected, edges = np.histogram(scores.double().numpy(), BINS)
    assert (made["counts"], made["low"], made["high"]) == (expected.tolist(), edges[0], edges[-1])
    flat = count_scores(view, Selection(("0",), torch.full((97,), 2.5)))["histogram"]
    assert flat == {"low": 2.5, "high": 2.5, "counts": [97]}
    assert count_scores(view, Selection(("0",))) == {}
    assert count_scores(view, Selection(("0",), scores.log())) == {}  # minus infinity


def test_samples_asked_in_place_of_others_keep_guesses_beside_ids() -> None:
    first = {"ids": ["a", "b"], "scores": None, "seconds": 1.0, "candidates": 9,
             "guesses": [0, 1], "confidences": [0.5, 0.6]}  # fmt: skip
    events = [
        Event("asked", 0, {"ids": ["x"]}),
        Event("labelled", 0, {"labels": {"x": 0}}),
        Event("trained", 0, {"n_labelled": 1, "loss": 0.0, "seconds": 0.0, "file": "f",
                             "sha256": "s", "reused": False}),
        Event("evaluated", 0, {"test": {}, "train": {}}),
        Event("asked", 1, first),
        Event("passed", 1, {"ids": {"a": ""}}),
        Event("asked_instead", 1, {"ids": ["c"], "instead_of": ["a"], "scores": None,
                                   "seconds": 1.0, "guesses": [2], "confidences": [0.7]}),
        Event("passed", 1, {"ids": {"b": ""}}),
        Event("asked_instead", 1, {"ids": [], "instead_of": ["b"], "scores": None,
                                   "seconds": 1.0}),
    ]  # fmt: skip
    (cycle,) = fold(events).cycles
    assert cycle.asked == ("a", "b", "c")
    assert cycle.guesses == (0, 1, 2)
    assert cycle.confidences == (0.5, 0.6, 0.7)
    old = fold([*events[:4], Event("asked", 1, {k: first[k] for k in list(first)[:4]})])
    assert old.cycles[0].guesses is None
