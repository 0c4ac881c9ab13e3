"""Files that are not there, or are folders, are told with what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from upslope.cryoet.particles import read_particles
from upslope.cryoet.star import read_star
from upslope.datasets.decoding import read_text
from upslope.errors import DataError


@pytest.mark.parametrize(
    ("read", "wanted", "name"),
    [
        (read_text, "a text file", "a.csv"),
        (read_star, "a STAR file", "a.star"),
        (read_particles, "a table", "a.csv"),
        (read_particles, "a STAR file", "a.star"),
    ],
)
def test_the_error_of_a_file_says_what_to_do(
    read: Callable[[Path], object], wanted: str, name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    with pytest.raises(DataError, match=rf"{wanted} in .*{name} but there is no .*Check the path"):
        read(path)
    path.mkdir()
    with pytest.raises(DataError, match=rf"{wanted} in .*{name} but it is a folder\. Name a file"):
        read(path)
