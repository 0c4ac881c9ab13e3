"""The README's code runs, from its first block to its last, and gives the numbers it prints."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import math
import re
import shlex
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from upslope import Experiment, ExperimentSettings, Splits, strategies, tasks
from upslope.cli import app
from upslope.comparison import read_comparison
from upslope.evaluation import area, labels_to_reach
from upslope.ledger import RunResult, read_run
from upslope.pool import PoolView
from upslope.signals import build
from upslope.training import settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|sh)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
TABLE = re.findall(r"^```text\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)[0]


# Not `find_spec`: the folder of these tests' own `datasets` may be on the path.
HAS_HUGGING_FACE = "datasets" in importlib.metadata.packages_distributions()


def run_blocks(place: Path) -> Path:
    """Run every block in order, in a folder that is returned."""
    names: dict[str, object] = {"__name__": "readme"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for language, code in BLOCKS:
            if language == "python":
                if "import datasets as hf" in code and not HAS_HUGGING_FACE:
                    continue  # test_the_block_on_hugging_face_runs skips, by name
                exec(compile(code, "README.md", "exec"), names)
                continue
            for line in code.splitlines():
                command, *arguments = shlex.split(line, comments=True)
                if command == "upslope":
                    result = CliRunner().invoke(app, arguments, prog_name="upslope")
                    assert result.exit_code == 0, (line, result.stderr)
                else:
                    assert command == "make"
                    assert arguments[0] in targets()
    return place


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every block was run, with networks that train for a fifth of the steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "AUTO_STEPS", 1)
        return run_blocks(tmp_path_factory.mktemp("readme-short"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every block was run as it stands there: a minute."""
    return run_blocks(tmp_path_factory.mktemp("readme"))


@pytest.mark.long
def test_every_block_leaves_what_it_promises(folder: Path) -> None:
    assert (folder / "runs" / "first" / "report" / "report.html").is_file()
    assert (folder / "runs" / "python" / "report" / "report.html").is_file()
    assert len(read_comparison(folder / "runs" / "arrays").runs["margin"]) == 2
    assert len((folder / "scores.csv").read_text().splitlines()) == 1401
    assert len((folder / "predictions.csv").read_text().splitlines()) == 1401


def test_the_block_on_hugging_face_runs(capsys: pytest.CaptureFixture[str]) -> None:
    if not HAS_HUGGING_FACE:
        pytest.skip("datasets is not installed")
    (code,) = (code for _, code in BLOCKS if "import datasets as hf" in code)
    exec(compile(code, "README.md", "exec"), {"Splits": Splits})
    assert "pool: 36" in capsys.readouterr().out


def test_the_examples_on_own_data_are_short() -> None:
    for name in ("from_arrays", "from_torch", "from_hugging_face", "from_table", "def fit("):
        (code,) = (code for language, code in BLOCKS if language == "python" and name in code)
        lines = [line for line in code.splitlines() if line.strip()]
        assert len(lines) <= 10, name


def test_the_loop_of_the_readme_trains(tmp_path: Path) -> None:
    (code,) = (code for _, code in BLOCKS if "def fit(" in code)
    names: dict[str, Any] = {"torch": torch}
    exec(compile(code, "README.md", "exec"), names)
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    with Experiment(
        tmp_path / "run",
        splits=Splits.from_arrays(x, (x[:, 0] > 0).long(), x, (x[:, 0] > 0).long()),
        task=tasks.build("classification", num_classes=2),
        model=lambda: torch.nn.Linear(4, 2),
        strategy=strategies.build("margin"),
        settings=ExperimentSettings(initial=20, budget=10, cycles=2),
        trainer=names["fit"],
    ) as run:
        result = run.run()
    assert len(result.cycles) == 2


def runs_of(folder: Path) -> list[RunResult]:
    compared = [read_comparison(folder / "runs" / name).runs for name in ("first", "python")]
    runs = [run for each in compared for results in each.values() for run in results]
    return [*runs, read_run(folder / "runs" / "by-hand")]


