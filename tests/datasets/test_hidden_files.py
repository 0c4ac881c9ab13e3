"""Hidden files that macOS writes beside others (._a.csv) are no files of a data set."""

import json

import numpy as np
import pytest
from PIL import Image

from upslope import datasets

APPLE_DOUBLE = b"\0\5\x16\7\0\2\0\0Mac OS X"
X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)


def write_table(root):
    rows = [f"{x[0]:.4f},{'ab'[i % 2]}" for i, x in enumerate(X)]
    (root / "a.csv").write_text("\n".join(["x,label", *rows]))
    return root / "a.csv"


def write_npz(root):
    y = np.arange(20) % 2
    np.savez(root / "a.npz", x_train=X, y_train=y, x_test=X + 1, y_test=y)
    return root / "a.npz"


def write_coco(root):
    (root / "images").mkdir()
    images, annotations = [], []
    for i in range(10):
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(root / f"images/{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 8, "width": 8})
        annotations.append({"id": i, "image_id": i, "category_id": i % 2, "bbox": [0, 0, 4, 4]})
    categories = [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "a.json").write_text(json.dumps(content))
    return root / "a.json"


@pytest.mark.parametrize(
    ("name", "write"), [("table", write_table), ("npz", write_npz), ("coco", write_coco)]
)
def test_the_one_file_of_a_folder_is_read_beside_a_hidden_one(name, write, tmp_path):
    path = write(tmp_path)
    (tmp_path / f"._{path.name}").write_bytes(APPLE_DOUBLE)
    assert datasets.load(name, tmp_path).pool.classes in (("a", "b"), ("0", "1"))


def test_a_folder_of_masks_with_a_hidden_file_has_no_mask_yet(tmp_path):
    (tmp_path / "classes.csv").write_text("name,id\na,0\nb,1\n")
    (tmp_path / "images/unlabelled").mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(tmp_path / f"images/unlabelled/{i}.png")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/.DS_Store").write_bytes(b"\0")
    assert len(datasets.load("mask-folder", tmp_path).pool) == 3
