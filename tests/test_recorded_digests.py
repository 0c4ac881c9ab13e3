"""Every file whose digest a ledger holds is compared with it by all that read it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from upslope.cli import app
from upslope.experiment.verify import recorded_files, repair_run, verify_run
from upslope.ledger import read_run

CYCLES = 2
FILES = [f"models/cycle-{cycle}.{kind}" for cycle in range(CYCLES) for kind in
         ("safetensors", "companion")]  # fmt: skip
LAST = CYCLES - 1
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


def upslope(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in arguments], prog_name="upslope")
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def run(folder: Path, cycles: int) -> str:
    values = {
        "data.limit": 80, "data.test_limit": 30, "model.width": 4, "training.epochs": 2,
        "training.batch_size": 16, "experiment.initial": 20, "experiment.budget": 10,
        "experiment.keep_models": "all", "experiment.cycles": cycles,
    }  # fmt: skip
    words = [word for key, value in values.items() for word in ("-s", f"{key}={value}")]
    return upslope(
        "run", "--strategy", "ll4al", "--seeds", "[0]", "--device", "cpu", "--out", folder, *words
    )


def digests(folder: Path) -> list[str]:
    return [sha for _, sha in recorded_files(folder / "ll4al/seed-0/ledger.sqlite").values()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a strategy whose network has a companion, with the files of all its cycles."""
    folder = tmp_path_factory.mktemp("finished") / "runs"
    run(folder, CYCLES)
    recorded = recorded_files(folder / "ll4al/seed-0/ledger.sqlite")
    assert sorted(recorded) == sorted(FILES)
    return folder


@pytest.fixture(scope="module")
def extended(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The digests of the run gone on with, undisturbed."""
    folder = tmp_path_factory.mktemp("extended") / "runs"
    shutil.copytree(finished, folder)
    run(folder, CYCLES + 1)
    return digests(folder)


@pytest.fixture(params=FILES)
def flipped(finished: Path, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, str]:
    """A copy of the run with one bit of one file flipped, and the name of that file."""
    shutil.copytree(finished, tmp_path / "runs")
    file = tmp_path / "runs" / "ll4al" / "seed-0" / request.param
    data = bytearray(file.read_bytes())
    data[-3] ^= 1  # in a weight, which then is another number
    file.write_bytes(data)
    return tmp_path / "runs", request.param


def test_verify_and_repair_name_it_or_leave_it(flipped: tuple[Path, str], tmp_path: Path) -> None:
    folder, name = flipped
    problems = verify_run(folder / "ll4al/seed-0").problems
    assert [name in problem for problem in problems] == [True]
    saved = repair_run(folder / "ll4al/seed-0", tmp_path / "saved").files
    assert sorted(saved) == sorted(set(FILES) - {name})


def test_the_run_goes_on_as_undisturbed(flipped: tuple[Path, str], extended: list[str]) -> None:
    folder, name = flipped
    said = run(folder, CYCLES + 1)
    assert digests(folder) == extended
    needed = Path(name).stem == f"cycle-{LAST}"  # the network that selects for the next cycle
    assert (f"{name} is damaged" in said) == needed


def test_what_reads_a_network_refuses_it(flipped: tuple[Path, str], tmp_path: Path) -> None:
    folder, name = flipped
    network = folder / "ll4al/seed-0" / name
    if network.suffix != ".safetensors":
        pytest.skip("companions are read by the run alone")
    last = network.stem == f"cycle-{LAST}"
    for words in (
        ("score", "--scores", "margin", "--out"), ("predict", "--out"),
        ("select", "--strategy", "margin", "-k", 5, "-o"),
    ):  # fmt: skip
        out = tmp_path / f"{words[0]}.csv"
        said = upslope(words[0], network, *words[1:], out, code=4)
        assert "content has changed since" in said
        upslope(words[0], folder, *words[1:], out, code=4 if last else 0)  # the run's last network
    assert len(read_run(folder / "ll4al/seed-0").cycles) == CYCLES
