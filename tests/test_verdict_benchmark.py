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
import verdict_cells  # noqa: E402
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
    cell = verdict_cells.Cell("blobs", 6, 4, 3, "all")
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

    # The same study where its runs are not at hand: what the files hold is neither run nor lost.
    capsys.readouterr()
    elsewhere = ("--runs", study / "elsewhere", "--out", study / "out")
    call(monkeypatch, verdict, *running, 3, *elsewhere)
    assert capsys.readouterr().out.count("seed 2") == 3
    assert not (study / "elsewhere" / "blobs-low" / "margin" / "seed-0").exists()
    call(monkeypatch, verdict, "summarise", *elsewhere)
    record = json.loads((study / "out" / "blobs-low.json").read_text())
    assert [*record["strategies"]["margin"]["curves"]] == ["0", "1", "2"]
    assert record["strategies"]["margin"]["curves"]["1"] == curves["1"]
    curves = record["strategies"]["margin"]["curves"]

    call(monkeypatch, verdict_tables, "--results", study / "out")
    text = (study / "out" / "README.md").read_text()
    assert "3 seeds, 6 to 14 labels" in text
    gain = np.mean([np.trapezoid(curves[s], [6, 10, 14]) / 8 for s in "012"])
    other = record["strategies"]["random"]["curves"]
    gain -= np.mean([np.trapezoid(other[s], [6, 10, 14]) / 8 for s in "012"])
    assert f"| margin | {100 * gain:+.2f} (" in text


def test_results_of_other_settings_are_not_mixed(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = (
        "run", "--features", study, "--runs", study / "runs", "--cells", "blobs-low",
        "--strategies", "random", "--seeds", 1, "--out", study / "out",
    )  # fmt: skip
    call(monkeypatch, verdict, *running)
    call(monkeypatch, verdict, "summarise", "--runs", study / "runs", "--out", study / "out")
    other = verdict_cells.Cell("blobs", 6, 4, 2, "all")
    monkeypatch.setattr(verdict, "CELLS", {"blobs-low": other})
    with pytest.raises(SystemExit, match=r"blobs-low\.json holds runs of other settings"):
        call(monkeypatch, verdict, *running)


def test_runs_on_other_features_are_not_mixed(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = study / "out"
    runs = ("--features", study, "--runs", study / "runs", "--out", out, "--cells", "blobs-low")
    call(monkeypatch, verdict, "run", *runs, "--strategies", "random", "--seeds", 1)
    call(monkeypatch, verdict, "summarise", "--runs", study / "runs", "--out", out)
    record = json.loads((out / "blobs-low.json").read_text())
    record["strategies"]["egl"] = record["strategies"]["random"]
    record["strategies"]["egl"]["curves"]["0"][0] -= 0.1
    text = json.dumps(record)
    (out / "blobs-low.json").write_text(text)
    with pytest.raises(SystemExit, match="seed 0 begin with accuracies"):
        call(monkeypatch, verdict, "summarise", "--runs", study / "runs", "--out", out)
    assert (out / "blobs-low.json").read_text() == text


def test_a_cell_without_features_is_told(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(
        monkeypatch, verdict, "run", "--features", study / "none", "--runs", study / "runs",
        "--cells", "blobs-low", "--strategies", "random", "--seeds", 1,
    )  # fmt: skip
    assert "no features of blobs" in capsys.readouterr().out


@pytest.fixture
def features() -> dict[str, np.ndarray]:
    """Four classes of a hundred samples each, in no order."""
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(4), 100))
    x = np.random.default_rng(2).normal(size=(400, 3)).astype(np.float32)
    return {"x_train": x, "y_train": labels, "x_test": x[:9], "y_test": labels[:9]}


def test_an_imbalanced_pool_has_one_of_the_rarest_for_twenty_of_the_commonest(
    features: dict[str, np.ndarray],
) -> None:
    pool = verdict_cells.imbalanced(features)
    assert np.bincount(pool["y_train"]).tolist() == [100, 37, 14, 5]
    before = zip(features["x_train"], features["y_train"], strict=True)
    rows = {row.tobytes(): label for row, label in before}
    after = zip(pool["x_train"], pool["y_train"], strict=True)
    assert all(rows[x.tobytes()] == y for x, y in after)


def test_near_copies_are_nearer_to_their_sample_than_to_any_other(
    features: dict[str, np.ndarray],
) -> None:
    pool = verdict_cells.near_copies(features)
    groups = pool["x_train"].reshape(40, 10, 3)
    assert (pool["y_train"].reshape(40, 10) == pool["y_train"][::10, None]).all()
    assert not (groups[:, 1:] == groups[:, :1]).any()
    assert np.abs(groups - groups[:, :1]).max() < 0.6
    originals = {row.tobytes() for row in features["x_train"]}
    assert all(row.tobytes() in originals for row in groups[:, 0])


def test_answers_of_people_are_those_of_the_images_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = np.random.default_rng(3).integers(0, 10, 50).astype(np.uint8)
    answers = ((truth + 1) % 10).astype(np.uint8)
    (tmp_path / "cifar10n").mkdir()
    np.savez(tmp_path / "cifar10n/cifar10n.npz", random_label1=answers, clean_label=truth)
    monkeypatch.setenv("UPSLOPE_DATA", str(tmp_path))
    drawn = np.random.default_rng(0).permutation(50)[:20]
    for rows in (drawn, np.sort(drawn)):
        y = truth[rows].astype(np.int64)
        assert verdict_cells.people({"y_train": y})["y_train"].tolist() == answers[rows].tolist()
    with pytest.raises(ValueError, match="the pool that"):
        verdict_cells.people({"y_train": (y + 1) % 10})


@pytest.mark.parametrize("regime", ["text", "scratch"])
def test_networks_that_are_trained_whole_come_from_a_configuration(
    regime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSLOPE_DATA", str(tmp_path))
    cell = verdict_cells.Cell("mine", 4, 2, 2, "all", whole="text")
    assert "mine" in str(verdict_cells.problem(cell, tmp_path))  # what is missing, by its path
    assert verdict_cells.training_of(verdict_cells.Cell("mine", 4, 2, 2, "all", whole=regime))
    (tmp_path / "mine").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "mine" / f"{name}.tsv").write_text("a good film\t1\na bad film\t0\n" * 4)
    verdict_cells.problem.cache_clear()
    posed = verdict_cells.problem(cell, tmp_path)
    assert isinstance(posed, verdict_cells.Problem)
    assert len(posed.splits.pool) == 8
    assert posed.training.epochs == 15
