"""What `predict_to_file` writes is what evaluation measures."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from small_tasks import MODEL, TASK, Points
from upslope import datasets, models, strategies, tasks
from upslope.experiment.guesses import predict_chosen
from upslope.progress import Stop
from upslope.scoring import files, predict_to_file, score_to_file
from upslope.training import evaluate


def test_classes_are_predicted_with_the_views_of_evaluation(tmp_path: Path) -> None:
    splits = datasets.load("digits", limit=200, test_limit=200)
    mean, std = datasets.statistics(splits.pool)
    torch.manual_seed(0)
    model = models.build("mlp", num_classes=10, input_shape=(1, 8, 8)).eval()
    accuracies = []
    for views in ("none", "flip-shift"):
        task = tasks.build("classification", num_classes=10, mean=mean, std=std, views=views)
        path = tmp_path / f"{views}.csv"
        cpu = torch.device("cpu")
        modules = list(model.modules())
        modules[-1].train()
        predict_to_file(path, model=model, task=task, dataset=splits.test, device=cpu)
        assert [m.training for m in modules] == [False] * (len(modules) - 1) + [True]
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        targets = splits.test.targets(range(len(splits.test))).tolist()
        is_right = [int(row["class"]) == y for row, y in zip(rows, targets, strict=True)]
        figures = evaluate(model, task, splits.test, device=cpu)
        assert sum(is_right) / len(is_right) == figures["accuracy"]
        accuracies.append(figures["accuracy"])
    assert accuracies[0] != accuracies[1]


def test_the_confidence_recorded_is_that_of_the_class_predicted() -> None:
    splits = datasets.load("digits", limit=60, test_limit=20)
    mean, std = datasets.statistics(splits.pool)
    torch.manual_seed(0)
    model = models.build("mlp", num_classes=10, input_shape=(1, 8, 8)).eval()
    task = tasks.build("classification", num_classes=10, mean=mean, std=std, views="flip")
    body = predict_chosen(model, task, splits.pool, range(40), torch.device("cpu"), 16, Stop())
    inputs = task.prepare(splits.pool.inputs(range(40)))
    with torch.no_grad():
        posterior = task.logits(task.predict(model, inputs)).softmax(dim=1)
    assert body["guesses"] == posterior.argmax(dim=1).tolist()
    for recorded, p in zip(body["confidences"], posterior, strict=True):
        assert abs(recorded - float(p.max())) < 1e-5


@pytest.mark.parametrize("corrupt", [{6}, {0, 1, 2}, {3, 4, 5, 6}])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_parts_without_a_readable_sample_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corrupt: set[int], ending: str
) -> None:
    monkeypatch.setattr(files, "_ROWS", 3)
    pool, model, cpu = Points(7, corrupt=frozenset(corrupt)), MODEL().eval(), torch.device("cpu")
    paths = tmp_path / f"predictions.{ending}", tmp_path / f"scores.{ending}"
    reports = [
        predict_to_file(
            paths[0], model=model, task=TASK, dataset=pool, device=cpu, on_corrupt="skip"
        ),
        score_to_file(
            paths[1], {"margin": strategies.build("margin")},
            model=model, task=TASK, dataset=pool, device=cpu, on_corrupt="skip",
        ),
    ]  # fmt: skip
    there = [id_ for i, id_ in enumerate(pool.ids) if i not in corrupt]
    for path, report in zip(paths, reports, strict=True):
        assert report.skipped == tuple(pool.ids[i] for i in sorted(corrupt))
        assert ids_of(path) == there


def ids_of(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        ids: list[str] = pq.read_table(path).column("id").to_pylist()
        return ids
    with path.open(newline="") as file:
        return [row["id"] for row in csv.DictReader(file)]
