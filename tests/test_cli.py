from __future__ import annotations

import importlib
import io
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import upslope.cli
from upslope import display, models
from upslope.cli import app
from upslope.display import Lines, Share, about
from upslope.progress import Progress

QUICK = [
    *("-s", "data.limit=120", "-s", "data.test_limit=50", "-s", "model={name: mlp, hidden: 16}"),
    *("-s", "training.epochs=2", "-s", "experiment.cycles=2", "--device", "cpu"),
]


def call(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="upslope")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    "command", [(), ("run",), ("compare",), ("score",), ("predict",), ("report",), ("list",)]
)
def test_help_has_an_example(command: tuple[str, ...]) -> None:
    code, out, _ = call(*command, "--help")
    assert code == 0
    assert "upslope " in out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, upslope.cli\n"
        "try: upslope.cli.app(['--help'], prog_name='upslope')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'matplotlib', 'sklearn', 'scipy', 'numpy', 'pyarrow', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "compare" in done.stdout


def test_compare_end_to_end_and_again(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    command = ["compare", "--strategies", "random,margin", "--seeds", "2", "--full-data", "1"]
    code, out, err = call(*command, "--out", folder, *QUICK)
    assert code == 0, err
    assert "margin" in out
    assert (folder / "report" / "report.html").is_file()
    first = json.loads((folder / "report" / "results.json").read_text())
    assert [s["strategy"] for s in first["strategies"]] == ["random", "margin"]
    assert first["full_data"] is not None
    assert first["config"]["training"]["epochs"] == 2
    assert "seed" not in first["config"]["experiment"]

    code, _, err = call(*command, "--out", folder, *QUICK)  # nothing is left to do
    assert code == 0, err
    assert json.loads((folder / "report" / "results.json").read_text()) == first

    code, out, err = call("report", folder, "--out", tmp_path / "r", "--reference", "margin")
    assert code == 0, err
    again = json.loads((tmp_path / "r" / "results.json").read_text())
    assert again["reference"] == "margin"

    code, _, err = call(*command, "--out", folder, *QUICK, "-s", "training.epochs=3")
    assert code == 6
    assert "epochs" in err


def test_dry_run_trains_nothing(tmp_path: Path) -> None:
    code, out, _ = call("run", "--dry-run", "--out", tmp_path / "runs")
    assert code == 0
    assert "140 210 280" in out
    assert not (tmp_path / "runs").exists()


def test_errors_go_to_stderr_with_their_code_and_no_traceback(tmp_path: Path) -> None:
    code, out, err = call("compare", "-s", "training.epoch=1", "-s", "device=tpu")
    assert code == 2
    assert out == ""
    assert "training.epoch: unknown key; did you mean `epochs`?" in err
    assert "device: expected one of" in err
    assert "Traceback" not in err
    assert call("report", tmp_path)[0] == 6
    assert call("list", "nothing")[0] == 2


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("upslope.comparison.compare", interrupted)
    code, _, err = call("run", "--out", tmp_path, *QUICK)
    assert code == 130
    assert "Run the same command again" in err


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_score_writes_one_row_a_sample(tmp_path: Path, ending: str) -> None:
    torch.manual_seed(0)
    model = models.build("mlp", num_classes=10, input_shape=(1, 8, 8), hidden=16)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    target = tmp_path / f"scores.{ending}"
    code, out, err = call(
        *("score", tmp_path / "w.safetensors", "--out", target, "--scores", "margin,entropy"),
        *("-s", "data.limit=120", "-s", "model={name: mlp, hidden: 16}", "--device", "cpu"),
    )
    assert code == 0, err
    assert "120 samples scored" in out
    if ending == "parquet":
        table = pq.read_table(target)
        assert table.column_names == ["id", "margin", "entropy"]
        assert table.num_rows == 120
    else:
        lines = target.read_text().splitlines()
        assert lines[0] == "id,margin,entropy"
        assert len(lines) == 121


@pytest.mark.filterwarnings("default:.*left out")
def test_score_leaves_out_what_cannot_be_read_where_asked_to(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("L", (8, 8), 40 * i).save(tmp_path / "images" / name / f"{i}.png")
    torn = tmp_path / "images" / "unlabelled" / "torn.png"
    torn.parent.mkdir()
    torn.write_bytes(b"not an image")
    model = models.build("mlp", num_classes=2, input_shape=(1, 8, 8), hidden=16)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    options = [
        *("score", tmp_path / "w.safetensors", "--out", tmp_path / "s.csv", "--device", "cpu"),
        *("-s", "data={name: folder, size: 8, mode: L}", "-s", f"data.root={tmp_path / 'images'}"),
        *("-s", "model={name: mlp, hidden: 16}", "-s", "data.mean=[0.3]", "-s", "data.std=[0.2]"),
    ]
    code, _, err = call(*options)
    assert code == 3
    assert "torn.png" in err
    assert not (tmp_path / "s.csv").exists()
    code, out, err = call(*options, "--skip-corrupt")
    assert code == 0, err
    assert "torn.png" in err
    assert ".py:" not in err
    assert "10 samples scored" in out


def fixed(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """A network of five classes, whatever it is asked for."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))


@pytest.mark.parametrize("name", ["{name: mlp, hidden: 16}", f"{__name__}:fixed"])
def test_score_takes_a_plain_folder_and_the_classes_of_the_checkpoint(
    tmp_path: Path, name: str
) -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (6, 8, 8), dtype=torch.uint8)
    images = tmp_path / "images"
    (images / "more").mkdir(parents=True)
    ids = [f"{i}.png" for i in range(4)] + ["more/4.png", "more/5.png"]
    for id_, grey in zip(ids, pixels, strict=True):
        Image.fromarray(grey.numpy()).save(images / id_)
    own = name.endswith("fixed")
    shape = (1, 8, 8)
    model = (
        fixed(2, shape) if own else models.build("mlp", num_classes=5, input_shape=shape, hidden=16)
    )
    torch.save(model.state_dict(), tmp_path / "w.pt")
    code, out, err = call(
        *("score", tmp_path / "w.pt", "--out", tmp_path / "s.csv", "--scores", "entropy"),
        *("-s", "data={name: folder, mode: L, mean: [0.4], std: [0.2]}", "--device", "cpu"),
        *("-s", f"data.root={images}", "-s", f"model={name}"),
    )
    assert code == 0, err
    assert "6 samples scored" in out
    rows = [line.split(",") for line in (tmp_path / "s.csv").read_text().splitlines()[1:]]
    assert [row[0] for row in rows] == ids
    inputs = (pixels.unsqueeze(1).float() / 255 - 0.4) / 0.2
    p = model.eval()(inputs).detach().double().softmax(1)
    expected = -(p * p.log()).sum(1)
    got = torch.tensor([float(row[1]) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_score_refuses_what_has_no_score_and_another_network(tmp_path: Path) -> None:
    code, _, err = call("score", tmp_path / "w.safetensors", "--scores", "random")
    assert code == 2
    assert "score each sample by itself" in err
    model = models.build("mlp", num_classes=10, input_shape=(1, 8, 8), hidden=8)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    code, _, err = call("score", tmp_path / "w.safetensors", "-o", tmp_path / "s.csv")
    assert code == 4
    assert "missing" in err


@pytest.mark.parametrize(
    "what", ["strategies", "signals", "models", "datasets", "tasks", "settings", "configs"]
)
def test_list_names_everything(what: str) -> None:
    code, out, _ = call("list", what)
    assert code == 0
    expected = {
        "strategies": "entropy-gradnorm",
        "signals": "gradnorm",
        "models": "resnet18-cifar",
        "datasets": "fashion-mnist",
        "tasks": "classification",
        "settings": "training",
        "configs": "fashion-mnist-all",
    }
    assert expected[what] in out
    assert len(out.splitlines()) < 45  # a screen


def test_list_shows_one_entry_in_full_whatever_table_it_is_in() -> None:
    code, out, _ = call("list", "egl")
    assert code == 0
    assert "egl  strategy" in out
    assert "egl  signal" in out
    assert "Settles, Craven and Ray 2007" in out
    assert "share=1.0" in out
    assert "margin" not in out
    code, out, _ = call("list", "fashion-mnist")
    assert "fashion-mnist  data set" in out
    assert "limit: 4000" in out  # the configuration of that name, as it is written
    code, _, err = call("list", "mragin")
    assert code == 2
    assert "did you mean `margin`?\n" in err


@pytest.mark.parametrize("section", ["experiment", "training"])
def test_list_shows_every_key_that_a_section_of_the_configuration_takes(section: str) -> None:
    code, out, _ = call("list", section)
    assert code == 0
    shown = re.findall(r"^    (\w+)=", out, re.MULTILINE)
    _, _, err = call("run", "-s", f"{section}.nothing_like_it=1", "--dry-run")
    taken = re.findall(r"`(\w+)`", err)
    assert sorted(shown) == sorted(set(taken) - {"seed"})  # `seeds`, for all strategies alike


@pytest.mark.parametrize("table", ["strategies", "signals", "models", "datasets", "tasks"])
def test_list_writes_types_without_their_annotations(table: str) -> None:
    entries = importlib.import_module(f"upslope.{table}").describe()
    types = [option.type for entry in entries for option in entry.options]
    assert not [name for name in types if "Annotated" in name or "FieldInfo" in name]


def test_a_configuration_that_ships_is_named_without_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call("compare", "tabular", "--dry-run")
    assert code == 0, err
    assert "breast-cancer" in out
    assert str(Path("runs") / "tabular") in out
    code, _, err = call("compare", "tabula", "--dry-run")
    assert code == 2
    assert "did you mean `tabular`" in err
    (tmp_path / "tabular").mkdir()  # a folder of data is no configuration
    assert call("compare", "tabular", "--dry-run")[0] == 0


def test_version() -> None:
    assert call("--version")[1].startswith("upslope 0.")


def test_plain_lines_come_at_sensible_intervals() -> None:
    now, lines = [0.0], []
    watch = Lines(2, lines.append, clock=lambda: now[0])
    for cycle in range(4):
        now[0] += 6.0
        watch(Progress("train", 1, 9, run="random/seed-0", cycle=cycle, cycles=4))
        watch(
            Progress(
                "cycle", cycle + 1, 4, {"accuracy": 0.5}, "random/seed-0", cycle, 4, 10 * cycle
            )
        )
    assert len(lines) == 2  # at 12 and 24 seconds
    assert "accuracy 50.0%" in lines[0]
    assert lines[1].startswith(" 50%")
    assert "about 24 s left" in lines[1]


def test_long_work_without_a_terminal_says_now_and_then_what_it_does() -> None:
    now, lines = [0.0], []
    watch = Lines(2, lines.append, clock=lambda: now[0])
    for _ in range(3):
        watch(Progress("read", 500, 9000))
        now[0] += 14.0
    assert lines == []
    watch.remind()
    assert lines == ["  0%  read 500 of 9,000 images"]
    watch.remind()
    assert len(lines) == 1
    now[0] += 10.0
    figures = {"accuracy": 0.5}
    watch(Progress("cycle", 1, 4, figures, "random/seed-0", cycle=0, cycles=4, labelled=10))
    assert len(lines) == 2  # a finished cycle need not wait for half a minute
    watch(Progress("select", 0, 200, run="random/seed-0", cycle=1, cycles=4, labelled=10))
    now[0] += 40.0
    watch.remind()  # as the thread does, while a selection reports nothing
    assert lines[2:] == [" 12%  random/seed-0  cycle 2 of 4  10 labels: select 0 of 200"]


def test_a_thread_reminds_while_nothing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "REMINDER_SECONDS", 0.05)
    monkeypatch.setattr(display, "_LOOK_SECONDS", 0.01)
    screen = io.StringIO()
    monkeypatch.setattr(display, "err", Console(file=screen, width=80))
    with display.watching(1) as observer:
        observer(Progress("select", 0, 200))
        deadline = time.monotonic() + 20
        while "select 0 of 200" not in screen.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert screen.getvalue().startswith("  0%  select 0 of 200\n")
    assert "upslope-reminder" not in [thread.name for thread in threading.enumerate()]


def test_share_counts_runs_that_were_finished_before() -> None:
    share = Share(4)
    share.update(Progress("run", 1, 4, run="a"))
    assert share.update(Progress("cycle", 1, 2, run="b", cycle=0, cycles=2)) == pytest.approx(1.5)
    assert about(Progress("cycle", 1, 2, {}, "b", 0, 2, 9)) == "b  cycle 1 of 2  9 labels"


def test_run_takes_the_one_strategy_of_its_configuration(tmp_path: Path) -> None:
    def planned(*arguments: str | Path) -> tuple[int, str, str]:
        code, out, err = call("run", *arguments, "--dry-run", *QUICK)
        names = [line.split()[1:] for line in out.splitlines() if line.startswith("strategies")]
        return code, " ".join(names[0]) if names else "", err

    file = tmp_path / "c.yaml"
    assert planned()[:2] == (0, "margin")
    file.write_text("strategies: [{name: gradnorm-diverse, label: mine}]\n")
    assert planned(file)[:2] == (0, "mine")
    assert planned(file, "--strategy", "random")[:2] == (0, "random")
    file.write_text("training: {epochs: 2}\n")
    assert planned(file)[:2] == (0, "margin")
    assert planned("-s", "strategies=egl")[:2] == (0, "egl")
    file.write_text("strategies: [random, egl]\n")
    assert planned(file, "--strategy", "egl")[:2] == (0, "egl")
    for several in ((file,), ("-s", "strategies=all"), ("--strategy", "random,egl"), ("digits",)):
        code, _, err = planned(*several)
        assert code == 2
        assert "one strategy" in err
        assert "`upslope compare`, which runs them all" in err


def test_ctrl_c_before_a_command_begins_is_a_stop(monkeypatch):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr("upslope.cli.app", interrupted)
    with pytest.raises(SystemExit) as stopped:
        upslope.cli.main()
    assert stopped.value.code == 130


def test_the_command_is_named_where_a_function_is_asked_for() -> None:
    result = CliRunner().invoke(app, ["query", "model.pt"], prog_name="upslope")
    assert result.exit_code == 2
    assert "its command is `upslope select`" in " ".join(result.output.split())


@pytest.mark.parametrize(
    "arguments",
    [("run", "--dry-run", "--out", ""), ("status", ""), ("run", "--dry-run", "--out="),
     ("label", "init", "", "--data", "digits")],
)  # fmt: skip
def test_an_empty_text_is_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, told = call(*arguments)
    assert code == 2
    assert "an empty text" in told
    assert not [*tmp_path.iterdir()]
