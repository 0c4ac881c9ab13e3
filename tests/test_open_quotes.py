"""A quote that nobody closes swallows the rows behind it: readers of CSV refuse it by name."""

from pathlib import Path

import pytest
from PIL import Image

from upslope import datasets
from upslope.cryoet.particles import read_particles
from upslope.datasets.mask_classes import read_mask_classes
from upslope.errors import UpslopeError
from upslope.experiment.sheet_rows import split_rows
from upslope.labelling.imported_labels import read_label_table
from upslope.strategies.costs import read_costs


def images(root):
    for i in range(8):
        Image.new("RGB", (4, 4), (i, i, i)).save(root / f"{i}.png")
    return [f"{i}.png,{'ab'[i % 2]},x" for i in range(8)]


def test_a_manifest(tmp_path):
    rows = images(tmp_path)
    rows[4] = '4.png,a,"x'
    (tmp_path / "m.csv").write_text("path,label,note\n" + "\n".join(rows) + "\n")
    with pytest.raises(UpslopeError, match=r"m\.csv but reading it failed"):
        datasets.load("folder", tmp_path, manifest="m.csv")
    rows[4] = "4.png,a,x"
    (tmp_path / "m.csv").write_text("path,label,note\n" + "\n".join(rows) + "\n")
    assert "Left out 1 column of m.csv: 'note'." in (
        datasets.load("folder", tmp_path, manifest="m.csv").notes
    )


@pytest.mark.parametrize(
    ("read", "header", "row", "open_row"),
    [
        (
            lambda path: read_label_table(path, lambda *_: False),
            "id,label,note",
            "a,cat,x",
            'a,cat,"x',
        ),
        (lambda path: read_costs(str(path)), "id,cost,note", "{i},1,x", '{i},1,"x'),
        (read_mask_classes, "id,name,note", "{i},c{i},x", '{i},c{i},"x'),
        (read_particles, "tomogram,x,y,z,note", "t.mrc,{i},8,8,x", 't.mrc,{i},8,8,"x'),
        (
            lambda path: split_rows(path, path.read_text(), ("id", "label")),
            "id,label",
            "a,x",
            'a,"x',
        ),
    ],
)
def test_other_tables(tmp_path: Path, read, header, row, open_row) -> None:
    (tmp_path / "t.mrc").write_bytes(b"")
    lines = [row.format(i=i) for i in range(6)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join([header, *lines, ""]))
    read(path)
    lines[3] = open_row.format(i=3)
    path.write_text("\n".join([header, *lines, ""]))
    with pytest.raises(UpslopeError, match=r"t\.csv"):
        read(path)
