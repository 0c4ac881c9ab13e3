"""Every data set of the registry keeps the contract of `Dataset`.

Formats that a user's own files have are written here. Published data sets, which come as archives
of their own layout, are tested as the outlines that stand in for them; their files have tests of
their own. A name that is in neither table fails: a new data set gets a line.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from upslope import datasets
from upslope.datasets.base import Dataset, HasLabels, HasStatistics
from upslope.datasets.splits import Splits
from upslope.errors import ConfigError

COUNT = 24


def arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (COUNT, 6, 6), dtype=np.uint8)
    return images, np.arange(COUNT, dtype=np.uint8) % 2


def write_npz(root: Path) -> Path:
    images, labels = arrays()
    path = root / "two.npz"
    np.savez(path, x_train=images[:16], y_train=labels[:16], x_test=images[16:], y_test=labels[16:])
    return path


def write_table(root: Path) -> Path:
    path = root / "rows.csv"
    lines = [f"row-{i},{i},{(7 * i) % 5},{'ab'[i % 2]}" for i in range(COUNT)]
    path.write_text("\n".join(["id,width,height,label", *lines]))
    return path


def write_text(root: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3}, "[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(root / "tokenizer.json"))
    path = root / "texts.csv"
    lines = [f"text-{i},{('good', 'bad')[i % 2]} {i},{'ab'[i % 2]}" for i in range(COUNT)]
    path.write_text("\n".join(["id,text,label", *lines]))
    return path


def write_folder(root: Path) -> Path:
    images, labels = arrays()
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = root / ("train" if i < 16 else "test") / "ab"[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return root


def write_masks(root: Path) -> Path:
    images, _ = arrays()
    (root / "classes.csv").write_text("name,id\nground,0\ncell,1\n")
    for i, image in enumerate(images):
        split = "train" if i < 16 else "test"
        for kind, pixels in (("images", image), ("masks", (image > 127).astype(np.uint8))):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / kind / split / f"{i}.png")
    return root


def write_idx(root: Path) -> Path:
    images, labels = arrays()
    for name, rows in (("train", slice(0, 16)), ("t10k", slice(16, COUNT))):
        for kind, values in (("images-idx3", images[rows]), ("labels-idx1", labels[rows])):
            head = bytes([0, 0, 8, values.ndim])
            sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
            (root / f"{name}-{kind}-ubyte").write_bytes(head + sizes + values.tobytes())
    return root


def write_webdataset(root: Path) -> Path:
    images, labels = arrays()
    for name, rows in (("train-0.tar", range(16)), ("test-0.tar", range(16, COUNT))):
        with tarfile.open(root / name, "w") as archive:
            for i in rows:
                picture = io.BytesIO()
                Image.fromarray(images[i]).save(picture, "PNG")
                for kind, content in (("png", picture.getvalue()), ("cls", b"%d" % labels[i])):
                    member = tarfile.TarInfo(f"{i}.{kind}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return root


def no_files(root: Path) -> None:
    del root


WRITTEN: dict[str, tuple[Callable[[Path], Path | None], dict[str, object]]] = {
    "digits": (no_files, {}),
    "breast-cancer": (no_files, {}),
    "diabetes": (no_files, {}),
    "npz": (write_npz, {}),
    "table": (write_table, {"columns": "width,height"}),
    "text": (write_text, {"tokenizer": "tokenizer.json", "length": 4}),
    "folder": (write_folder, {"size": 6}),
    "mask-folder": (write_masks, {}),
    "idx": (write_idx, {}),
    "webdataset": (write_webdataset, {}),
}
"""name -> what writes its files, and its options."""

ELSEWHERE = {
    "parquet": "test_parquet",
    "hf": "test_hugging_face_data",
    "cryoet-simulated": "test_simulated",
    "subtomograms": "test_subtomograms",
    "voc": "test_masks",
    "coco": "test_coco",
}
"""name -> the file whose tests write what the data set reads; there is no outline of it."""


@pytest.fixture
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Splits:
    name = request.param
    if name in WRITTEN:
        write, options = WRITTEN[name]
        root = write(tmp_path)
        if name == "text":
            options = {**options, "tokenizer": str(tmp_path / "tokenizer.json")}
        return datasets.load(name, root, **options)
    splits = datasets.load_outline(name)
    assert splits is not None, f"Add {name!r} to WRITTEN, or to ELSEWHERE with its tests."
    return splits


every_data_set = pytest.mark.parametrize(
    "opened", sorted(datasets.REGISTRY.keys() - ELSEWHERE), indirect=True
)


def parts(splits: Splits) -> list[Dataset]:
    return [part for part in (splits.pool, splits.test, splits.validation) if part is not None]


def test_data_sets_tested_elsewhere_have_tests_there() -> None:
    assert datasets.REGISTRY.keys() >= ELSEWHERE.keys()
    for file in ELSEWHERE.values():
        assert (Path(__file__).parent / f"{file}.py").is_file()


@every_data_set
def test_ids_are_distinct_within_and_across_parts(opened: Splits) -> None:
    every = [i for part in parts(opened) for i in part.ids]
    assert len(set(every)) == len(every) == sum(map(len, parts(opened)))
    assert all(isinstance(i, str) and i for i in every[:100])


@every_data_set
def test_inputs_are_of_the_stated_shape_in_the_order_asked_for(opened: Splits) -> None:
    pool = opened.pool
    some = [3, 0, 2]
    inputs = pool.inputs(some)
    assert inputs.shape == (3, *pool.input_shape)
    assert inputs.dtype == torch.uint8 or inputs.is_floating_point() or inputs.dtype == torch.int32
    if type(pool).__name__ != "Outline":  # whose content is random
        for row, index in zip(inputs, some, strict=True):
            assert torch.equal(row, pool.inputs([index])[0])
        assert torch.equal(inputs, pool.inputs(some))


@every_data_set
def test_targets_are_classes_masks_or_numbers(opened: Splits) -> None:
    pool = opened.pool
    targets = pool.targets([0, 1])
    assert len(targets) == 2
    if targets.is_floating_point():
        assert targets.shape == (2, len(pool.classes))
    elif targets.ndim == 1:
        assert targets.dtype == torch.int64
        assert 0 <= int(targets.min()) <= int(targets.max()) < len(pool.classes)
    else:
        assert targets.shape == (2, *pool.input_shape[1:])


@every_data_set
def test_labels_known_beforehand_are_the_targets(opened: Splits) -> None:
    pool = opened.pool
    if not isinstance(pool, HasLabels):
        return
    assert pool.labels.shape == (len(pool),)
    some = np.flatnonzero(pool.labels >= 0)[:3].tolist()
    targets = pool.targets(some)
    if targets.ndim == 1 and type(pool).__name__ != "Outline":
        assert targets.tolist() == pool.labels[some].tolist()


@every_data_set
def test_statistics_are_one_number_per_channel(opened: Splits) -> None:
    mean, std = datasets.statistics(opened.pool)
    images = opened.pool.inputs([0]).dtype == torch.uint8
    channels = opened.pool.input_shape[0] if images else 0
    assert len(mean) == len(std) == channels
    assert all(s > 0 for s in std)
    if isinstance(opened.pool, HasStatistics) and opened.pool.mean:
        assert (tuple(opened.pool.mean), tuple(opened.pool.std)) == (mean, std)


@pytest.mark.parametrize("name", sorted(datasets.REGISTRY))
def test_every_option_is_described_and_no_other_is_taken(name: str) -> None:
    (line,) = [line for line in datasets.describe() if line.name == name]
    assert line.summary
    assert all(option.help for option in line.options), name
    with pytest.raises(ConfigError, match="no_such_option"):
        datasets.check_options(name, {"no_such_option": 1})
