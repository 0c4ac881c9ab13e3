"""`--observe` of run and compare: figures beside the progress, and one error for what it is not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from typer.testing import CliRunner

from upslope.cli import app
from upslope.ledger import read_run

QUICK = [
    *("-s", "data.limit=120", "-s", "data.test_limit=50", "-s", "model={name: mlp, hidden: 16}"),
    *("-s", "training.epochs=1", "-s", "experiment.cycles=2", "--device", "cpu"),
]


def call(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="upslope")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--observe", "wandb"), "tensorboard or mlflow"),
        (("--observe", "tensorboard="), "tensorboard=FOLDER"),
        (("--observe", "mlflow=a", "--observe", "mlflow=b"), "mlflow twice"),
    ],
)
def test_other_names_are_refused_before_anything_is_read(tmp_path, options, said):
    for command in ("run", "run --dry-run", "compare", "compare --dry-run"):
        code, err = call(*command.split(), *QUICK, "--out", tmp_path / "run", *options)
        assert code == 2, command
        assert said in " ".join(err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_package_that_is_missing_is_named(tmp_path, name):
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    code, err = call("run", *QUICK, "--out", tmp_path / "run", "--observe", name)
    assert code == 2
    assert f"pip install '.[{name}]'" in " ".join(err.split())
    assert not (tmp_path / "run").exists()


def test_a_dry_run_writes_no_figures(tmp_path):
    code, _ = call("run", *QUICK, "--out", tmp_path / "run", "--observe", "mlflow", "--dry-run")
    assert code == 0
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")  # of the library's own
def test_tensorboard_holds_the_curve_of_every_run(tmp_path):
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code, err = call(
        "compare", *QUICK, "--strategies", "random,margin", "--seeds", "[3]", "--out",
        tmp_path / "run", "--observe", "tensorboard",
    )  # fmt: skip
    assert code == 0, err
    for strategy in ("random", "margin"):
        run = read_run(tmp_path / "run" / strategy / "seed-3")
        events = EventAccumulator(str(tmp_path / "run/tensorboard" / strategy / "seed-3"))
        events.Reload()
        labels, accuracy = run.curve()
        curve = events.Scalars("test/accuracy")
        assert [one.step for one in curve] == list(labels)
        assert [one.value for one in curve] == pytest.approx(list(accuracy))
