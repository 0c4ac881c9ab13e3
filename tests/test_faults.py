"""The short form of the faults made on purpose: a few trials of each kind."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHORT = {"kills": 1, "errors": 1, "power": 1, "flips": 5}
LONGER = {"kills": 2, "errors": 2, "power": 2, "races": 1, "flips": 5}
"""Trials of each kind; of flips, how many at least."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="needs fork and POSIX signals"),
]


Outcomes = dict[str, Counter[str]]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((SHORT, "run"), id="short"),
        pytest.param((LONGER, "run,score"), id="longer", marks=pytest.mark.long),
    ],
)
def campaign(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, int], Outcomes]:
    """(trials of each kind, kind -> how often each outcome occurred), of one campaign in a process
    of its own."""
    trials, subjects = request.param
    out = tmp_path_factory.mktemp("faults")
    words = [word for kind, count in trials.items() for word in (f"--{kind}", str(count))]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *words, f"--subjects={subjects}", f"--out={out}"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    counts: Outcomes = {}
    for row in json.loads((out / "summary.json").read_text())["rows"]:
        figures = {name: value for name, value in row.items() if isinstance(value, int)}
        counts.setdefault(row["kind"], Counter()).update(figures)
    return trials, counts


@pytest.mark.parametrize("kind", LONGER)
def test_whatever_happens_is_mended_or_told(
    campaign: tuple[dict[str, int], Outcomes], kind: str
) -> None:
    trials, outcomes = campaign
    if kind not in trials:
        pytest.skip("in the long form alone")
    if kind in ("errors", "power") and sys.platform != "linux":
        pytest.skip("needs Linux")
    if kind == "flips":  # many in a trial
        assert outcomes[kind]["faults"] >= trials[kind]
    else:
        assert outcomes[kind]["trials"] == trials[kind]
    assert outcomes[kind]["same"] + outcomes[kind]["refused"] >= trials[kind]


def test_coverage_guides_inputs_of_a_reader(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="coverage-guided inputs need the package atheris")
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.faults.guided", "file, yaml", str(tmp_path),
            str(tmp_path / "find"), "1", "300",
        ],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "NEW" in done.stderr  # an input that reached other code than the valid file
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts["finds"] == []
    assert set(counts["outcomes"]) == {"same", "refused"}


def test_ctrl_c_ends_the_campaign_with_a_line_in_place_of_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.faults import campaign

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(campaign, "Campaign", interrupt)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["faults", "--out", str(tmp_path), "--kills", "1"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("tests.faults", run_name="__main__")
    assert end.value.code == 130
    assert capsys.readouterr().err.startswith("Stopped; the same command")
