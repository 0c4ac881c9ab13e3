from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from upslope import datasets, reproduction
from upslope.cli import app
from upslope.config import assemble, check_compatible, load
from upslope.datasets.subset import labels_of
from upslope.errors import ConfigError, DataError
from upslope.experiment.settings import amount
from upslope.reproduction import ARTEFACTS, SCALES, VARIANTS, paper
from upslope.reproduction.artefacts import Artefact
from upslope.reproduction.output.results import Result, mean_over_seeds
from upslope.reproduction.scales import read_scale
from upslope.reproduction.studies.runner import StudyRunner
from upslope.reproduction.studies.substitute_data import SUBSTITUTES, Volumes


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", SCALES)
def test_every_study_is_a_valid_configuration(name: str, variant: str) -> None:
    chosen = read_scale(name, variant)
    for artefact in ARTEFACTS.values():
        assert set(artefact.studies(chosen)) <= set(chosen.studies)
    for study in chosen.studies.values():
        config = study.config()
        assert study.substitute is None or study.substitute in SUBSTITUTES
        ours = [s for s in config.strategies if s.name.endswith("-gradnorm")]
        assert {s.options["norm"] for s in ours} <= {VARIANTS[variant].norm}
    main, other = chosen.studies[chosen.main], chosen.studies[chosen.other_start]
    starts = {s.config().experiment.retrain for s in (main, other)}
    assert starts == {"warm", "scratch"}
    assert main.config().experiment.retrain == VARIANTS[variant].retrain
    assert main.config().experiment.keep_models == "all"


@pytest.mark.parametrize("name", SCALES)
def test_no_two_panels_of_a_picture_are_called_the_same(name: str) -> None:
    runner = StudyRunner(read_scale(name), Path())
    for groups in (runner.scale.figure_1, runner.scale.figure_2, runner.scale.figure_4):
        titles = [runner.describe_data(group[0]) for group in groups]
        assert len(set(titles)) == len(titles), titles


@pytest.mark.parametrize("name", ["cpu", "paper"])
def test_every_strategy_can_be_served_by_a_network_of_its_kind(name: str) -> None:
    """On a few digits, as images, masks or volumes, by the smoke scale's networks."""
    small, chosen = read_scale("smoke").studies, read_scale(name).studies
    kinds: dict[str, dict[str, object]] = {}
    for study in chosen.values():
        network = study.document["model"]["name"]
        kind = "volumes" if network.endswith("3d") else "masks"
        if study.document["task"]["name"] == "classification" and kind == "masks":
            kind = "main-dropout" if "dropout" in study.document["model"] else "main"
        for choice in study.config().strategies:
            quick = {k: v for k, v in choice.options.items() if k not in ("steps", "width")}
            entry = {"name": choice.name, "label": choice.label, **quick}
            kinds.setdefault(kind, {})[choice.label] = entry
    for kind, strategies in kinds.items():
        assert len(strategies) >= 1
        like = small[kind]
        document = {**like.document, "strategies": list(strategies.values())}
        config = load(document, sets=["data.limit=20", "data.test_limit=10"])
        reshape = SUBSTITUTES[like.substitute] if like.substitute else None
        setup = check_compatible(config, assemble(config, reshape=reshape))
        assert set(setup.strategies) == set(strategies)
    assert {"main", "main-dropout", "masks", "volumes"} == set(kinds)


def test_paper_scale_is_the_papers_protocol() -> None:
    config = read_scale("paper", "code").studies["main"].config()
    assert (config.data.name, config.model.name) == ("cifar10", "resnet18-cifar")
    training, experiment = config.training, config.experiment
    assert (training.epochs, training.batch_size, training.milestones) == (200, 128, (160,))
    assert (training.lr, training.momentum, training.weight_decay) == (0.1, 0.9, 5e-4)
    assert (experiment.initial, experiment.budget, experiment.cycles) == (0.1, 0.05, 7)
    assert (experiment.candidates, experiment.retrain) == ("10x", "warm")
    assert len(config.seeds) == 3
    text = read_scale("paper", "text").studies["main"].config().experiment
    assert (text.candidates, text.retrain) == ("all", "scratch")


