"""Runs with `model.freeze`: compared, gone on with, scored and predicted as any other."""

import csv
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import frozen_nets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from forked import until
from upslope import ExperimentSettings, TrainingSettings, gradient_norms, models, strategies
from upslope.checkpoints import load_weights
from upslope.cli import app
from upslope.config import assemble, estimate, find_source, load, load_trained_model, plan, to_plan
from upslope.errors import ConfigError, ModelError, RunError
from upslope.experiment import Experiment
from upslope.frozen import FeatureDataset
from upslope.ledger import read_run

FREEZE = import_module("upslope.frozen.freeze")


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """Forty photographs of two classes, and a cache and networks of this test's own."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 100 + 100 * k, (12, 12), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def document(photographs, **more):
    return {
        "data": {"name": "folder", "root": str(photographs), "mode": "L", "duplicates": "off"},
        "model": {"name": "frozen_nets:make", "freeze": True},
        "strategies": ["random", "margin", "badge", "entropy-gradnorm", "typiclust", "core-set"],
        "experiment": {"initial": 4, "budget": 4, "cycles": 3, "candidates": "all"},
        "training": {"epochs": 4, "batch_size": 8},
        "device": "cpu",
        **more,
    }


def config_file(tmp_path, photographs, **more):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document(photographs, **more)))
    return path


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.output


def test_a_comparison_computes_features_once_and_scores_with_its_heads(tmp_path, photographs):
    file = config_file(tmp_path, photographs)
    code, output = invoke("compare", file, "--out", "runs")
    assert code == 0, output
    assert "frozen: 20 features per sample" in output
    assert "a head of 42 parameters" in output
    blocks = list((tmp_path / "cache").glob("upslope/features/*/*.npy"))
    assert len(blocks) == 2  # one of the pool, one of the test set
    before = [block.stat().st_mtime_ns for block in blocks]
    code, output = invoke(
        "score", "runs/margin/seed-0", "--scores", "entropy-gradnorm,margin", "--out", "s.csv"
    )
    assert code == 0, output
    code, output = invoke("predict", "runs/margin/seed-0", "--out", "p.csv")
    assert code == 0, output
    assert [block.stat().st_mtime_ns for block in blocks] == before

    source = find_source("runs/margin/seed-0")
    ready = load_trained_model(source)
    assert isinstance(ready.pool, FeatureDataset)
    # The score of a sample is the norm of the head's gradient within the whole network.
    whole = models.build("frozen_nets:make", num_classes=2, input_shape=(1, 12, 12)).eval()
    load_weights(whole.head, source.checkpoint)
    images = ready.task.prepare(ready.pool.dataset.inputs(range(len(ready.pool))))
    expected = gradient_norms(whole, images, "entropy", parameters="head")
    with Path("s.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    got = torch.tensor([float(row["entropy-gradnorm"]) for row in rows])
    torch.testing.assert_close(got, expected.float(), rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        best = whole(images).argmax(1)
    with Path("p.csv").open(newline="") as lines:
        names = [row["class"] for row in csv.DictReader(lines)]
    assert names == [("cat", "dog")[i] for i in best.tolist()]


def test_a_run_without_a_strategy_takes_the_default_of_frozen_features(tmp_path, photographs):
    file = config_file(tmp_path, photographs)
    document_ = yaml.safe_load(file.read_text())
    del document_["strategies"]
    file.write_text(yaml.safe_dump(document_))
    code, output = invoke("run", file, "--out", "runs")
    assert code == 0, output
    assert "u-herding none was named: first on frozen features" in " ".join(output.split())
    run = read_run("runs/u-herding/seed-0")
    assert run.finished
    # The report shows the photographs, not their features.
    html = Path("runs/report/report.html").read_text(encoding="utf-8")
    data = json.loads(html.partition('id="data">')[2].partition("</script>")[0])
    gallery = data["sets"][0]["gallery"]
    assert gallery["samples"][0]["picture"].startswith("data:image/png")
    assert gallery["map"]["pool"] == len(run.labels) + 20
    # What an earlier version began under its default is gone on with.
    code, output = invoke("run", file, "--strategy", "margin", "--out", "earlier")
    assert code == 0, output
    code, output = invoke("run", file, "-s", "experiment.cycles=4", "--out", "earlier")
    assert code == 0, output
    assert not Path("earlier/u-herding").exists()
    assert len(read_run("earlier/margin/seed-0").cycles) == 4


def test_other_photographs_are_scored_with_the_same_network(tmp_path, photographs):
    file = config_file(tmp_path, photographs, strategies=["margin"])
    code, output = invoke("run", file, "--out", "runs")
    assert code == 0, output
    (tmp_path / "more").mkdir()
    Image.fromarray(np.full((12, 12), 77, dtype=np.uint8)).save(tmp_path / "more" / "new.png")
    code, output = invoke("predict", "runs", "-s", "data.root=more", "-o", "p.csv")
    assert code == 0, output
    assert (tmp_path / "p.csv").read_text().splitlines()[1].startswith("new.png,")
    Image.fromarray(np.full((9, 9), 77, dtype=np.uint8)).save(tmp_path / "more" / "new.png")
    code, output = invoke("predict", "runs", "-s", "data.root=more", "-o", "p.csv")
    assert code == 3
    assert "(1, 12, 12), which the run was trained on" in " ".join(output.split())


def test_another_network_below_the_head_is_refused(tmp_path, photographs):
    file = config_file(tmp_path, photographs, strategies=["margin"])
    assert invoke("run", file, "--out", "runs")[0] == 0
    changed = load(file, sets=["model.shift=0.5", "experiment.cycles=4"])
    setup = assemble(changed)
    recorded = read_run("runs/margin/seed-0").config
    with pytest.raises(RunError, match=r"backbone_sha256"):
        Experiment(
            "runs/margin/seed-0",
            splits=setup.splits,
            task=setup.task,
            model=setup.model,
            strategy=strategies.build("margin"),
            settings=changed.experiment,
            training=changed.training,
            config={k: recorded[k] for k in ("data", "model", "task")},
            device="cpu",
        )
    with pytest.raises(ModelError, match="its weights or its code are others"):
        load_trained_model(find_source("runs/margin/seed-0", sets=["model.shift=0.5"]))


def test_code_that_computes_something_else_is_refused_and_an_edit_is_not(
    tmp_path, photographs, monkeypatch
):
    file = config_file(tmp_path, photographs, strategies=["margin"])
    assert invoke("run", file, "--out", "runs")[0] == 0
    make = frozen_nets.make

    class Edited(frozen_nets.Small):
        """Another class of the same modules."""

        scale = 1.0

        def forward(self, x):
            return super().forward(x * self.scale)

    monkeypatch.setattr(frozen_nets, "Small", Edited)
    assert frozen_nets.make is make
    assert invoke("predict", "runs", "--out", "p.csv")[0] == 0
    Edited.scale = 1.5
    code, output = invoke("predict", "runs", "--out", "p.csv")
    assert code == 4, output
    assert "its weights or its code are others" in " ".join(output.split())
    code, output = invoke("run", file, "--out", "runs", "-s", "experiment.cycles=4")
    assert code == 6, output
    assert "network below the head" in " ".join(output.split())


def test_a_pool_that_grew_goes_on_with_its_features(tmp_path, photographs):
    file = config_file(tmp_path, photographs, strategies=["margin"])
    assert invoke("run", file, "--out", "runs")[0] == 0
    Image.fromarray(np.full((12, 12), 33, dtype=np.uint8)).save(photographs / "cat" / "new.png")
    code, output = invoke("run", file, "--out", "runs", "-s", "experiment.cycles=4")
    assert code == 0, output
    blocks = list((tmp_path / "cache").glob("upslope/features/*/*.npy"))
    assert len(blocks) == 3
    assert read_run("runs/margin/seed-0").finished


def test_a_dry_run_computes_nothing_and_tells_what_features_cost(tmp_path, photographs):
    code, output = invoke("compare", config_file(tmp_path, photographs), "--dry-run")
    assert code == 0, output
    assert "for all samples, once" in output
    assert not list((tmp_path / "cache").glob("upslope/features/*"))
    config = load(document(photographs))
    setup, _ = to_plan(config)
    assert estimate(config, setup, plan(config, setup)).features > 0


def test_what_cannot_work_is_told_before_features_are_computed(tmp_path, photographs):
    for more, words in (
        ({"strategies": ["bald"]}, "strategies.bald"),
        ({"task": {"name": "classification", "augmentation": "flip-crop"}}, "task.augmentation"),
        ({"model": {"name": "frozen_nets:untrained", "freeze": True}}, "begin at random"),
        # Also where nothing states the statistics of the weights, which would be asked for next.
        ({"model": {"name": "cnn-small", "freeze": True}}, "begin at random"),
        ({"model": {"name": "frozen_nets:without_form", "freeze": True}}, "model.freeze"),
        ({"model": {"name": "cnn-small", "freeze": True}}, "model.freeze"),
        ({"model": {"name": "frozen_nets:make", "freeze": "yes"}}, "true or false but got 'yes'"),
    ):
        with pytest.raises(ConfigError, match=words):
            assemble(load(document(photographs, **more)))
    assert not list((tmp_path / "cache").glob("upslope/features/*/*.npy"))


def test_statistics_of_the_data_set_serve_where_the_network_states_none(photographs):
    data = {**document(photographs)["data"], "mean": [0.3], "std": [0.2]}
    model = {"name": "frozen_nets:without_form", "freeze": True}
    setup = assemble(load(document(photographs, data=data, model=model)))
    same = assemble(load(document(photographs)))
    indices = range(len(same.splits.pool))
    assert torch.equal(setup.splits.pool.inputs(indices), same.splits.pool.inputs(indices))


def test_freeze_is_in_the_record_only_where_it_is_set(photographs):
    assert load(document(photographs)).protocol()["model"]["freeze"] is True
    off = load(document(photographs, model={"name": "frozen_nets:make", "freeze": False}))
    assert "freeze" not in off.protocol()["model"]
    assert not off.freeze
    own = load(document(photographs, model={"name": "frozen_nets:with_own_option", "freeze": True}))
    assert not own.freeze  # the function takes it, and it is the function's
    assert own.model.options == {"freeze": True}


@pytest.mark.long
def test_workers_map_the_same_blocks(tmp_path, photographs):
    file = config_file(tmp_path, photographs, strategies=["margin"], seeds=2)
    code, output = invoke("compare", file, "--out", "one")
    assert code == 0, output
    code, output = invoke("compare", file, "--out", "two", "--workers", "2")
    assert code == 0, output
    for seed in (0, 1):
        one, two = (read_run(f"{name}/margin/seed-{seed}") for name in ("one", "two"))
        assert one.labels == two.labels


def test_a_start_by_typiclust_reads_the_pretrained_features(photographs):
    more = {"experiment": {"initial": 4, "budget": 4, "cycles": 1, "start": "typiclust"}}
    config = load(document(photographs, **more))
    setup = assemble(config)
    with Experiment(
        "start",
        splits=setup.splits,
        task=setup.task,
        model=setup.model,
        strategy=strategies.build("margin"),
        settings=ExperimentSettings(initial=4, budget=4, cycles=1, start="typiclust"),
        training=TrainingSettings(epochs=2),
        device="cpu",
    ) as run:
        assert len(set(run.ask())) == 4


@pytest.mark.long
def test_a_run_killed_while_features_are_computed_goes_on(tmp_path, photographs):
    for i in range(20, 700):
        pixels = np.full((12, 12), i % 256, dtype=np.uint8)
        pixels[0, 0] = i // 256
        Image.fromarray(pixels).save(photographs / "cat" / f"{i}.png")
    file = config_file(tmp_path, photographs, strategies=["margin"])
    process = subprocess.Popen(
        [sys.executable, "-m", "upslope", "run", str(file), "--out", "runs"],
        env={**os.environ, "FROZEN_PAUSE": "0.2", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        blocks = tmp_path / "cache" / "upslope" / "features"
        until(lambda: list(blocks.glob("*/*.npy")) or process.poll() is not None)
        assert process.returncode is None
    finally:
        process.kill()
        process.wait()
    seen = []
    assemble(load(file), seen.append)
    first = next(p for p in seen if p.phase == "features")
    assert first.done >= FREEZE.BLOCK
    assert first.done < first.total


@pytest.mark.parametrize("command", ["run", "compare"])
def test_more_labels_than_photographs_are_refused_before_features(photographs, command):
    """Three cycles of 20 labels, of forty photographs less the eight that are set apart."""
    path = photographs.parent / "config.yaml"
    path.write_text(
        yaml.safe_dump(
            document(
                photographs,
                strategies=["margin"],
                experiment={"initial": 20, "budget": 20, "cycles": 3, "candidates": "all"},
            )
        )
    )
    ended = CliRunner().invoke(app, [command, str(path), "--out", "run"])
    assert ended.exit_code == 5
    assert "the 32 labels of the pool but 20 and 2 times 20 are 60" in " ".join(
        ended.output.split()
    )
    assert not list((photographs.parent / "cache").glob("upslope/features/*/*.npy"))
    assert not Path("run").exists()
