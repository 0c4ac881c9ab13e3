"""Copies are named and asked once; pictures of phones are read, the right way up."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from pictures import make_squares
from PIL import Image
from test_label_command import run

from upslope.labelling.copies import NEAR, find_copies, near_copies
from upslope.labelling.project import Project
from upslope.labelling.ranking import Ranking
from upslope.labelling.samples import FolderImages, open_samples
from upslope.labelling.session import Session
from upslope.labelling.settings import ProjectSettings


def photograph(seed: int, size: int = 160) -> Image.Image:
    """A smooth picture unlike that of another seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return small.resize((size, size), Image.Resampling.BICUBIC)


def test_the_first_of_near_hashes_is_the_one_that_is_asked() -> None:
    rng = np.random.default_rng(0)
    bits = rng.random((600, 256)) < 0.5
    bits[300] = bits[2]
    bits[301] = bits[2]
    bits[301, :NEAR] ^= True
    bits[302] = bits[2]
    bits[302, : NEAR + 1] ^= True
    bits[303] = bits[301]  # near 301, which is a copy itself, and as near 2
    assert near_copies(bits) == {300: 2, 301: 2, 303: 2}


def test_the_same_picture_smaller_and_coarser_is_a_copy(tmp_path: Path) -> None:
    pytest.importorskip("imagehash", reason="needs the extra `label`: imagehash")
    for seed in range(6):
        photograph(seed).save(tmp_path / f"a{seed}.png")
    photograph(3).resize((80, 80)).save(tmp_path / "b-small.png")
    photograph(4).save(tmp_path / "c-coarse.jpg", quality=50)
    (tmp_path / "d-broken.png").write_bytes(b"none")
    samples = open_samples(str(tmp_path), ("x", "y"))
    assert find_copies(samples) == {"b-small.png": "a3.png", "c-coarse.jpg": "a4.png"}


def test_equal_rows_are_copies(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,text\na,one\nb,two\nc,one\n")
    assert find_copies(open_samples(str(tmp_path / "t.csv"), ("x", "y"))) == {"c": "a"}


def test_copies_are_asked_once_and_named(tmp_path: Path) -> None:
    make_squares(tmp_path / "squares", 12)
    settings = ProjectSettings(str(tmp_path / "squares"), ("red", "blue"))
    copies = {"square-007.png": "square-001.png", "square-009.png": "square-001.png"}
    with Project.create(tmp_path / "p", settings) as project:
        session = Session(project, open_samples(settings.data, settings.classes))
        session.take_ranking(Ranking([], "margin", copies=copies))
        events = project.state.events
        session.take_ranking(Ranking([], "margin", copies=copies))
        assert project.state.events == events
        assert session.status("me")["progress"]["remaining"] == 10
        asked = set()
        while questions := session.status("me")["questions"]:
            asked.add(questions[0]["id"])
            session.answer("me", {"sample": questions[0]["sample"], "label": "red"})
        assert asked == set(session.samples.ids) - copies.keys()
        assert session.status("me")["progress"]["copies"] == 2
    assert (
        "2 samples are copies of others, and asked once: square-007.png of square-001.png"
        in run("status", tmp_path / "p")
    )


def test_phones_pictures_are_read_the_right_way_up(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif", reason="needs the extra `label`: pillow-heif")
    picture = photograph(1, 96).crop((0, 0, 96, 64))
    heif.from_pillow(picture).save(tmp_path / "a.HEIC", quality=100)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter, clockwise
    picture.transpose(Image.Transpose.ROTATE_90).save(
        tmp_path / "b.jpg", exif=turned, quality=100, subsampling=0
    )
    samples = open_samples(str(tmp_path), ("x", "y"))
    assert isinstance(samples, FolderImages)
    assert samples.ids == ("a.HEIC", "b.jpg")
    expected = np.asarray(picture, dtype=np.int16)
    shown = samples.picture(0)
    assert shown.media_type == "image/jpeg"
    with Image.open(io.BytesIO(shown.data)) as image:
        assert image.size == (96, 64)
        assert np.abs(np.asarray(image, dtype=np.int16) - expected).mean() < 4
    one, other = (samples.pixels(i, 64).astype(np.int16) for i in (0, 1))
    assert np.abs(one - other).mean() < 10  # turned otherwise it would be 60
    (tmp_path / "a.HEIC").rename(tmp_path / "a.jpg")  # as some programs hand them on
    samples = open_samples(str(tmp_path), ("x", "y"))
    assert isinstance(samples, FolderImages)
    assert samples.picture(0).data[:3] == b"\xff\xd8\xff"
    assert samples.file_shown(0) is None


def test_heic_without_its_package_is_left_out_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_squares(tmp_path, 2)
    (tmp_path / "a.heic").write_bytes(b"x")
    monkeypatch.setattr("upslope.datasets.layout.reads_heic", lambda: False)
    monkeypatch.setattr("upslope.labelling.samples.reads_heic", lambda: False)
    samples = open_samples(str(tmp_path), ("x", "y"))
    assert len(samples.ids) == 2
    assert "pillow-heif" in samples.notes[-1]
