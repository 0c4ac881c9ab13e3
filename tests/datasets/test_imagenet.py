"""ImageNet as its archives unpack, in small: a thousand folders of one image each."""

import pickle
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from upslope import datasets
from upslope.errors import DataError

WNIDS = [f"n{i:08d}" for i in range(1000, 3000, 2)]
NUMBERS = np.random.default_rng(0).permutation(1000) + 1
"""ILSVRC2012_ID of each wnid: the development kit has an order of its own."""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    for i, wnid in enumerate(WNIDS):
        (root / "train" / wnid).mkdir(parents=True)
        level = (i % 256, i // 256 * 60, 0)
        Image.new("RGB", (9, 8), level).save(root / "train" / wnid / f"{wnid}_1.JPEG", "JPEG")
    (root / "val").mkdir()
    for i in range(6):
        Image.new("RGB", (8, 12), (40 * i,) * 3).save(
            root / "val" / f"ILSVRC2012_val_{i + 1:08d}.JPEG", "JPEG"
        )
    kit = root / "ILSVRC2012_devkit_t12/data"
    kit.mkdir(parents=True)
    rows = [*zip(NUMBERS, WNIDS, strict=True), (1001, "n99999999")]  # last: a group of classes
    synsets = np.zeros(
        (len(rows), 1), dtype=[(k, object) for k in ("ILSVRC2012_ID", "WNID", "words")]
    )
    for row, (number, wnid) in zip(synsets[:, 0], rows, strict=True):
        row["ILSVRC2012_ID"], row["WNID"], row["words"] = (
            float(number),
            wnid,
            f"thing {wnid[-4:]}, it",
        )
    savemat(kit / "meta.mat", {"synsets": synsets})
    truth = [NUMBERS[j] for j in (999, 0, 3, 3, 500, 7)]
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(map(str, truth)) + "\n")
    return root


@pytest.fixture
def root(published, tmp_path):
    return shutil.copytree(published, tmp_path / "imagenet", copy_function=shutil.copy)


def test_flat_validation_images_get_the_classes_of_the_development_kit(published):
    splits = datasets.load("imagenet", published, size=8, memory=0)
    assert len(splits.pool) == 1000
    assert splits.pool.classes[7] == f"{WNIDS[7]} thing {WNIDS[7][-4:]}, it"
    assert splits.pool.ids[3] == f"train/{WNIDS[3]}/{WNIDS[3]}_1.JPEG"
    assert splits.pool.targets([0, 999]).tolist() == [0, 999]
    assert splits.test.targets(range(6)).tolist() == [999, 0, 3, 3, 500, 7]
    assert splits.test.ids[5] == "val/ILSVRC2012_val_00000006.JPEG"
    assert splits.test.inputs([5]).float().mean() == pytest.approx(200, abs=2)
    assert datasets.statistics(splits.pool)[0] == (0.485, 0.456, 0.406)
    again = pickle.loads(pickle.dumps(splits.pool))  # to worker processes
    assert again.inputs([4]).equal(splits.pool.inputs([4]))


def test_validation_images_in_folders_need_no_kit(root):
    shutil.rmtree(root / "ILSVRC2012_devkit_t12")
    with pytest.raises(
        DataError, match=r"meta\.mat and ILSVRC2012_validation_ground_truth\.txt in"
    ):
        datasets.load("imagenet", root)
    for file, wnid in zip(sorted((root / "val").iterdir()), WNIDS, strict=False):
        (root / "val" / wnid).mkdir()
        file.rename(root / "val" / wnid / file.name)
    splits = datasets.load("imagenet", root, size=8)
    assert splits.test.targets(range(6)).tolist() == [0, 1, 2, 3, 4, 5]
    assert splits.pool.classes == tuple(WNIDS)


def test_what_is_missing_is_named(root):
    val = root / "val/ILSVRC2012_val_00000002.JPEG"
    val.rename(root / "val/ILSVRC2012_val_00000009.JPEG")
    with pytest.raises(DataError, match=r"image 6|image 2 .*ILSVRC2012_val_00000003"):
        datasets.load("imagenet", root)
    (root / "val/ILSVRC2012_val_00000009.JPEG").unlink()
    with pytest.raises(DataError, match=r"6 images .* but got 5"):
        datasets.load("imagenet", root)
    (root / "ILSVRC2012_devkit_t12/data/meta.mat").write_bytes(b"no matlab file")
    with pytest.raises(DataError, match=r"`synsets` .*meta\.mat"):
        datasets.load("imagenet", root)
    (root / "train" / WNIDS[4] / f"{WNIDS[4]}_1.JPEG").unlink()
    with pytest.raises(DataError, match=rf"\*\.JPEG in .*{WNIDS[4]} but there are none"):
        datasets.load("imagenet", root)
    (root / "train" / WNIDS[4]).rmdir()
    with pytest.raises(DataError, match=r"1000 folders, one a wnid .* but got 999"):
        datasets.load("imagenet", root)
    shutil.rmtree(root / "val")
    with pytest.raises(DataError, match=r"folder val in .*ILSVRC2012_img_val\.tar"):
        datasets.load("imagenet", root)
