"""Small valid files of every format that is read, and what reading them gives."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from upslope import config, datasets
from upslope.checkpoints import read_weights, save_tensors
from upslope.cryoet.mrc import write_volume
from upslope.cryoet.star import read_star
from upslope.datasets.splits import Splits
from upslope.experiment.sheet import Question, read_sheet, write_sheet

_CLASSES = ("cat", "dog")
_COUNTS = {"train": 8, "test": 4}


@dataclass(frozen=True)
class Format:
    """A format. write: fills an empty folder with valid files; read: reads the folder, and returns
    arrays and plain data that can be compared; victims: pattern of the files that are mutated.

    direct: the arrays by another library, in the order of `read`, where there is one. at_once:
    inputs in one trial, fewer where reading takes long. tidy: reading leaves nothing beside the
    files.
    """

    write: Callable[[Path], None]
    read: Callable[[Path], list[Any]]
    victims: str = "**/*"
    direct: Callable[[Path], list[Any]] | None = None
    at_once: int = 200
    tidy: bool = True


def _pixels(split: str, shape: tuple[int, ...] = (8, 8, 3)) -> np.ndarray:
    rng = np.random.default_rng(len(split))
    return rng.integers(0, 256, (_COUNTS[split], *shape), dtype=np.uint8)


def _labels(split: str) -> np.ndarray:
    return np.arange(_COUNTS[split], dtype=np.uint8) % 2


def content(splits: Splits) -> list[Any]:
    """Read every sample of a data set: ids, inputs, targets and classes of pool and test set."""
    read: list[Any] = []
    for part in (splits.pool, splits.test):
        every = range(len(part))
        labels = part.labels
        known = [i for i in every if labels.ndim > 1 or float(labels[i]) >= 0]
        read += [list(part.ids), list(part.classes)]
        if len(part):
            read += [part.inputs(every).numpy(), [known, part.targets(known).numpy()]]
    return read


_ROWS = {"target": "label", "columns": "a,b,colour"}


def _data(name: str, *, below: str = "", **options: Any) -> Callable[[Path], list[Any]]:
    return lambda folder: content(datasets.load(name, folder / below, **options))


# --- arrays and archives ---


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def _write_idx(folder: Path, pack: Callable[[bytes], bytes] = bytes, end: str = "") -> None:
    for split, word in (("train", "train"), ("test", "t10k")):
        for name, array in (
            ("images-idx3", _pixels(split, (8, 8))),
            ("labels-idx1", _labels(split)),
        ):
            (folder / f"{word}-{name}-ubyte{end}").write_bytes(pack(_idx(array)))


def _direct_idx(folder: Path, end: str = "") -> list[Any]:
    read = []
    for word in ("train", "t10k"):
        for name in ("images-idx3", "labels-idx1"):
            data = (folder / f"{word}-{name}-ubyte{end}").read_bytes()
            data = gzip.decompress(data) if end else data
            dimensions = data[3]
            shape = struct.unpack(f">{dimensions}I", data[4 : 4 + 4 * dimensions])
            read.append(np.frombuffer(data[4 + 4 * dimensions :], np.uint8).reshape(shape))
    return read


def _write_npz(folder: Path) -> None:
    arrays = {f"x_{s}": _pixels(s) for s in _COUNTS} | {f"y_{s}": _labels(s) for s in _COUNTS}
    np.savez_compressed(folder / "data.npz", **arrays, classes=np.array(_CLASSES))


def _write_cifar(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        rng = np.random.default_rng(len(name))
        rows = rng.integers(0, 256, (3, 3072), dtype=np.uint8)
        # Python 2 wrote text as bytes; Python 3 writes keys of text.
        batch = {"labels": [int(x) for x in rng.integers(0, 10, 3)], "data": rows}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = {"label_names": [f"class {i}" for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, protocol=2))


def _write_cifar_binary(root: Path) -> None:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        rows = np.random.default_rng(len(name)).integers(0, 256, (3, 3073), dtype=np.uint8)
        rows[:, 0] %= 10
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(f"class {i}" for i in range(10)) + "\n")


def _write_svhn(folder: Path) -> None:
    from scipy.io import savemat

    for split in _COUNTS:
        images = _pixels(split, (32, 32, 3)).transpose(1, 2, 3, 0)
        labels = (_labels(split) + 1)[:, None]
        savemat(folder / f"{split}_32x32.mat", {"X": images, "y": labels}, do_compression=True)


# --- tables and texts ---


def _rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    words = ("red", "green", "blue")
    return [
        {"a": round(float(rng.normal()), 4), "b": int(rng.integers(100)), "colour": words[i % 3],
         "text": f"the {words[i % 3]} house, number {i}", "label": _CLASSES[i % 2]}
        for i in range(24)
    ]  # fmt: skip


def _write_csv(folder: Path) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(_rows()[0]))
    writer.writeheader()
    writer.writerows(_rows())
    (folder / "rows.csv").write_text(buffer.getvalue(), encoding="utf-8", newline="")


def _write_lines(folder: Path) -> None:
    text = "".join(json.dumps(row) + "\n" for row in _rows())
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")


def _write_parquet_rows(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(_rows()), folder / "rows.parquet")


# --- images ---


def _encoded(pixels: np.ndarray, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def _write_images(*forms: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for split in _COUNTS:
            for i, pixels in enumerate(_pixels(split)):
                path = folder / split / _CLASSES[i % 2] / f"{i}.{forms[i % len(forms)]}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)

    return write


def _write_manifest(folder: Path) -> None:
    _write_images("png")(folder / "images")
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    splits = ("test", "train", "train")
    rows = [f"{n},{_CLASSES[i % 2]},{splits[i % 3]}" for i, n in enumerate(names)]
    (folder / "m.csv").write_text("path,label,split\n" + "\n".join(rows) + "\n", encoding="utf-8")


def _write_masks(folder: Path) -> None:
    (folder / "classes.csv").write_text("name,id\nroad,1\nsky,7\nignore,255\n", encoding="utf-8")
    for split in _COUNTS:
        for i, pixels in enumerate(_pixels(split)):
            mask = np.random.default_rng(i).choice(np.array([1, 7, 255], np.uint8), (8, 8))
            for kind, array in (("images", pixels), ("masks", mask)):
                path = folder / kind / split / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)


def _write_parquet_images(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split in _COUNTS:
        images = [{"bytes": _encoded(p, "png"), "path": None} for p in _pixels(split)]
        table = pa.table({"image": images, "label": _labels(split).astype(np.int64)})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")


# --- volumes ---


def _write_volumes(folder: Path) -> None:
    rng = np.random.default_rng(0)
    names = []
    for i in range(8):
        write_volume(folder / f"v{i}.mrc", rng.normal(size=(6, 6, 6)).astype(np.float32), 10.0)
        names.append(f"v{i}.mrc {_CLASSES[i % 2]}")
    text = "data_particles\n\nloop_\n_rlnImageName #1\n_kind #2\n" + "\n".join(names) + "\n"
    (folder / "particles.star").write_text(text, encoding="utf-8")


def _write_structures(folder: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for i in range(2):
        arrays[f"m{i}_xyz"] = (20 * rng.normal(size=(20, 3))).astype(np.float32)
        arrays[f"m{i}_z"] = np.full(20, 6, np.uint8)
    np.savez(folder / "structures.npz", **arrays)


def _simulate(folder: Path) -> list[Any]:
    options = {"train": 4, "test": 2, "box": 8, "voxel": 20.0, "resolution": 40.0}
    cache = folder / "cache"
    return content(datasets.load("cryoet-simulated", folder, cache=str(cache), **options))


def _read_star(folder: Path) -> list[Any]:
    return [repr(block) for block in read_star(folder / "particles.star")]


# --- what is not data ---


def _write_configuration(folder: Path) -> None:
    text = (
        config.__file__ and (Path(config.__file__).parents[1] / "configs/digits.yaml").read_text()
    )
    (folder / "mine.yaml").write_text(str(text), encoding="utf-8")


def _read_configuration(folder: Path) -> list[Any]:
    return [repr(config.load(folder / "mine.yaml"))]


def _tensors() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.ones(3)}


def _write_safetensors(folder: Path) -> None:
    save_tensors(folder / "w.safetensors", _tensors(), {"cycle": 1})


def _write_pt(folder: Path) -> None:
    torch.save({"state_dict": _tensors()}, folder / "w.pt")


def _read_weights(name: str) -> Callable[[Path], list[Any]]:
    return lambda folder: [(k, v.float().numpy()) for k, v in read_weights(folder / name).items()]


_IDS = tuple(f"sample-{i}" for i in range(8))


def _write_sheet(folder: Path) -> None:
    write_sheet(folder / "to-label.csv", [Question(i, f"images/{i}.png", "margin") for i in _IDS])
    lines = (folder / "to-label.csv").read_text("utf-8").splitlines()
    filled = [line.replace(",,", f",{_CLASSES[i % 2]},") for i, line in enumerate(lines)]
    (folder / "to-label.csv").write_text("\n".join(filled) + "\n", encoding="utf-8")


def _read_sheet(folder: Path) -> list[Any]:
    from upslope.errors import DataError

    def read(cell: str) -> str:
        if cell not in _CLASSES:
            raise DataError(f"Expected a class but got {cell!r}.")
        return cell

    answers = read_sheet(folder / "to-label.csv", _IDS, _CLASSES, read)
    return [list(answers.ids), dict(answers.labels), dict(answers.passed)]


FORMATS: Mapping[str, Format] = {
    "idx": Format(_write_idx, _data("idx"), direct=_direct_idx),
    "idx.gz": Format(
        lambda folder: _write_idx(folder, gzip.compress, ".gz"),
        _data("idx"),
        direct=lambda folder: _direct_idx(folder, ".gz"),
    ),
    "npz": Format(_write_npz, _data("npz")),
    "cifar10, pickles": Format(_write_cifar, _data("cifar10")),
    "cifar10, binary": Format(_write_cifar_binary, _data("cifar10")),
    "svhn": Format(_write_svhn, _data("svhn"), at_once=5),
    "table, csv": Format(_write_csv, _data("table", below="rows.csv", **_ROWS)),
    "table, jsonl": Format(_write_lines, _data("table", below="rows.jsonl", **_ROWS)),
    "table, parquet": Format(
        _write_parquet_rows,
        _data("table", below="rows.parquet", **_ROWS),
    ),
    "text, csv": Format(_write_csv, _data("text", below="rows.csv", target="label", length=8)),
    "text, jsonl": Format(_write_lines, _data("text", below="rows.jsonl", target="label")),
    "folder, png": Format(_write_images("png"), _data("folder")),
    "folder, others": Format(
        _write_images("jpg", "bmp", "gif", "tiff", "webp"), _data("folder", mode="RGB")
    ),
    "folder, skipping": Format(
        _write_images("png", "jpg", "webp", "tiff", "gif"),
        _data("folder", size=8, mode="RGB", on_error="skip"),
    ),
    "folder, manifest": Format(_write_manifest, _data("folder", manifest="m.csv"), "m.csv"),
    "mask-folder": Format(_write_masks, _data("mask-folder")),
    "parquet": Format(_write_parquet_images, _data("parquet")),
    "subtomograms": Format(
        _write_volumes, _data("subtomograms", label="kind", test_share=0.25), "*.mrc"
    ),
    "star": Format(_write_volumes, _read_star, "*.star"),
    "structures": Format(_write_structures, _simulate, "*.npz", tidy=False),
    "configuration": Format(_write_configuration, _read_configuration),
    "safetensors": Format(_write_safetensors, _read_weights("w.safetensors")),
    "pt": Format(_write_pt, _read_weights("w.pt")),
    "answers": Format(_write_sheet, _read_sheet),
}
"""name -> format, as tables of results call it."""