@pytest.mark.parametrize("name", read_scale("cpu").studies)
def test_no_training_at_cpu_scale_ends_an_epoch_on_a_few_samples(name: str) -> None:
    """BatchNorm's statistics of two samples cost a cycle ten points of accuracy."""
    config = read_scale("cpu").studies[name].config()
    options, settings = config.data.options, config.experiment
    pool = options.get("limit", options.get("train", 1400))  # digits has 1,400
    pool = {"imbalanced": 1527, "tiny-imagenet": 3200}.get(name, pool)  # what is made of them
    first, each = (amount(x, pool, "labels") for x in (settings.initial, settings.budget))
    batch = config.training.batch_size
    for labels in (*range(first, first + each * settings.cycles, each), pool):
        rest = labels % batch
        assert rest == 0 or rest >= batch / 8, (name, labels, rest)


def test_printed_numbers_are_consistent() -> None:
    assert sum(paper.SVHN_TEST) == 26_032  # the size of SVHN's test set
    for row in paper.TABLE_1.values():
        assert len(row) == len(paper.BUDGETS)
        assert max(row) <= paper.K
    assert max(paper.TABLE_2 + paper.TABLE_4 + paper.TABLE_5) <= paper.K
    # "more than 90%" (A.2), but for the last of Table 5, which is 90% exact_values
    assert min(paper.TABLE_4) > 0.9 * paper.K
    assert min(paper.TABLE_5) == 0.9 * paper.K
    assert paper.TABLE_6["expected-gradnorm"] == max(paper.TABLE_6.values())


def test_imbalanced_has_the_proportions_of_svhn() -> None:
    splits = SUBSTITUTES["imbalanced"](datasets.load("digits"))
    sizes = np.bincount(labels_of(splits.pool), minlength=10)
    shares = sizes / sizes.sum()
    expected = np.array(paper.SVHN_TEST) / sum(paper.SVHN_TEST)
    np.testing.assert_allclose(shares, expected, atol=1 / sizes.sum() * 5)
    assert len(splits.test) == 397
    assert len(set(splits.pool.ids)) == len(splits.pool)


def test_masks_say_the_class_where_the_image_is_bright() -> None:
    plain = datasets.load("digits", limit=20)
    splits = SUBSTITUTES["masks"](plain)
    masks, images = splits.pool.targets([3, 5]), plain.pool.inputs([3, 5])
    labels = plain.pool.targets([3, 5])
    assert masks.dtype == torch.uint8
    for mask, image, label in zip(masks, images[:, 0], labels, strict=True):
        assert bool((mask[image >= 128] == label).all())
        assert bool((mask[image < 128] == 10).all())
    assert len(splits.pool.classes) == 11


def test_volumes_are_standardised_and_noise_belongs_to_the_sample() -> None:
    pool = datasets.load("digits", limit=60).pool
    clean, noisy = Volumes(pool), Volumes(pool, snr=0.05)
    assert clean.inputs([0]).shape == (1, *clean.input_shape) == (1, 1, 8, 8, 8)
    volumes = clean.inputs(range(60))
    torch.testing.assert_close(volumes.mean(dim=(1, 2, 3, 4)), torch.zeros(60), atol=1e-5, rtol=0)
    assert torch.equal(volumes[:, :, 0], volumes[:, :, 7])
    added = noisy.inputs(range(60)) - volumes
    assert float(volumes.var() / added.var()) == pytest.approx(0.05, rel=0.03)
    assert torch.equal(noisy.inputs([7]), noisy.inputs([3, 7])[1:])


