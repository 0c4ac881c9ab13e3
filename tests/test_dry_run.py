"""`--dry-run`: what is planned, what it will cost, and that without the data it says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from upslope.cli.app import app
from upslope.cli.show import duration, size
from upslope.config import load, plan, to_plan


def dry_run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["compare", "--dry-run", "--device", "cpu", *arguments])
    return result.exit_code, " ".join(result.output.split())


def test_time_and_memory_are_measured_and_nothing_is_made(tmp_path: Path) -> None:
    code, text = dry_run("--strategies", "random,margin", "--out", str(tmp_path / "runs"))
    assert code == 0
    for part in ("pool 1,400", "a step of 64", "margin", "GiB" if "GiB" in text else "MiB"):
        assert part in text
    assert "measured here, 10 steps of batch 64 of 1x8x8 on cpu" in text
    assert "sizes as published" not in text
    assert not (tmp_path / "runs").exists()


def test_without_the_data_the_plan_is_by_published_sizes(tmp_path: Path) -> None:
    code, text = dry_run(
        "-s", "data.name=fashion-mnist", "-s", f"data.root={tmp_path}", "-s", "model=mlp",
        "--strategies", "random",
    )  # fmt: skip
    assert code == 0
    assert "pool 60,000, test 10,000, 10 classes, 1x28x28" in text
    assert "sizes as published: the data was not checked" in text
    assert "train-images-idx3-ubyte" in text
    assert "about" in text


@pytest.mark.parametrize("name", ["fashion-mnist", "50c-clean", "digits"])
def test_a_root_that_is_not_there_is_an_error(tmp_path: Path, name: str) -> None:
    code, text = dry_run("-s", f"data.name={name}", "-s", f"data.root={tmp_path}/nowhere")
    assert code != 0
    assert "no such path" in text


def test_without_published_sizes_what_is_missing_is_an_error(tmp_path: Path) -> None:
    code, text = dry_run("-s", "data.name=npz", "-s", f"data.root={tmp_path}")
    assert code != 0
    assert "one .npz file" in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0123, "12 ms"), (1.5, "1.5 s"), (90, "90 s"), (600, "10 min"), (8000, "2.2 h"),
     (200_000, "2.3 days")],
)  # fmt: skip
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_sizes() -> None:
    assert [size(n) for n in (3 * 2**19, 300 * 2**20, 5 * 2**30)] == [
        "1.5 MiB",
        "300 MiB",
        "5.0 GiB",
    ]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("folder", ["data.classes=[cat,dog]", "model=mlp"]),
        ("mask-folder", ["task=segmentation", "model=dilated-small"]),
        ("table", ["data.classes=[cat,dog]", "model=mlp"]),
        ("table", ["data.kind=numbers", "data.target='cat,dog'", "task=regression", "model=mlp"]),
        ("table", ["data.kind=labels", "data.target='cat,dog'", "task=multi-label", "model=mlp"]),
    ],
    ids=["folder", "mask-folder", "table", "numbers", "label-sets"],
)
def test_a_pool_without_any_label_is_measured(
    tmp_path: Path, kind: str, options: list[str]
) -> None:
    images = tmp_path / "images" / "unlabelled" if kind == "mask-folder" else tmp_path
    images.mkdir(parents=True, exist_ok=True)
    if kind == "table":
        columns = "label" if "data.classes=[cat,dog]" in options else "cat,dog"
        rows = [f"{i},{',' * columns.count(',')}" for i in range(6)]
        (tmp_path / "t.csv").write_text("\n".join([f"x,{columns}", *rows]), encoding="utf-8")
    else:
        for i in range(6):
            Image.new("RGB", (32, 32), (40 * i,) * 3).save(images / f"{i}.png")
    if kind == "mask-folder":
        (tmp_path / "classes.csv").write_text("name,id\nroad,0\ncar,1\n", encoding="utf-8")
    root = tmp_path / "t.csv" if kind == "table" else tmp_path
    sets = [f"data.name={kind}", f"data.root={root}", *options, "experiment.cycles=2"]
    sets += ["experiment.initial=2", "experiment.budget=2"]
    result = CliRunner().invoke(
        app,
        ["run", "--dry-run", "--device", "cpu", "--strategy", "random"]
        + [part for value in sets for part in ("-s", value)],
    )
    assert result.exit_code == 0, result.output
    assert "unlabelled (6)" in result.output
    assert "measured here" in " ".join(result.output.split())


def test_masks_that_cannot_be_read_are_not_taken_for_none(tmp_path: Path) -> None:
    for i in range(4):
        for part in ("images", "masks"):
            (tmp_path / part / "unlabelled").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / "unlabelled" / f"{i}.png")
        Image.new("L", (8, 8), 9).save(tmp_path / "masks" / "unlabelled" / f"{i}.png")
    (tmp_path / "classes.csv").write_text("name,id\nroad,0\ncar,1\n", encoding="utf-8")
    sets = [f"data.root={tmp_path}", "data.name=mask-folder", "task=segmentation"]
    sets += ["model=dilated-small", "experiment.initial=2", "experiment.cycles=1"]
    result = CliRunner().invoke(
        app,
        ["run", "--dry-run", "--device", "cpu", "--strategy", "random"]
        + [part for value in sets for part in ("-s", value)],
    )
    assert result.exit_code == 3
    assert "but got 9" in result.output


def test_nothing_is_simulated_for_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UPSLOPE_DATA", raising=False)
    config = load(sets=["data.name=50c-clean", "model=resnet-small-3d", "strategies=[random]"])
    setup, unseen = to_plan(config)
    assert unseen == "Its volumes are simulated when the run begins."
    assert plan(config, setup).input_shape == (1, 32, 32, 32)


def test_classes_with_counts_and_notes_are_in_the_plan_and_lead_a_run(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    labels = ["NA" if i < 8 else "ab"[i % 2] for i in range(40)]
    lines = [f"{i * i};{'uvw'[i % 3]};{label}" for i, label in enumerate(labels)]
    path.write_text("\n".join(["x;c;label", *lines]), encoding="utf-8")
    options = (
        "run", "--device", "cpu", "--strategy", "random", "--out", str(tmp_path / "runs"),
        "-s", f"data={{name: table, root: {path}}}", "-s", "model=mlp", "-s", "training.epochs=1",
        "-s", "experiment.initial=4", "-s", "experiment.budget=4", "-s", "experiment.cycles=1",
    )  # fmt: skip
    planned = CliRunner().invoke(app, [*options, "--dry-run"])
    assert planned.exit_code == 0
    # What a run prints first is its plan, whether or not it then waits for labels.
    text, first = (
        " ".join(result.output.split()) for result in (planned, CliRunner().invoke(app, options))
    )
    for shown in (text, first):
        start = shown.index("pool 34: a (13), b (13); unlabelled (8)")
        assert shown.index("test 6: a (3), b (3)") > start
        assert "8 of 40 rows are unlabelled: their label is 'NA' (8)." in shown
        assert "`data.missing_labels`" in shown
        assert "t.csv has a semicolon between cells, not a comma." in shown
        assert "Columns taken as categories, with one input each: c (3)." in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [(("--engine", "nan"), "--engine to be ray"), (("--gpus-per-worker", "1"), "beside --engine")],
)
def test_an_engine_that_the_command_would_refuse_is_refused(
    options: tuple[str, ...], said: str
) -> None:
    code, text = dry_run(*options)
    assert code == 2
    assert said in text
