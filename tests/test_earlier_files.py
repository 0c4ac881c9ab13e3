"""Files of users from before names changed in the source: a configuration, a run, a checkpoint.

`fixtures/earlier` was written by the version before the renames, on one thread of a CPU: `compared`
by `upslope compare earlier.yaml` (one of its runs), `scores.csv` by `upslope score` with that run's
last model, and `interrupted` by a training of `ll4al` that was asked to stop in its first cycle.
"""

from __future__ import annotations

import csv
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from upslope import strategies
from upslope.cli.app import app
from upslope.comparison import compare
from upslope.config import Config, Setup, assemble, check_compatible, load
from upslope.experiment import Experiment
from upslope.experiment.verify import verify_run
from upslope.ledger import read_run
from upslope.progress import Progress

EARLIER = Path(__file__).parent / "fixtures" / "earlier"


@pytest.fixture
def earlier(tmp_path: Path) -> Iterator[Path]:
    """A copy of the files, in which runs may go on; on a machine other than theirs."""
    shutil.copytree(EARLIER, tmp_path / "earlier")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*under other circumstances than before")
        yield tmp_path / "earlier"


@pytest.fixture(scope="module")
def opened() -> tuple[Config, Setup]:
    config = load(str(EARLIER / "earlier.yaml"))
    return config, check_compatible(config, assemble(config))


def test_the_configuration_means_what_it_meant(opened: tuple[Config, Setup]) -> None:
    config, setup = opened
    assert list(setup.strategies) == ["margin", "egl-sum"]
    assert setup.strategies["egl-sum"] == strategies.build("egl", norm="tensor-sum")
    assert (config.experiment.initial, config.experiment.keep_models) == (20, "all")
    assert (config.training.epochs, config.training.lr) == (3, 0.05)
    assert len(setup.splits.pool) == 80


def test_the_run_is_read_verified_and_extended(earlier: Path, opened: tuple[Config, Setup]) -> None:
    config, setup = opened
    folder = earlier / "compared" / "egl-sum" / "seed-0"
    before = read_run(folder)
    assert [cycle.n_labelled for cycle in before.cycles] == [20, 30]
    assert verify_run(folder).problems == ()
    compare(
        earlier / "compared",
        strategies={"egl-sum": setup.strategies["egl-sum"]},
        seeds=[0],
        splits=setup.splits,
        task=setup.task,
        model=setup.model,
        settings=replace(config.experiment, cycles=3),
        training=config.training,
        config=config.protocol(),
        device="cpu",
        progress=False,
    )
    after = read_run(folder)
    assert [cycle.n_labelled for cycle in after.cycles] == [20, 30, 40]
    for new, old in zip(after.cycles, before.cycles, strict=False):
        assert (new.model_sha256, new.metrics) == (old.model_sha256, old.metrics)
    assert before.labels.items() <= after.labels.items()


def test_a_run_that_is_opened_again_unchanged_stays_as_it_is(
    earlier: Path, opened: tuple[Config, Setup]
) -> None:
    config, setup = opened
    folder = earlier / "compared" / "egl-sum" / "seed-0"
    before = read_run(folder)
    with Experiment(
        folder,
        splits=setup.splits,
        task=setup.task,
        model=setup.model,
        strategy=setup.strategies["egl-sum"],
        settings=replace(config.experiment, seed=0),
        training=config.training,
        config=config.protocol(),
        device="cpu",
    ) as run:
        assert (run.finished, run.changes, run.ask()) == (True, [], ())
    assert read_run(folder).cycles == before.cycles


def test_the_model_of_the_run_gives_the_scores_that_it_gave(earlier: Path) -> None:
    run, found = earlier / "compared" / "egl-sum" / "seed-0", earlier / "found.csv"
    names = "entropy-gradnorm,margin,egl"
    result = CliRunner().invoke(
        app, ["score", str(run), "--scores", names, "--out", str(found), "--device", "cpu"]
    )
    assert result.exit_code == 0, result.output
    before, now = (
        list(csv.DictReader(path.read_text().splitlines()))
        for path in (earlier / "scores.csv", found)
    )
    assert [row["id"] for row in now] == [row["id"] for row in before]
    for name in names.split(","):
        assert [float(row[name]) for row in now] == pytest.approx(
            [float(row[name]) for row in before], rel=1e-4
        )


def test_a_training_goes_on_from_its_checkpoint(
    earlier: Path, opened: tuple[Config, Setup]
) -> None:
    config, setup = opened
    reports: list[Progress] = []
    with Experiment(
        earlier / "interrupted",
        splits=setup.splits,
        task=setup.task,
        model=setup.model,
        strategy=strategies.build("ll4al"),
        settings=replace(config.experiment, seed=0),
        training=config.training,
        config=config.protocol(),
        device="cpu",
        observer=reports.append,
    ) as run:
        assert run.state.trained is None
        result = run.run()
    trained = [r for r in reports if r.phase == "train"]
    assert min(r.done for r in trained if r.cycle == trained[0].cycle) > 0
    assert [cycle.n_labelled for cycle in result.cycles] == [20, 30]
