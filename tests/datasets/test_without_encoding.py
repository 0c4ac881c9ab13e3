"""Readers without the option `encoding` do not advise it where a text is not UTF-8."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from upslope import datasets
from upslope.errors import DataError

LATIN_1 = "caf\u00e9".encode("latin-1")


def webdataset(root):
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    with tarfile.open(root / "a.tar", "w") as archive:
        for name, content in (("0.png", picture.getvalue()), ("0.cls", LATIN_1)):
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))


def npz(root):
    x, y = np.zeros((4, 3), np.float32), np.array([0, 1, 0, 1])
    names = np.array([LATIN_1, b"b"])
    np.savez(root / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y, classes=names)


def voc(root):
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for name in ("train", "val"):
        (root / f"ImageSets/Segmentation/{name}.txt").write_bytes(LATIN_1)


@pytest.mark.parametrize("write", [webdataset, npz, voc])
def test_the_advice_can_be_followed(write, tmp_path):
    write(tmp_path)
    assert "encoding" not in datasets.options(write.__name__)
    told = r"in UTF-8 but byte 0xe9 at offset 3, line 1, is not\. Write it again in UTF-8\.$"
    with pytest.raises(DataError, match=told):
        datasets.load(write.__name__, tmp_path)
