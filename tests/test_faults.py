"""The short form of the faults made on purpose."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))
from tests.faults.flips import flip_bits
from tests.faults.subject import go_on, stop_midway


@pytest.mark.slow
def test_a_flipped_bit_is_noticed_or_without_effect(tmp_path: Path) -> None:
    stop_midway(tmp_path / "run")
    outcomes = flip_bits(tmp_path / "run", go_on, 12, 0, tmp_path / "copy")
    assert outcomes["same"] + outcomes["refused"] == 12, outcomes
