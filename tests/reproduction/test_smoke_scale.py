"""`upslope reproduce --scale smoke`: two tables for most tests, all artefacts for the rest."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

from upslope import reproduction
from upslope.cli import app
from upslope.errors import RunError
from upslope.ledger import read_run
from upslope.progress import Stop, no_progress
from upslope.reproduction import ARTEFACTS, paper
from upslope.reproduction.artefacts.table_1 import OVERLAP
from upslope.reproduction.metrics.metric_cache import MetricJobs
from upslope.reproduction.studies.finished_run import FinishedRun
from upslope.reproduction.studies.opened import OpenedStudy

pytestmark = pytest.mark.long


@dataclass(frozen=True)
class Made:
    out: Path
    request: reproduction.Request
    reports: dict[str, reproduction.Report]

    def opened(self, name: str) -> OpenedStudy:
        return self.request.runner.open(name)

    def lines(self, artefact: str) -> list[dict[str, str]]:
        with (self.out / artefact / "table.csv").open(encoding="utf-8") as file:
            return list(csv.DictReader(file))


def make(out: Path, *artefacts: str) -> Made:
    """Reproduce these artefacts, whose studies they share."""
    reports = {}
    for name in artefacts:
        request = reproduction.ask(name, scale="smoke", out=out, overrides={"device": "cpu"})
        reports[name] = reproduction.reproduce(request, f"upslope reproduce {name}")
    return Made(out, request, reports)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("smoke"), "table1", "table3")


@pytest.fixture(scope="module")
def all_made(made: Made) -> Made:
    return make(made.out, "all")


@pytest.mark.parametrize(
    ("fixture", "names"), [("made", ["table1", "table3"]), ("all_made", ["all"])]
)
def test_every_artefact_is_written(
    request: pytest.FixtureRequest, fixture: str, names: list[str]
) -> None:
    folders: dict[str, Path] = {}
    for name in names:
        report = request.getfixturevalue(fixture).reports[name]
        assert not report.missing
        assert not report.failed
        folders |= report.folders
        for folder in report.folders.values():
            meta = json.loads((folder / "meta.json").read_text())
            assert meta["command"] == f"upslope reproduce {name}"
    assert list(folders) == (list(ARTEFACTS) if names == ["all"] else names)
    for name, folder in folders.items():
        there = {path.name for path in folder.iterdir()}
        assert there == {
            "table.csv", "table.md", "table.tex", "figure.png", "figure.svg", "meta.json",
        }, name  # fmt: skip
        meta = json.loads((folder / "meta.json").read_text())
        assert meta["environment"]["packages"]["torch"]
        assert meta["findings"]
        for study in meta["studies"].values():
            assert study["commits"]
        assert (folder / "table.tex").read_text().count("\\toprule") >= 1
        assert f"({name}/table.md)" in report.page.read_text()


def test_papers_numbers_are_marked_as_such(made: Made) -> None:
    of_entropy = {
        line["column"]: float(line["mean"])
        for line in made.lines("table1")
        if line["row"] == "entropy-gradnorm" and line["source"] == "paper"
    }
    at_40 = dict(zip(paper.BUDGETS, paper.TABLE_1["entropy-gradnorm"], strict=True))[40]
    assert of_entropy["40%"] == pytest.approx(100 * at_40 / paper.K)
    assert set(of_entropy) == {"10%", "25%", "40%"}  # columns are ours, where the paper has them
    page = (made.out / "table1" / "table.md").read_text()
    assert "*entropy-gradnorm (paper)*" in page
    assert "| data | digits" in page


def test_a_class_without_test_samples_has_no_accuracy(tmp_path: Path) -> None:
    """It ended with a KeyError, once the runs were finished."""
    sets = ["data.test_limit=5", "seeds=1", "experiment.cycles=1", "training.epochs=1"]
    request = reproduction.ask(
        "table7", scale="smoke", out=tmp_path, sets=sets, overrides={"device": "cpu"}
    )
    result = reproduction.reproduce(request).results["table7"]
    rows = {row.label: row.values for row in result.tables[0].rows if row.source == "ours"}
    test = request.runner.open("imbalanced").setup.splits.test
    tested = {int(c) for c in test.targets(range(len(test)))}
    accuracies = rows["random, accuracy"]
    assert [c for c in range(10) if accuracies[c] is not None] == sorted(tested)
    assert len(tested) < 10
    assert "random" in result.findings[0]


def test_same_choice_when_made_again(made: Made) -> None:
    opened = made.opened("main")
    for strategy in opened.setup.strategies:
        run = FinishedRun(opened, strategy, 1)
        assert run.select(1) == run.selected_positions(1), strategy


def test_a_damaged_model_gives_no_metric(made: Made) -> None:
    opened = made.opened("main")
    file = opened.folder / "random" / "seed-0" / "models" / "cycle-1.safetensors"
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[-3] ^= 1  # in a weight, which then is another number
    try:
        file.write_bytes(changed)
        run = FinishedRun(opened, "random", 0)
        assert run.model(0) is not None
        for read in (run.model, run.select):
            with pytest.raises(RunError, match=r"cycle-1\.safetensors is damaged"):
                read(1)
    finally:
        file.write_bytes(whole)


def test_a_damaged_metric_is_told_and_computed_again(made: Made) -> None:
    opened = made.opened("main")
    jobs = MetricJobs(opened, OVERLAP, ("random",))
    file = opened.folder / "measured" / OVERLAP.name / "random" / "seed-0.json"
    whole = file.read_bytes()
    try:
        file.write_bytes(whole.replace(b"figures", b"fogures"))
        with pytest.warns(UserWarning, match=r"seed-0\.json is damaged: the metric is"):
            jobs.run("random", 0, no_progress, Stop())
        assert file.read_bytes() == whole
        jobs.run("random", 0, no_progress, Stop())  # and nothing is said any more
    finally:
        file.write_bytes(whole)


def test_overlap_counts_as_its_definition(made: Made) -> None:
    opened = made.opened("main")
    run = FinishedRun(opened, "random", 0)
    found = MetricJobs(opened, OVERLAP, ("random",)).numbers("random", 0)
    for cycle in range(run.cycles):
        model, candidates = run.model(cycle), run.candidates(cycle)
        norms = []
        for i in candidates:  # one backward pass per sample
            inputs = run.task.prepare(run.pool.inputs([i]))
            loss = F.cross_entropy(model(inputs), run.targets([i]))
            parts = torch.autograd.grad(loss, list(model.parameters()))
            norms.append(float(torch.cat([p.flatten() for p in parts]).double().norm()))
        top = sorted(range(len(norms)), key=lambda j: -norms[j])[: run.budget]
        large = {candidates[j] for j in top}
        assert found["overlap"][cycle] == len(large & set(run.selected_positions(cycle)))
        assert found["candidates"][cycle] == len(candidates)
    assert not set(run.candidates(1)) & set(run.labelled(1))


def test_reduced_counts_as_its_definition(all_made: Made) -> None:
    run = FinishedRun(all_made.opened("main"), "entropy-gradnorm", 1)
    norm = all_made.request.runner.scale.variant.norm
    assert norm == "tensor-sum"

    def score(model: nn.Module, position: int) -> float:
        logits = model(run.task.prepare(run.pool.inputs([position])))
        entropy = torch.distributions.Categorical(logits=logits).entropy().sum()
        parts = torch.autograd.grad(entropy, list(model.parameters()))
        return sum(float(part.double().norm()) for part in parts)

    shares = []
    for cycle in (0, 1):
        before, after = run.model(cycle), run.model(cycle + 1)
        chosen = run.selected_positions(cycle)
        shares.append(sum(score(after, i) <= score(before, i) for i in chosen) / len(chosen))
    folder = all_made.out / "studies/main/measured/reduced-entropy/entropy-gradnorm"
    found = json.loads((folder / "seed-1.json").read_text())["figures"]
    assert [n / found["k"] for n in found["reduced"]] == shares


def test_bounds_are_in_order(all_made: Made) -> None:
    values: dict[tuple[str, str], dict[str, float]] = {}
    for line in all_made.lines("figure3"):
        if line["row"] not in ("Target", "Approx-1", "Approx-2", "Approx-3"):
            continue
        key = (line["table"], line["column"])
        values.setdefault(key, {})[line["row"]] = float(line["mean"])
    assert len(values) == 4  # two schemes, two cycles
    for terms in values.values():
        assert terms["Target"] <= terms["Approx-1"] <= terms["Approx-2"]
        assert terms["Approx-3"] > 0


def test_seeds_and_titles_are_those_of_the_numbers(all_made: Made) -> None:
    """The influences are of the first seed alone; no two panels of a picture share a name."""
    page = (all_made.out / "table2" / "table.md").read_text()
    assert "| seeds | the first 1 of 2 | 3 |" in page
    assert "| seeds | 2 | 3 |" in (all_made.out / "table3" / "table.md").read_text()
    for artefact in ("figure1", "figure2", "figure4", "table9"):
        lines = all_made.lines(artefact)
        assert len({(r["table"], r["row"], r["column"]) for r in lines}) == len(lines), artefact


def test_gap_is_of_the_recorded_figures(made: Made) -> None:
    runs = [read_run(made.out / f"studies/main/core-set/seed-{s}") for s in (0, 1)]
    gaps = [
        100 * (r.cycles[-1].train_metrics["accuracy"] - r.cycles[-1].metrics["accuracy"])
        for r in runs
    ]
    shown = [
        float(line["mean"])
        for line in made.lines("table3")
        if (line["row"], line["source"], line["column"]) == ("core-set", "ours", "40%")
    ]
    assert shown == [pytest.approx(sum(gaps) / 2)]


def test_deeper_network_has_the_labels_that_were_selected(all_made: Made) -> None:
    selected = read_run(all_made.out / "studies/main/vaal/seed-0")
    deeper = read_run(all_made.out / "studies/deeper/vaal/seed-0")
    asked = [i for cycle in selected.cycles for i in cycle.asked]
    assert set(deeper.initial) == {*selected.initial, *asked}
    assert deeper.config["model"]["name"] == "mlp"
    assert len(deeper.cycles) == 1


def test_steps_of_the_confound_are_those_taken(all_made: Made) -> None:
    steps = {
        line["row"]: float(line["mean"])
        for line in all_made.lines("confound")
        if line["column"] == "steps in all"
    }
    # 4 epochs in batches of 16: of 20, 50 and 80 labels; and of all 200, the last 8 a batch.
    assert steps["entropy-gradnorm, warm start"] == 4 * (2 + 4 + 5)
    assert steps["all labels, as long as one cycle"] == 4 * 13
    assert abs(steps["all labels, as many steps"] - 44) <= 13 / 2


def test_goes_on_without_training_again(made: Made) -> None:
    kept = [
        *made.out.glob("studies/*/*/seed-*/models/*"),
        *made.out.glob("studies/*/measured/*/*/*"),
    ]
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert len(before) > 60
    again = CliRunner().invoke(
        app, ["reproduce", "table1", "--out", str(made.out), "--device", "cpu"]
    )
    assert again.exit_code == 0, again.stderr
    assert "table1" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in kept} == before


def test_other_settings_are_refused_in_the_same_folder(made: Made) -> None:
    result = CliRunner().invoke(
        app, ["reproduce", "table3", "--out", str(made.out), "-s", "training.epochs=5"]
    )
    assert result.exit_code == 6
    assert "training.epochs" in result.stderr