def test_forty_classes() -> None:
    with pytest.raises(DataError, match="Expected 10 classes"):
        SUBSTITUTES["imbalanced"](SUBSTITUTES["masks"](datasets.load("digits", limit=50)))
    kept = SUBSTITUTES["forty-classes"](datasets.load("digits", limit=50))
    assert len(kept.pool) == 50  # ten classes are fewer than forty
    assert kept.pool.classes == tuple("0123456789")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"artefact": "tabel1", "scale": "smoke"}, "did you mean `table1`"),
        ({"artefact": "all", "scale": "cpus"}, "did you mean `cpu`"),
        ({"artefact": "all", "scale": "cpu", "variant": "texts"}, "did you mean `text`"),
        ({"artefact": "all", "scale": "cpu", "sets": ["training.epoch=1"]}, "training.epoch"),
    ],
)
def test_what_does_not_exist_is_told_before_anything_runs(
    options: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        reproduction.ask(**options)  # type: ignore[arg-type]


def test_missing_data_fails_what_was_asked_and_not_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSLOPE_DATA", str(tmp_path / "nothing"))
    request = reproduction.ask("table7", scale="cpu", out=tmp_path / "out")
    with pytest.raises(DataError, match="fashion-mnist"):
        reproduction.reproduce(request)

    everything = reproduction.ask("all", scale="cpu", out=tmp_path / "all")
    object.__setattr__(everything, "names", ("table1", "table7", "figure2"))
    report = reproduction.reproduce(everything)
    assert list(report.missing) == ["table1", "table7", "figure2"]
    assert not report.failed
    page = report.page.read_text()
    assert "table7" in page
    assert "fashion-mnist" in page


def test_what_fails_with_its_data_at_hand_is_no_missing_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A figure that is NaN was told as data that are not there, and the command ended well."""

    def make(_: object) -> Result:
        mean_over_seeds([[float("nan")]])
        raise AssertionError

    artefact = Artefact("Title", make, lambda scale: (scale.class_wise,))
    monkeypatch.setitem(ARTEFACTS, "table7", artefact)  # type: ignore[arg-type]
    request = reproduction.ask("all", scale="smoke", out=tmp_path)
    object.__setattr__(request, "names", ("table7",))
    report = reproduction.reproduce(request)
    assert not report.missing
    assert "NaN" in str(report.failed["table7"])


@pytest.mark.parametrize("artefact", ["table3", "table4", "figure1", "figure3", "all"])
def test_one_cycle_is_refused_where_numbers_of_several_are_shown(
    tmp_path: Path, artefact: str
) -> None:
    """Studies were run, and then came an IndexError, a KeyError or "missing data"."""
    with pytest.raises(ConfigError, match=r"`experiment.cycles` of at least 2 for (table|figure)"):
        reproduction.ask(artefact, scale="smoke", out=tmp_path, sets=["experiment.cycles=1"])
    reproduction.ask("table1", scale="smoke", out=tmp_path, sets=["experiment.cycles=1"])


def test_dry_run_plans_and_trains_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["reproduce", "figure2", "--dry-run", "--out", str(tmp_path / "none")]
    )
    assert result.exit_code == 0, result.stderr
    assert "digits-mlp" in result.stdout
    assert "together about" in result.stdout
    assert not (tmp_path / "none").exists()


def test_help_has_an_example() -> None:
    result = CliRunner().invoke(app, ["reproduce", "--help"], prog_name="upslope")
    assert result.exit_code == 0
    assert "upslope reproduce all" in result.stdout


def test_strategies_that_artefacts_read_may_not_be_left_out() -> None:
    study = read_scale("smoke").studies["main"]
    with pytest.raises(ConfigError, match=r"expected .*entropy-gradnorm.* but got margin"):
        study.config(["strategies=margin"])
    everything = [choice.label for choice in study.config().strategies]
    added = study.config([f"strategies={','.join(everything)},power"])
    assert [choice.label for choice in added.strategies] == [*everything, "power"]
