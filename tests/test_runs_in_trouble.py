"""Runs in trouble: a ledger without its log, file systems without locks, too little memory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from small_tasks import MODEL, TASK, Points, splits
from upslope import Experiment, ExperimentSettings, Splits, TrainingSettings, read_run, strategies
from upslope.errors import RunError
from upslope.experiment.model_store import ModelStore
from upslope.ledger import lock

SETTINGS = ExperimentSettings(initial=20, budget=10, cycles=3)


def begin(folder: Path, model: Any = MODEL) -> Experiment:
    """A run whose labels a person gives."""
    return Experiment(
        folder,
        splits=Splits(Points(200, labelled=False), splits().test),
        task=TASK,
        model=model,
        strategy=strategies.build("margin"),
        settings=SETTINGS,
        training=TrainingSettings(epochs=2, batch_size=8),
        device="cpu",
    )


def test_each_label_that_was_told_is_in_the_file_of_the_ledger_alone(tmp_path: Path) -> None:
    """What a backup copies while the run is open, or is left where the log beside it is lost."""
    with begin(tmp_path / "run") as run:
        told: dict[str, int] = {}
        for number, id_ in enumerate(run.ask()[:5]):
            told[id_] = number % 3
            run.tell({id_: number % 3})
            copy = tmp_path / f"copy-{number}"
            copy.mkdir()
            shutil.copy(tmp_path / "run" / "ledger.sqlite", copy)
            assert read_run(copy).labels == told
    with begin(copy) as gone_on:
        assert len(gone_on.ask()) == SETTINGS.initial - len(told)


def test_an_opening_that_fails_lets_the_same_process_open_the_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RunError("an old model cannot be removed")

    with monkeypatch.context() as patch:
        patch.setattr(ModelStore, "tidy", refuse)
        with pytest.raises(RunError, match="cannot be removed") as error:
            begin(tmp_path)
    assert error.traceback  # what holds the frames of the call that failed
    begin(tmp_path).close()


@pytest.mark.skipif(os.name != "posix", reason="its locks are flock's")
def test_two_writers_that_no_lock_keeps_apart_leave_a_sound_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_acquire", lambda _: None)  # as some network file systems have it
    with begin(tmp_path) as one:
        first, second, *_ = one.ask()
        with begin(tmp_path) as other:
            one.tell({first: 0})
            with pytest.raises(RunError, match="another process has recorded something there"):
                other.tell({second: 1})
        one.tell({second: 2})
    assert read_run(tmp_path).labels == {first: 0, second: 2}
    with begin(tmp_path) as again:
        again.tell(dict.fromkeys(again.ask(), 1))
        assert len(again.ask()) == SETTINGS.budget


class Hungry(nn.Module):
    """A network that asks for a petabyte where it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.network = MODEL()

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            torch.empty(2**50, dtype=torch.uint8)
        return self.network(inputs)


def test_too_little_memory_says_what_to_lower_and_loses_nothing(tmp_path: Path) -> None:
    with begin(tmp_path, Hungry) as run:
        run.tell(dict.fromkeys(run.ask(), 0))
        with pytest.raises(RunError, match=r"it ran out.* Lower training\.batch_size \(in a new"):
            run.ask()
    assert len(read_run(tmp_path).labels) == SETTINGS.initial
    with begin(tmp_path) as again:
        assert len(again.ask()) == SETTINGS.budget
