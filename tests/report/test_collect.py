"""Which runs belong together in a report, and what is said of those that do not."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from upslope.errors import RunError
from upslope.ledger import RunResult, read_run
from upslope.report import collect_sets, summarise, tables
from upslope.report.collect import study_of

RECORDED = read_run(Path(__file__).parents[1] / "fixtures/earlier/compared/egl-sum/seed-0")


def run(folder: str, label: str, seed: int, **changed: Any) -> RunResult:
    """The recorded run as another one; changed: sections of its configuration, or `info`."""
    info = {**RECORDED.info, "seed": seed, **changed.pop("info", {})}
    config = {**RECORDED.config, **changed}
    path = Path("/runs") / folder / label / f"seed-{seed}"
    return replace(RECORDED, path=path, info=info, config=config)


def test_variants_of_one_strategy_are_never_averaged() -> None:
    usual = run("a", "margin", 0, strategy={"name": "margin"})
    hot = run("b", "margin", 1, strategy={"name": "margin", "temperature": 2.0})
    with pytest.raises(RunError, match=r"strategy\.temperature: None and 2\.0.*take a `label`"):
        study_of([usual, hot])
    labelled = run("b", "margin-hot", 1, strategy={"name": "margin", "temperature": 2.0})
    assert study_of([usual, labelled]).config["strategies"] == {
        "margin": {"name": "margin"},
        "margin-hot": {"name": "margin", "temperature": 2.0},
    }


def test_runs_measured_on_other_test_samples_are_refused() -> None:
    some = run("a", "margin", 0, info={"test_ids_sha256": "1"})
    with pytest.raises(RunError, match="runs of one test set"):
        study_of([some, run("a", "random", 0, info={"test_ids_sha256": "2"})])
    study_of([some, run("a", "random", 0)])  # recorded before test samples were


def test_a_ceiling_of_another_protocol_is_none_and_is_told() -> None:
    runs = [run("a", "random", 0), run("a", "margin", 0)]
    all_labels = run("a", "full-data", 0, experiment={"initial": 1.0}, strategy={"name": "full"})
    assert study_of([*runs, all_labels]).ceiling == RECORDED.curve()[1][-1]
    longer = {**RECORDED.config["training"], "epochs": 99}
    study = study_of([*runs, replace(all_labels, config={**all_labels.config, "training": longer})])
    assert study.ceiling is None
    assert any(
        "full-data seed 0" in note and "training.epochs" in note
        for note in tables.notes(summarise(study))
    )


def test_more_seeds_without_a_ceiling_are_of_the_same_data_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run on all labels comes first in its folder, and begins with all of them."""
    all_labels = {**RECORDED.config["experiment"], "initial": 1.0}
    results = [
        run("a", "full-data", 0, experiment=all_labels),
        run("a", "margin", 0),
        run("b", "margin", 1),
    ]
    monkeypatch.setattr(import_module("upslope.report.collect"), "_read", lambda _: results)
    (study,) = collect_sets([])
    assert [one.seed for one in study.runs] == [0, 1]
