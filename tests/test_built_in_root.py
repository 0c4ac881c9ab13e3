"""A place for files is refused where the data set reads none, and not passed over."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from upslope.cli import app
from upslope.datasets import load, load_to_score, recorded_root, root_of
from upslope.errors import ConfigError

SMALL = ["-s", "experiment.cycles=1", "-s", "experiment.initial=20", "-s", "training.epochs=1"]


def call(*arguments: str) -> tuple[int, str]:
    ended = CliRunner().invoke(app, list(arguments), prog_name="upslope")
    return ended.exit_code, " ".join(ended.output.split())


@pytest.mark.parametrize("name", ["digits", "breast-cancer", "diabetes"])
def test_data_sets_of_scikit_learn_take_no_root(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = f"data.root: expected none for {name}, .* but got .*{tmp_path.name}.*Leave it out"
    for reader in (load, load_to_score):
        with pytest.raises(ConfigError, match=words):
            reader(name, tmp_path)
    monkeypatch.setenv("UPSLOPE_DATA", str(tmp_path))  # of all data sets, and meant for others
    assert len(load(name).pool)
    assert root_of(name, None) is None


def test_a_run_of_an_earlier_version_may_have_recorded_one() -> None:
    assert recorded_root({"data": {"name": "digits"}}, {"root": "/data"}) is None
    assert recorded_root({"data": {"name": "folder"}}, {"root": "/data"}) == "/data"
    assert recorded_root({}, {"root": "/data"}) == "/data"


def test_another_pool_is_not_taken_for_the_digits_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the file held, the digits were chosen from, and their predictions written."""
    monkeypatch.chdir(tmp_path)
    assert call("run", "--strategy", "margin", *SMALL, "--out", "run")[0] == 0
    Path("pool.npz").write_bytes(b"no arrays")
    for command in (
        ("select", "run", "--data", "pool.npz", "--out", "a.csv"),
        ("predict", "run", "-s", "data.root=pool.npz", "--out", "a.csv"),
        ("score", "run", "-s", "data.root=pool.npz", "--scores", "margin", "--out", "a.csv"),
        ("run", "-s", "data.root=pool.npz", "--out", "other"),
        ("run", "-s", "data.root=pool.npz", "--out", "other", "--dry-run"),
    ):
        code, told = call(*command)
        assert code == 2, told
        assert "data.root: expected none for digits" in told
        assert not Path("a.csv").exists()
        assert not Path("other").exists()
