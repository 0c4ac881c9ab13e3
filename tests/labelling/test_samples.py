"""What is shown to people: files as they are, nothing outside the folder, labels that are there."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from pictures import make_squares
from PIL import Image

from upslope.errors import DataError
from upslope.labelling.samples import DatasetImages, FolderImages, TableRows, open_samples
from upslope.labelling.settings import ReadingOptions


def test_a_folder_without_labels(tmp_path: Path) -> None:
    make_squares(tmp_path / "in" / "deep", 3)
    (tmp_path / "in" / "notes.txt").touch()
    samples = open_samples(str(tmp_path / "in"), ("red", "blue"))
    assert isinstance(samples, FolderImages)
    assert list(samples.ids) == [f"deep/square-00{i}.png" for i in range(3)]
    assert samples.labels == {}
    assert "notes.txt" in samples.notes[0]
    picture = samples.picture(1)
    assert picture.media_type == "image/png"
    assert picture.data == (tmp_path / "in" / "deep" / "square-001.png").read_bytes()
    assert samples.pixels(0, 32).shape == (3, 32, 32)


def test_folders_of_classes_are_labels_and_test_images_are_not_asked(tmp_path: Path) -> None:
    make_squares(tmp_path / "train" / "red", 2)
    make_squares(tmp_path / "test" / "blue", 2)
    make_squares(tmp_path / "unlabelled", 1)
    samples = open_samples(str(tmp_path), ("red", "blue"))
    assert samples.labels == {f"train/red/square-00{i}.png": "red" for i in range(2)}
    assert len(samples.ids) == 3
    assert any("split test" in note for note in samples.notes)


def test_a_folder_that_is_nearly_named_as_a_class_is_told(tmp_path: Path) -> None:
    for name in ("Cat", "u\u0308ber", "holiday"):  # as macOS unpacks an umlaut
        make_squares(tmp_path / name, 1)
    samples = open_samples(str(tmp_path), ("cat", "\u00fcber"))
    assert not samples.labels
    assert len(samples.notes) == 2
    assert "'Cat' have no label" in samples.notes[0]
    assert "the class '\u00fcber'" in samples.notes[1]
    assert not open_samples(str(tmp_path), ("dog", "bird")).notes


def test_names_that_look_the_same_are_told(tmp_path: Path) -> None:
    for name in ("caf\u00e9.png", "cafe\u0301.png", "tea.png"):
        Image.new("RGB", (9, 5)).save(tmp_path / name)
    samples = open_samples(str(tmp_path), ("a", "b"))
    if len(samples.ids) < 3:
        pytest.skip("needs a file system that tells the two spellings apart")
    assert "1 id looks like another" in samples.notes[0]


def test_other_kinds_of_files_become_png(tmp_path: Path) -> None:
    Image.new("RGB", (9, 5), (10, 200, 30)).save(tmp_path / "a.tif")
    Image.new("RGB", (9, 5), (10, 200, 30)).save(tmp_path / "b.ppm")
    samples = open_samples(str(tmp_path), ("a", "b"))
    for position in range(2):
        picture = samples.picture(position)  # type: ignore[union-attr]
        assert picture.media_type == "image/png"
        with Image.open(io.BytesIO(picture.data)) as image:
            assert image.size == (9, 5)
            assert image.getpixel((3, 3)) == (10, 200, 30)


def test_the_content_of_a_file_tells_its_kind_and_not_its_name(tmp_path: Path) -> None:
    image = Image.new("RGB", (9, 5), (10, 200, 30))
    image.save(tmp_path / "tiff.jpg", format="TIFF")  # which no browser shows
    image.save(tmp_path / "webp.png", format="WEBP")
    os.mkfifo(tmp_path / "zpipe.jpg")
    samples = open_samples(str(tmp_path), ("a", "b"))
    assert isinstance(samples, FolderImages)
    assert samples.picture(0).media_type == "image/png"
    assert samples.file_shown(0) is None
    assert samples.picture(1).media_type == "image/webp"
    assert samples.file_shown(1) == tmp_path / "webp.png"
    with pytest.raises(DataError, match="no plain file"):  # reading it would not end
        samples.picture(2)


def test_dark_16_bit_images_go_to_tools_as_people_should_see_them(tmp_path: Path) -> None:
    Image.fromarray(np.full((5, 9), 4095, dtype=np.uint16)).save(tmp_path / "deep.png")
    samples = open_samples(str(tmp_path), ("a", "b"), reading=ReadingOptions(white=4095))
    assert isinstance(samples, FolderImages)
    assert samples.file_shown(0) is None
    with Image.open(io.BytesIO(samples.picture(0).data)) as image:
        assert image.getextrema() == ((255, 255),) * 3


def test_a_link_out_of_the_folder_is_left_out_and_refused(tmp_path: Path) -> None:
    make_squares(tmp_path / "secret", 1)
    make_squares(tmp_path / "in", 1)
    links = {
        "link": "../secret/square-000.png", "nothing": "gone.png", "round": "round.png",
        "inside": "square-000.png",
    }  # fmt: skip
    for name, target in links.items():
        (tmp_path / "in" / f"{name}.png").symlink_to(target)
    samples = open_samples(str(tmp_path / "in"), ("a", "b"))
    assert isinstance(samples, FolderImages)
    assert list(samples.ids) == ["inside.png", "square-000.png"]
    assert "3 links to no file inside the folder: 'link.png'" in samples.notes[0]
    position = 0  # of a file that becomes a link while the page is open
    (tmp_path / "in" / "inside.png").unlink()
    (tmp_path / "in" / "inside.png").symlink_to("../secret/square-000.png")
    with pytest.raises(DataError, match="it is a link"):
        samples.picture(position)
    with pytest.raises(DataError, match="it is a link"):
        samples.pixels(position, 8)


def test_texts_and_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('id,text,label\na,"<b>good</b>, yes",good\nb,bad,\n')
    samples = open_samples(str(tmp_path / "t.csv"), ("good", "bad"))
    assert isinstance(samples, TableRows)
    assert samples.kind == "text"
    assert samples.content(0) == {"text": "<b>good</b>, yes"}
    assert samples.labels == {"a": "good"}
    (tmp_path / "r.csv").write_text("size,colour,verdict\n1,red,\n2,blue,no\n")
    rows = open_samples(str(tmp_path / "r.csv"), ("yes", "no"), "verdict")
    assert isinstance(rows, TableRows)
    assert rows.kind == "row"
    assert rows.content(1) == {"size": "2", "colour": "blue"}
    assert list(rows.labels.values()) == ["no"]


def test_digits_need_no_file() -> None:
    samples = open_samples("digits", tuple("0123456789"))
    assert isinstance(samples, DatasetImages)
    assert samples.labels == {}
    with Image.open(io.BytesIO(samples.picture(5).data)) as image:
        pixels = np.asarray(image)
    np.testing.assert_array_equal(pixels, samples.dataset.inputs([5])[0, 0].numpy())
    assert samples.pixels(5, 16).shape == (3, 16, 16)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="photoes"):
        open_samples("photoes", ("a", "b"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there are none"):
        open_samples(str(tmp_path / "empty"), ("a", "b"))
    (tmp_path / "empty" / "a.jxl").touch()
    with pytest.raises(DataError, match=r"It holds 1 file of the kind \.jxl"):
        open_samples(str(tmp_path / "empty"), ("a", "b"))
    make_squares(tmp_path / "in" / "a", 1)
    make_squares(tmp_path / "in" / "fox", 1)
    with pytest.raises(DataError, match="'fox'"):
        open_samples(str(tmp_path / "in"), ("a", "b"))
    (tmp_path / "t.csv").write_text("text,label\nx,fox\ny,a\n")
    with pytest.raises(DataError, match="'fox'"):
        open_samples(str(tmp_path / "t.csv"), ("a", "b"))
