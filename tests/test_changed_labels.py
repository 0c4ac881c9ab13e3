"""Labels that the data set has otherwise by now: the run's count, and are told."""

from __future__ import annotations

import sqlite3
import warnings

import numpy as np
import pytest
from torch import nn

from upslope import Experiment, ExperimentSettings, Splits, strategies, tasks
from upslope.experiment import match_labels
from upslope.training import TrainingSettings

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
TARGETS = {
    "class": np.arange(60) % 3,
    "numbers": np.stack([X[:, 0] * 0.7, X[:, 1], X[:, 2]], axis=1),
    "labels": (X[:, :3] > 0).astype(np.int64),
}
TASKS = {"class": "classification", "numbers": "regression", "labels": "multi-label"}
OTHERS = {"class": lambda y: (y + 1) % 3, "numbers": lambda y: y + 0.5, "labels": lambda y: 1 - y}
UNKNOWN = {"class": -1, "numbers": np.nan, "labels": -1}

kinds = pytest.mark.parametrize("kind", TARGETS)


def opened(folder, kind, pool_targets, cycles):
    splits = Splits.from_arrays(
        X[:40], pool_targets[:40], X[40:], TARGETS[kind][40:], kind=kind, classes=("a", "b", "c")
    )
    return Experiment(
        folder, splits=splits, task=tasks.build(TASKS[kind], num_classes=3),
        model=lambda: nn.Linear(4, 3), strategy=strategies.build("random"), device="cpu",
        settings=ExperimentSettings(initial=10, budget=5, cycles=cycles),
        training=TrainingSettings(epochs=2), progress=False,
    )  # fmt: skip


def run(*arguments):
    with opened(*arguments) as experiment:
        return experiment.run()


def changed(kind, result, value):
    """The targets, with others for the first two samples that the run has labelled."""
    places = sorted(int(id_[-5:]) for id_ in result.labels)[:2]
    targets = TARGETS[kind].copy()
    targets[places] = OTHERS[kind](targets[places]) if value == "other" else UNKNOWN[kind]
    return targets, [f"pool-{place:05d}" for place in places]


@kinds
@pytest.mark.parametrize("value", ["other", "none"])
def test_a_run_goes_on_with_its_own_labels_and_says_so(tmp_path, kind, value):
    whole = run(tmp_path / "whole", kind, TARGETS[kind], 3)
    before = run(tmp_path / "run", kind, TARGETS[kind], 2)
    targets, ids = changed(kind, before, value)
    words = "has another for 2" if value == "other" else "has none any more for 2"
    with pytest.warns(UserWarning, match=rf"of 15 looked at, .*{words}, first '{ids[0]}'"):
        after = run(tmp_path / "run", kind, targets, 3)
    assert after.labels == whole.labels
    assert [c.model_sha256 for c in after.cycles] == [c.model_sha256 for c in whole.cycles]
    assert [c.train_metrics for c in after.cycles] == [c.train_metrics for c in whole.cycles]


@kinds
def test_the_same_labels_are_no_news(tmp_path, kind):
    run(tmp_path, kind, TARGETS[kind], 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tmp_path, kind, TARGETS[kind], 3)


@kinds
def test_labels_of_the_data_set_are_taken_where_they_are_told(tmp_path, kind):
    before = run(tmp_path, kind, TARGETS[kind], 2)
    targets, ids = changed(kind, before, "other")
    with opened(tmp_path, kind, targets, 3) as experiment:
        experiment.tell(dict.fromkeys(ids, None))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            after = experiment.run()
    for id_ in ids:
        np.testing.assert_array_equal(
            np.float32(after.labels[id_]), np.float32(targets[int(id_[-5:])])
        )
    assert {i: after.labels[i] for i in before.labels if i not in ids} == {
        i: label for i, label in before.labels.items() if i not in ids
    }


def test_people_may_answer_otherwise_than_the_data_set_and_for_samples_without_a_label(tmp_path):
    targets = TARGETS["class"].copy()
    targets[:20] = -1
    with opened(tmp_path, "class", targets, 2) as experiment:
        asked = experiment.ask()
        experiment.tell(dict.fromkeys(asked, 0))
    others = [id_ for id_ in asked if targets[int(id_[-5:])] > 0]
    with (
        opened(tmp_path, "class", targets, 2) as experiment,
        pytest.warns(
            UserWarning, match=f"of 10 looked at, the data set has another for {len(others)},"
        ),
    ):
        experiment.ask()


