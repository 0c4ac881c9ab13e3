"""The strategy that `upslope run` takes where nobody names one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from upslope import strategies
from upslope.cli.app import app
from upslope.config import default_strategy, load, strategy_begun_with
from upslope.evaluation import area

RESULTS = Path(__file__).parents[1] / "results" / "verdict"
EARLIER = Path(__file__).parent / "fixtures" / "earlier"
FROZEN = {"model": {"name": "cnn-small", "freeze": True}}
CASES: list[tuple[dict[str, Any], str]] = [
    ({}, "margin"),
    (FROZEN, "u-herding"),
    ({**FROZEN, "task": "multi-label"}, "margin"),
    ({**FROZEN, "task": "regression"}, "emcm"),
    ({"data": "diabetes", "task": "regression"}, "emcm"),
    ({"task": "segmentation"}, "margin"),
]


@pytest.mark.parametrize(("document", "name"), CASES)
def test_the_default_is_by_features_and_task(document: dict[str, Any], name: str) -> None:
    assert default_strategy(load(document)).name == name
    assert name in strategies.REGISTRY


def test_the_default_on_frozen_features_is_ahead_of_random_in_each_low_cell() -> None:
    """Its sentence says 3.3 to 4.1 points of area: the committed curves do."""
    gains = []
    for cell in ("cifar10-low", "fashion-mnist-low", "sign-digits-low"):
        record = json.loads((RESULTS / f"{cell}.json").read_text(encoding="utf-8"))
        ours, theirs = (record["strategies"][n]["curves"] for n in ("u-herding", "random"))
        seeds = sorted(ours.keys() & theirs.keys())
        a, b = (area(record["budgets"], [c[seed] for seed in seeds]) for c in (ours, theirs))
        gains.append(float(100 * (a - b).mean()))
        assert record["budgets"][0] / 10 == 2
        assert record["budgets"][-1] / 10 == 20
    why = default_strategy(load(FROZEN)).why
    assert f"{min(gains):.1f} to {max(gains):.1f} points of area" in why
    assert "2 to 20 labels per class" in why


def planned(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["run", "--dry-run", *arguments])
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    return text[text.index("strategies ") : text.index(" seeds")]


def test_the_plan_says_why_a_strategy_that_nobody_named(tmp_path: Path) -> None:
    digits = ("-s", "data.limit=60", "-s", "data.test_limit=20", "-s", "model.name=mlp",
              "-s", "experiment.initial=10", "-s", "experiment.budget=5",
              "-o", str(tmp_path / "runs"))  # fmt: skip
    assert planned(*digits).startswith("strategies margin none was named: it costs one forward")
    assert planned(*digits, "--strategy", "margin") == "strategies margin"


def test_numbers_run_without_a_named_strategy() -> None:
    """The default serves the task: the plan tries it on a few samples."""
    small = ("-s", "data.limit=60", "-s", "data.test_limit=20", "-s", "experiment.initial=10",
             "-s", "experiment.budget=5")  # fmt: skip
    numbers = ("-s", "data.name=diabetes", "-s", "task.name=regression", "-s", "model.name=mlp")
    assert planned(*numbers, *small).startswith("strategies emcm none was named")


def test_a_run_begun_under_an_earlier_default_goes_on(tmp_path: Path) -> None:
    config = load(FROZEN)
    assert strategy_begun_with(tmp_path, config) is None
    shutil.copytree(EARLIER / "compared" / "egl-sum" / "seed-0", tmp_path / "margin" / "seed-0")
    default = strategy_begun_with(tmp_path, config)
    assert default is not None
    assert (default.name, default.why) == ("margin", "the run in this folder has it")
    assert strategy_begun_with(tmp_path, load({**FROZEN, "seeds": [1]})) is None
