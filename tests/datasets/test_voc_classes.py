"""Pascal VOC as a format: classes from XML, masks with classes of one's own, hostile XML."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from upslope import datasets
from upslope.datasets.voc_objects import read_objects
from upslope.errors import DataError


def xml(*names, file="", difficult=0):
    objects = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        "<part><name>head</name></part></object>"
        for name in names
    )
    return f"<annotation><filename>{file}</filename>{objects}</annotation>"


def write(root, objects, kind="Main", train=2):
    ids = list(objects)
    lists = root / "ImageSets" / kind
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(ids[:train]))
    (lists / "val.txt").write_text("\n".join(ids[train:]))
    for folder in ("JPEGImages", "Annotations", "SegmentationClass"):
        (root / folder).mkdir(exist_ok=True)
    for k, (id_, content) in enumerate(objects.items()):
        Image.fromarray(np.full((6, 8, 3), 20 * k, np.uint8)).save(root / f"JPEGImages/{id_}.png")
        (root / f"Annotations/{id_}.xml").write_text(content)
    return root


def load(root, **options):
    return datasets.load("voc", root, target="classes", size=6, **options)


def test_classes_are_those_of_the_objects(tmp_path):
    root = write(
        tmp_path, {"a": xml("cat", "cat"), "b": xml("dog"), "c": xml("dog"), "d": xml("cat")}
    )
    splits = load(root)
    names = splits.pool.classes
    assert len(names) == 20
    assert [names[i] for i in splits.pool.targets([0, 1])] == ["cat", "dog"]
    assert [names[i] for i in splits.test.targets([0, 1])] == ["dog", "cat"]
    assert list(splits.pool.ids) == ["a.png", "b.png"]


@pytest.mark.parametrize("word", ["1", "true", "True"])
def test_what_is_ambiguous_is_refused_or_counted(tmp_path, word):
    objects = {
        "a": xml("cat", "dog"),
        "b": xml("dog", difficult=word),
        "c": xml("cat", file="x.jpg"),
        "d": xml(),
        "e": xml("dog", file="e.png"),
    }
    root = write(tmp_path, objects, train=4)
    with pytest.raises(DataError, match=r"1 image of 5 .*'a\.png' with cat, dog"):
        load(root)
    splits = load(root, several="skip")
    assert list(splits.pool.ids) == ["b.png", "c.png", "d.png"]
    assert splits.pool.labels[2] == -1
    told = " ".join(splits.notes)
    assert "1 object is marked as difficult, first in 'b.png'" in told
    assert "1 of 5 annotations name another file" in told
    with pytest.raises(DataError, match=r"\['dog'\]"):
        load(root, several="skip", classes=["cat", "cow"])


def test_masks_may_have_classes_of_ones_own(tmp_path):
    root = write(tmp_path, {"a": xml(), "b": xml(), "c": xml()}, kind="Segmentation")
    for id_ in "abc":
        mask = Image.fromarray(np.full((6, 8), 1, np.uint8), "L")
        mask.putpixel((3, 3), 255)
        mask.save(root / f"SegmentationClass/{id_}.png")
    splits = datasets.load("voc", root, classes=["ground", "cell"], size=6)
    assert splits.pool.classes == ("ground", "cell")
    assert splits.pool.targets([0]).unique().tolist() == [1, 255]


BOMB = """<!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>
<annotation><object><name>&b;</name></object></annotation>"""
FILE = """<!DOCTYPE annotation [<!ENTITY a SYSTEM "file:///etc/passwd">]>
<annotation><object><name>&a;</name></object></annotation>"""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (BOMB, "document type"),
        (FILE, "document type"),
        ("<annotation>" + "<object>" * 100_000, "nested too deep"),
        ("<annotation><object></object></annotation>", "1 objects and 0 names"),
        ("<annotation><object><name> </name></object></annotation>", "1 objects and 0 names"),
        ("<html></html>", "begins with <html>"),
        ("<annotation>", "no element"),
        ("", "no element"),
        ("<annotation>&lol;</annotation>", "undefined entity"),
    ],
)
def test_xml_that_is_hostile_or_none_is_refused_by_its_file(tmp_path, content, reason):
    path = tmp_path / "a.xml"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"a\.xml but .*{reason}"):
        read_objects(path)


def test_a_list_that_names_paths_or_images_twice_is_refused(tmp_path):
    root = write(tmp_path, {"a": xml("cat"), "b": xml("dog"), "c": xml("dog")})
    (root / "ImageSets/Main/val.txt").write_text("a\nc")
    with pytest.raises(DataError, match="'a' is listed twice"):
        load(root)
    (root / "ImageSets/Main/val.txt").write_text("../c")
    with pytest.raises(DataError, match=r"'\.\./c', a path"):
        load(root)


@pytest.mark.parametrize("target", ["classes", "masks"])
def test_images_in_no_list_other_years_and_images_in_both_lists(tmp_path, target):
    kind = "Main" if target == "classes" else "Segmentation"
    homes = [tmp_path / f"VOCdevkit/VOC{year}" for year in (2007, 2012)]
    for home in homes:
        write(home, {i: xml("cat" if i in "ac" else "dog") for i in "abcde"}, kind=kind)
        for i in "abcde":
            Image.fromarray(np.zeros((6, 8), np.uint8)).save(home / f"SegmentationClass/{i}.png")
    lists = homes[1] / "ImageSets" / kind
    (lists / "val.txt").write_text("c\nd")
    notes = datasets.load("voc", tmp_path, target=target, size=6).notes
    assert "Left out 1 image that neither list names: 'e.png'." in notes
    assert "Left out 'VOC2007': VOC2012 is read." in notes
    (lists / "val.txt").write_text("a\nd")
    with pytest.raises(DataError, match="in one list, once, but 'a' is listed twice"):
        datasets.load("voc", tmp_path, target=target, size=6)


def test_names_of_images_may_hold_spaces(tmp_path):
    names = ["my cat", "my dog", "my other dog", "cat"]
    root = write(tmp_path, {name: xml("dog" if "dog" in name else "cat") for name in names})
    splits = load(root)
    assert splits.pool.ids == ("my cat.png", "my dog.png")
    assert splits.test.ids == ("my other dog.png", "cat.png")
