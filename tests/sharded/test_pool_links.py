"""Folders of images on this machine: links, hidden files, and names that are no text."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from shards_to_write import pixels, png, write_parquet

from upslope.errors import DataError
from upslope.pools import open_pool


def test_links_to_images_elsewhere_are_read(tmp_path: Path) -> None:
    source, folder = tmp_path / "archive", tmp_path / "pool"
    source.mkdir()
    folder.mkdir()
    (source / "a.png").write_bytes(png(3))
    (folder / "a.png").symlink_to(source / "a.png")
    (folder / "b.png").symlink_to(source / "gone.png")
    pool = open_pool(str(folder), index=tmp_path / "index.arrow")
    with pool.open(pool.shards[0]) as rows:
        assert rows.ids == ("a.png", "b.png")
        np.testing.assert_array_equal(rows.inputs([0])[0], pixels(3).transpose(2, 0, 1))
        with pytest.raises(DataError, match=r"an image in .*b\.png but .* No such file"):
            rows.inputs([1])


def test_linked_folders_are_not_followed_and_told_as_such(tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(3))
    (folder / "up").symlink_to(folder)
    with pytest.warns(UserWarning, match=r": 1 linked folder \(links are not followed\)\."):
        pool = open_pool(str(folder), index=tmp_path / "index.arrow")
    with pool.open(pool.shards[0]) as rows:
        assert rows.ids == ("a.png",)


@pytest.mark.skipif(os.name != "posix", reason="names of files are bytes on POSIX alone")
def test_images_not_named_in_utf8_are_left_out_with_a_count(tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(3))
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(png(4))
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.warns(UserWarning, match=r": 1 file not named in UTF-8\."):
        pool = open_pool(str(folder), index=tmp_path / "index.arrow")
    with pool.open(pool.shards[0]) as rows:
        assert rows.ids == ("a.png",)


def test_a_pattern_takes_no_hidden_files(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "pool")
    first = sorted(folder.glob("*.parquet"))[0]
    (folder / f"._{first.name}").write_bytes(b"\0\5\x16\7")
    assert len(open_pool(f"{folder}/*.parquet")) == 3
    with pytest.raises(DataError, match="a Parquet file in"):
        open_pool(f"{folder}/._*.parquet")
