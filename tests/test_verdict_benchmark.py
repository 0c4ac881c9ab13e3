"""The study of strategies on frozen features: a small cell from features to tables, resumed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import verdict  # noqa: E402
import verdict_tables  # noqa: E402
from upslope.ledger import read_run  # noqa: E402


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Features of three blobs, and one small cell of them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 160)
    x = rng.normal(size=(160, 5)) + 2 * np.eye(3, 5)[labels]
    np.savez(
        tmp_path / "blobs.npz",
        x_train=x[:100], y_train=labels[:100], x_test=x[100:], y_test=labels[100:],
    )  # fmt: skip
    cell = verdict.Cell("blobs", 6, 4, 3, "all")
    monkeypatch.setattr(verdict, "CELLS", {"blobs-low": cell})
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, module: object, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    module.main()  # type: ignore[attr-defined]


def test_a_cell_from_features_to_tables(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    running = (
        "run", "--features", study, "--runs", study / "runs", "--cells", "blobs-low",
        "--strategies", "random,margin,binary-bait", "--seeds",
    )  # fmt: skip
    call(monkeypatch, verdict, *running, 1)
    assert capsys.readouterr().out.count("seed 0") == 3
    folder = study / "runs" / "blobs-low" / "margin" / "seed-0"
    before = read_run(folder).cycles
    call(monkeypatch, verdict, *running, 2)
    assert read_run(folder).cycles == before  # to the second of training: nothing ran again

    call(monkeypatch, verdict, "summarise", "--runs", study / "runs", "--out", study / "out")
    record = json.loads((study / "out" / "blobs-low.json").read_text())
    assert record["budgets"] == [6, 10, 14]
    curves = record["strategies"]["margin"]["curves"]
    assert [*curves] == ["0", "1"]
    assert curves["0"][0] == record["strategies"]["random"]["curves"]["0"][0]

    call(monkeypatch, verdict_tables, "--results", study / "out")
    text = (study / "out" / "README.md").read_text()
    assert "2 seeds, 6 to 14 labels" in text
    gain = np.mean([np.trapezoid(curves[s], [6, 10, 14]) / 8 for s in "01"])
    other = record["strategies"]["random"]["curves"]
    gain -= np.mean([np.trapezoid(other[s], [6, 10, 14]) / 8 for s in "01"])
    assert f"| margin | {100 * gain:+.2f} (" in text


def test_a_cell_without_features_is_told(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(
        monkeypatch, verdict, "run", "--features", study / "none", "--runs", study / "runs",
        "--cells", "blobs-low", "--strategies", "random", "--seeds", 1,
    )  # fmt: skip
    assert "no features of blobs" in capsys.readouterr().out
