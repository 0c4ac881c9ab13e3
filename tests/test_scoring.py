"""Scoring: each signal once, the right numbers, corrupt samples, files whole or absent."""

from __future__ import annotations

import csv
import errno
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from small_tasks import TASK, Points, perceptron
from upslope import strategies
from upslope.datasets import Dataset
from upslope.errors import ConfigError, DataError, RunError, SelectionError
from upslope.pool import Need, PoolView
from upslope.progress import Interrupted, Progress, Stop
from upslope.scoring import LabelledSet, SignalScore, compute_signals, score_to_file
from upslope.scoring import files as scoring_files
from upslope.seeds import global_generator
from upslope.signals import FitContext, Signal
from upslope.tasks import Task

CPU = torch.device("cpu")
PROBABILITIES = Need.of("probabilities")


def net() -> nn.Module:
    with global_generator(1, device=CPU):
        return perceptron(norm=True, dropout=0.5)


def posterior(model: nn.Module, data: Dataset, indices: Sequence[int]) -> Tensor:
    with torch.no_grad():
        return model.eval()(data.inputs(indices)).softmax(1)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_signals_are_those_of_the_model_in_eval_mode(batch_size: int) -> None:
    model, data, chosen = net(), Points(40), [3, 1, 38, 20]
    model.train()
    statistics = {k: v.clone() for k, v in model.state_dict().items()}
    table = compute_signals(
        [PROBABILITIES], model, TASK, data, chosen, device=CPU, seed=0, batch_size=batch_size
    )
    assert model.training
    assert all(torch.equal(v, statistics[k]) for k, v in model.state_dict().items())
    assert table.candidates == tuple(chosen)
    expected = posterior(model, data, chosen).to(table.signals[PROBABILITIES].dtype)
    torch.testing.assert_close(table.signals[PROBABILITIES], expected, rtol=1e-6, atol=1e-7)


@dataclass
class Counting:
    """A signal that counts its batches, and remembers what it was fitted on."""

    name: ClassVar[str] = "counting"
    batches: int = 0
    fitted: FitContext | None = None

    def fit(self, context: FitContext) -> Signal:
        self.fitted = context
        context.progress(1, 1)
        return self

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:
        assert not model.training
        self.batches += 1
        return inputs.sum(1)


class Knows:
    def __init__(self) -> None:
        self.counting = Counting()

    def signal(self, need: Need) -> Signal | None:
        return self.counting if need.name == "counting" else None


def test_equal_signals_are_fitted_and_computed_once_a_sample() -> None:
    knows, data = Knows(), Points(40)
    plain, labelled = Need.of("counting"), Need.of("counting", labelled=True)
    phases = []
    table = compute_signals(
        [plain, labelled, plain],
        net(),
        TASK,
        data,
        range(10, 30),
        device=CPU,
        seed=0,
        batch_size=10,
        labelled=LabelledSet([1, 2, 3], torch.tensor([0, 1, 2])),
        unlabelled=range(4, 40),
        companion=knows,
        observer=lambda p: phases.append(p.phase),
    )
    assert knows.counting.batches == 2 + 1
    sums = data.inputs(range(40)).sum(1)
    assert torch.equal(table.signals[plain], sums[10:30])
    assert torch.equal(table.signals[labelled], sums[10:30])
    assert torch.equal(table.labelled_signals[labelled], sums[1:4])
    assert knows.counting.fitted is not None
    assert list(knows.counting.fitted.unlabelled) == list(range(4, 40))
    assert phases[0] == "fit"


def test_corrupt_samples_fail_or_are_skipped() -> None:
    data = Points(20, corrupt=frozenset({4, 5, 6, 7, 13}))
    arguments = ([PROBABILITIES], net(), TASK, data, range(20))
    with pytest.raises(DataError, match="p0004"):
        compute_signals(*arguments, device=CPU, seed=0, batch_size=4)
    for needs in ([PROBABILITIES], []):
        table = compute_signals(
            needs, *arguments[1:], device=CPU, seed=0, batch_size=4, on_corrupt="skip"
        )
        assert table.skipped == (4, 5, 6, 7, 13)
        assert table.candidates == tuple(i for i in range(20) if i not in table.skipped)
    assert all(len(s) == 15 for s in table.signals.values())


def test_a_stop_is_heard_between_batches() -> None:
    stop, seen = Stop(), []

    def watch(progress: Progress) -> None:
        seen.append(progress.done)
        if progress.done >= 20:
            stop.request()

    with pytest.raises(Interrupted):
        compute_signals(
            [PROBABILITIES],
            net(),
            TASK,
            Points(100),
            range(100),
            device=CPU,
            seed=0,
            batch_size=10,
            observer=watch,
            stop=stop,
        )
    assert max(seen) == 20


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_scores_to_a_file(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring_files, "_ROWS", 7)  # several blocks
    data, model, file = Points(30, corrupt=frozenset({8})), net(), tmp_path / f"scores{suffix}"
    scorers = {name: strategies.build(name) for name in ("margin", "entropy")}
    report = score_to_file(
        file, scorers, model=model, task=TASK, dataset=data, device=CPU, on_corrupt="skip"
    )
    assert (report.scored, report.skipped) == (29, ("p0008",))
    if suffix == ".csv":
        with file.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
    else:
        rows = pq.read_table(file).to_pylist()
    kept = [i for i in range(30) if i != 8]
    assert [row["id"] for row in rows] == [data.ids[i] for i in kept]
    p = posterior(model, data, kept).double()
    first, second = p.topk(2).values.unbind(1)
    for name, expected in (("margin", second - first), ("entropy", -(p * p.log()).sum(1))):
        got = torch.tensor([float(row[name]) for row in rows], dtype=torch.float64)
        assert got.argsort().tolist() == expected.argsort().tolist()


def test_a_score_file_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, score = tmp_path / "scores.csv", {"entropy": strategies.build("entropy")}
    common = {"model": net(), "task": TASK, "device": CPU}
    with pytest.raises(DataError):
        score_to_file(file, score, dataset=Points(9, corrupt=frozenset({7})), **common)
    model = net()
    torch.nn.init.constant_(model[-1].bias, float("nan"))
    with pytest.raises(SelectionError, match="NaN"):
        score_to_file(file, score, dataset=Points(9), **{**common, "model": model})
    with pytest.raises(ConfigError, match=r"parquet or \.csv"):
        score_to_file(tmp_path / "scores.xlsx", score, dataset=Points(9), **common)
    with pytest.raises(DataError, match="gave none"):
        score_to_file(file, score, dataset=Points(9), indices=[], **common)
    with pytest.raises(ConfigError, match=r"but id, class, labels.* but got id"):
        score_to_file(file, {"id": score["entropy"]}, dataset=Points(9), **common)

    def full(path: Path, blocks: object) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(scoring_files._WRITERS, ".csv", full)
    with pytest.raises(RunError, match="it is full"):
        score_to_file(file, score, dataset=Points(9), **common)
    assert list(tmp_path.iterdir()) == []


def test_a_signal_of_more_than_a_number_is_no_score() -> None:
    view = PoolView(["a"], {PROBABILITIES: torch.ones(1, 3)})
    with pytest.raises(SelectionError, match="one number per sample"):
        SignalScore(PROBABILITIES).score(view)
    assert SignalScore(replace(PROBABILITIES)).needs == (PROBABILITIES,)
