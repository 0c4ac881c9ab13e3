"""The benchmark of selection: its pool, its limits, its table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import selection  # noqa: E402
from selecting.pool import Size, made_up  # noqa: E402
from upslope.strategies import REGISTRY, build  # noqa: E402

SIZES = ["--candidates", "60", "--labelled", "20", "--features", "12", "--budget", "5"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "selection.py"), *SIZES, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.long
def test_measures_strategies_and_writes_the_table(tmp_path: Path) -> None:
    out = tmp_path / "folder" / "table.json"
    done = run("--strategies", "core-set,qbc", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "2 of 2  qbc ..." in done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in table[2:]] == ["core-set", "qbc"]
    assert "| qbc | committee* | 5 |" in table[3]
    record = json.loads(out.read_text())
    assert record["sizes"] == {"candidates": 60, "labelled": 20, "features": 12, "classes": 10}
    for row in record["rows"]:
        assert row["failed"] == ""
        assert row["cpu_s"] >= 0
        assert 50e6 < row["peak_bytes"] < 4 * 2**30


def test_what_needs_more_than_is_allowed_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        selection.main("random", 60, 20, 12, budget=5, memory=0.01)
    told = capsys.readouterr().out
    assert "| random | none | 5 |" in told
    assert "| over 0.01 GiB |" in told


def test_an_unknown_strategy_is_told() -> None:
    with pytest.raises(typer.BadParameter, match="bogus"):
        selection.main("core-set,bogus")


@pytest.mark.parametrize("name", [n for n, kind in REGISTRY.items() if not kind.sees_labels])
def test_the_pool_has_what_every_strategy_reads(name: str) -> None:
    strategy = build(name)
    size = Size(candidates=30, labelled=10, features=8, classes=3)
    pool, again = (made_up(strategy.needs, size) for _ in range(2))
    assert (len(pool), len(pool.labelled)) == (30, 10)
    for need in strategy.needs:
        assert torch.equal(pool.signal(need), again.signal(need))
        few = need.name == "predicted-classes"  # one of three
        assert len(pool.signal(need).unique(dim=0)) > (2 if few else 20)
        assert not need.labelled or len(pool.labelled_signal(need)) == 10


def test_the_pool_is_clustered_and_its_posteriors_are_right_for_most() -> None:
    needs = build("bait").needs
    pool = made_up(needs, Size(candidates=1500, labelled=500, features=64, classes=10))
    p, h = (pool.signal(need) for need in needs)
    distances = torch.cdist(h, h).fill_diagonal_(torch.inf)
    assert float(distances.amin(dim=1).mean()) < 0.7 * float(h.std(dim=0).norm() * 2**0.5)
    assert 0.05 < float((p.amax(dim=1) < 0.9).float().mean()) < 0.6
    assert len(p.argmax(dim=1).unique()) == 10