def test_one_run_of_the_example_learns_its_labels_and_rises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short form of the three tests below, which need all of the example."""
    (line,) = (
        line for language, code in BLOCKS if language == "sh" for line in code.splitlines()
        if line.startswith("upslope compare --strategies")
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(line)[1:]
    arguments[2], arguments[4] = "random", "[0]"
    result = CliRunner().invoke(app, [*arguments, "-s", "experiment.cycles=2"])
    assert result.exit_code == 0, result.stderr
    first, second = read_run(tmp_path / "runs" / "first" / "random" / "seed-0").cycles
    assert min(first.train_metrics["accuracy"], second.train_metrics["accuracy"]) > 0.95
    assert second.metrics["accuracy"] > first.metrics["accuracy"] + 0.03


@pytest.mark.long
def test_the_examples_show_networks_that_have_learnt_their_labels(trained: Path) -> None:
    runs = runs_of(trained)
    assert len(runs) == 9 + 4 + 1
    for run in runs:
        assert min(cycle.train_metrics["accuracy"] for cycle in run.cycles) > 0.95


@pytest.mark.long
def test_more_labels_make_the_examples_better(trained: Path) -> None:
    """Of every run the last model is well ahead of the first, and of the means each of the last."""
    for run in runs_of(trained):
        _, accuracies = run.curve()
        assert accuracies[-1] > accuracies[0] + 0.03, (run.path, accuracies)
    for strategy in json.loads((trained / "runs/first/report/results.json").read_text())[
        "strategies"
    ]:
        assert strategy["mean"] == sorted(strategy["mean"]), strategy["strategy"]


@pytest.mark.long
def test_the_numbers_that_it_prints_are_those_that_come_out(trained: Path) -> None:
    """Within a point and a half: other processors sum in another order."""
    head, *lines = [line.split() for line in TABLE.splitlines()]
    printed = {name: {} for name in head[1:]}
    for labels, *cells in lines:
        if labels.replace(",", "").isdigit():
            for name, mean in zip(head[1:], cells[::2], strict=True):
                printed[name][int(labels)] = float(mean)
    results = json.loads((trained / "runs" / "first" / "report" / "results.json").read_text())
    assert {s["strategy"] for s in results["strategies"]} == set(printed)
    for strategy in results["strategies"]:
        means = dict(zip(results["budgets"], strategy["mean"], strict=True))
        assert {n: 100 * m for n, m in means.items()} == pytest.approx(
            printed[strategy["strategy"]], abs=1.5
        )


def test_the_strategy_of_contributing_works() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    module = types.ModuleType("least_likely")
    sys.modules[module.__name__] = module  # where dataclasses look annotations up
    exec(compile(code, "CONTRIBUTING.md", "exec"), module.__dict__)
    strategy = module.LeastLikely()
    (need,) = strategy.needs
    posterior = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.7, 0.3]])
    assert build(need)  # the signal exists
    view = PoolView(["a", "b", "c"], {need: posterior})
    assert strategy.select(view, 2, torch.Generator()).ids == ("b", "c")


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md"]:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert (ROOT / target).exists(), (page.name, target)


def targets() -> set[str]:
    return set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def test_figures_of_the_demonstration_are_those_of_the_committed_curves() -> None:
    folder = ROOT / "results" / "digits"
    with (folder / "curves.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    budgets = sorted({int(row["labels"]) for row in rows})
    curves = {
        name: [float(row["mean"]) for row in rows if row["strategy"] == name]
        for name in ("random", "margin", "entropy-gradnorm", "egl")
    }
    last = curves["random"][-1]
    needed = {  # in whole labels, as the page tells them
        name: math.ceil(labels_to_reach(budgets, curve, last) - 1e-9)
        for name, curve in curves.items()
    }
    words = " ".join(README.split())
    assert f"Random selection ends at {100 * last:.1f}% with {budgets[-1]} labels." in words
    assert f"Margin reaches that with {needed['margin']} labels, the gradient" in words
    first, second = sorted(needed[name] for name in ("entropy-gradnorm", "egl"))
    assert f"the gradient norms with {first} and {second};" in words
    areas = {name: 100 * float(area(budgets, curve)) for name, curve in curves.items()}
    gains = [areas[name] - areas["random"] for name in curves if name != "random"]
    assert f"random by {min(gains):.1f} to {max(gains):.1f} points of area" in words
    table = (folder / "table.md").read_text(encoding="utf-8").splitlines()
    assert all("| <0.001 |" in line for line in table if line.startswith(("| margin", "| e")))