def test_numbers_are_recorded_bit_for_bit(tmp_path):
    result = run(tmp_path, "numbers", TARGETS["numbers"], 2)
    for id_, label in result.labels.items():
        assert np.float32(label).tolist() == TARGETS["numbers"][int(id_[-5:])].tolist()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        assert db.execute("SELECT count(*) FROM labels WHERE label IS NOT NULL").fetchone() == (15,)
    db.close()


IMAGES = np.random.default_rng(1).normal(size=(30, 3, 5, 4)).astype(np.float32)
MASKS = np.random.default_rng(2).integers(0, 3, (30, 5, 4))


def opened_masks(folder, masks, cycles, shared=None):
    splits = Splits.from_arrays(IMAGES[:20], masks[:20], IMAGES[20:], MASKS[20:], kind="masks")
    return Experiment(
        folder, splits=splits, task=tasks.build("segmentation", num_classes=3),
        model=lambda: nn.Conv2d(3, 3, 1), strategy=strategies.build("random"), device="cpu",
        settings=ExperimentSettings(initial=6, budget=4, cycles=cycles),
        training=TrainingSettings(epochs=1), progress=False, shared=shared,
    )  # fmt: skip


def test_a_first_model_of_other_masks_is_not_shared(tmp_path):
    reused = []
    for name, masks in (("one", MASKS), ("same", MASKS), ("drawn anew", (MASKS + 1) % 3)):
        with opened_masks(tmp_path / name, masks, 1, tmp_path / "shared") as run_of_masks:
            reused.append(run_of_masks.run().cycles[0].reused)
    assert reused == [False, True, False]


def test_masks_that_were_drawn_anew_are_told_until_they_are_meant(tmp_path):
    with opened_masks(tmp_path, MASKS, 2) as run_of_masks:
        before = run_of_masks.run()
    masks = MASKS.copy()
    place = int(next(iter(before.labels))[-5:])
    masks[place, 2, 1] = (masks[place, 2, 1] + 1) % 3  # one pixel
    id_ = f"pool-{place:05d}"
    words = rf"of 10 looked at, 1 are others by now, first that of '{id_}'"
    with opened_masks(tmp_path, masks, 3) as run_of_masks, pytest.warns(UserWarning, match=words):
        run_of_masks.ask()
    with opened_masks(tmp_path, masks, 3) as run_of_masks:
        assert run_of_masks.answer({id_: None}, {}).corrected == 1
        assert run_of_masks.answer({id_: None}, {}).corrected == 0
    for now in (masks, MASKS):  # the new one is meant, and the old one is another
        with opened_masks(tmp_path, now, 3) as run_of_masks, warnings.catch_warnings():
            warnings.simplefilter("error")
            if now is masks:
                assert run_of_masks.ask()
            else:
                with pytest.raises(UserWarning, match=words):
                    run_of_masks.ask()


def test_masks_taken_over_from_an_earlier_run_are_compared_too(tmp_path):
    with opened_masks(tmp_path / "old", MASKS, 1) as run_of_masks:
        earlier = run_of_masks.run()
    with opened_masks(tmp_path / "new", MASKS, 2) as run_of_masks:
        run_of_masks.begin_with(match_labels(earlier, run_of_masks.splits, run_of_masks.task))
        assert run_of_masks.ask()
    with (
        opened_masks(tmp_path / "new", (MASKS + 1) % 3, 2) as run_of_masks,
        pytest.warns(UserWarning, match="6 are others by now"),
    ):
        run_of_masks.ask()


def test_masks_that_people_draw_are_compared_too(tmp_path):
    with opened_masks(tmp_path, MASKS, 2) as run_of_masks:
        first = run_of_masks.ask()
        run_of_masks.tell(dict.fromkeys(first[1:]) | {first[0]: MASKS[int(first[0][-5:])]})
    masks = (MASKS + 1) % 3
    with (
        opened_masks(tmp_path, masks, 2) as run_of_masks,
        pytest.warns(UserWarning, match="others") as warned,
    ):
        run_of_masks.ask()
    (warning,) = warned
    assert "of 5 looked at, 5 are others by now" in str(warning.message)
