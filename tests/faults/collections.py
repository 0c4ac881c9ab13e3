"""Small valid files of annotated collections, of pools by shards and of imported labels."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tests.faults.formats import Format, content

from upslope import datasets
from upslope.datasets.left_out import LeftOut
from upslope.labelling import imports
from upslope.labelling.annotators.files import COLUMNS, SHEET, FilesAnnotator
from upslope.labelling.outlines import boxes_text, masks_text
from upslope.labelling.samples import samples_of
from upslope.labelling.settings import AnswerKind, ProjectSettings
from upslope.pools import open_pool

_CLASSES = ("cat", "dog")
_SIZE = (6, 8)
_COUNT = 6
_LISTS = "**/*.[xt][mx][lt]"  # .xml and .txt


def _png(number: int, shape: tuple[int, ...] = (*_SIZE, 3)) -> bytes:
    rng = np.random.default_rng(number)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _write_pictures(folder: Path, count: int = _COUNT) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"image-{i}.png" for i in range(count)]
    for i, name in enumerate(names):
        (folder / name).write_bytes(_png(i))
    return names


def _data(name: str, **options: Any) -> Callable[[Path], list[Any]]:
    return lambda folder: content(datasets.load(name, folder, **options))


# --- WebDataset ---


def _pack(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))


def _write_tars(form: int, label: Callable[[int], tuple[str, bytes]]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for split, first in (("train", 0), ("test", 4)):
            members = []
            for i in range(first, first + 4):
                suffix, data = label(i)
                members += [(f"sub/{i:04}.png", _png(i)), (f"sub/{i:04}.{suffix}", data)]
            _pack(folder / f"{split}-000.tar", members, form)

    return write


def _json_label(i: int) -> tuple[str, bytes]:
    return "json", json.dumps({"label": _CLASSES[i % 2], "width": 8}).encode()


# --- COCO and VOC ---


def _coco(names: list[str], *, runs: bool = False) -> dict[str, Any]:
    square = [[1, 1, 5, 1, 5, 5, 1, 5]]
    counts = {"size": list(_SIZE), "counts": [12, 6, 30]}
    return {
        "info": {"year": 2026},
        "images": [
            {"id": i, "file_name": name, "height": _SIZE[0], "width": _SIZE[1]}
            for i, name in enumerate(names)
        ],
        "annotations": [
            {
                "id": 10 + i,
                "image_id": i,
                "category_id": 3 + 5 * (i % 2),
                "iscrowd": int(runs and i == 1),
                "bbox": [1, 1, 4.5, 4],
                "area": 18,
                "segmentation": counts if runs and i % 2 else square,
            }
            for i in range(len(names))
        ],
        "categories": [{"id": 8, "name": "dog"}, {"id": 3, "name": "cat"}],
    }


def _write_coco(folder: Path) -> None:
    (folder / "annotations").mkdir()
    for word in ("train", "val"):
        names = _write_pictures(folder / f"{word}2017")
        text = json.dumps(_coco(names, runs=True))
        (folder / "annotations" / f"instances_{word}2017.json").write_text(text, encoding="utf-8")


def _xml(name: str, label: str) -> str:
    box = "<xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax>"
    return (
        f"<annotation><folder>VOC2012</folder><filename>{name}</filename>"
        f"<size><width>8</width><height>6</height><depth>3</depth></size>\n"
        f"<object><name>{label}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>\n"
        "</annotation>\n"
    )


def _write_voc(folder: Path) -> None:
    home = folder / "VOCdevkit/VOC2012"
    names = [name.removesuffix(".png") for name in _write_pictures(home / "JPEGImages", 8)]
    for part in ("Annotations", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
        (home / part).mkdir(parents=True)
    for i, name in enumerate(names):
        text = _xml(f"{name}.png", _CLASSES[i % 2])
        (home / "Annotations" / f"{name}.xml").write_text(text, encoding="utf-8")
        mask = Image.fromarray(np.random.default_rng(i).choice(np.array([0, 8, 12, 255], np.uint8),
                                                               _SIZE))  # fmt: skip
        mask.save(home / "SegmentationClass" / f"{name}.png")
    for kind in ("Main", "Segmentation"):
        for part, some in (("train", names[:5]), ("val", names[5:])):
            listing = home / "ImageSets" / kind / f"{part}.txt"
            listing.write_text("\n".join(some) + "\n", encoding="utf-8")


# --- pools by shards ---


def _read_pool(folder: Path) -> list[Any]:
    index = folder / "index.arrow"  # of the names of images
    pool = open_pool((folder / "pool").absolute().as_uri(), index=index)
    read: list[Any] = [pool.input_shape, str(pool.form)]
    for shard in pool.shards:
        with pool.open(shard) as rows:
            read += [list(rows.ids), rows.inputs(range(len(rows))).numpy()]
    return read


def _write_shards(folder: Path) -> None:
    (folder / "pool").mkdir()
    for shard in range(2):
        numbers = range(4 * shard, 4 * shard + 4)
        table = pa.table({"id": [f"s{i}" for i in numbers], "image": [_png(i) for i in numbers]})
        pq.write_table(table, folder / "pool" / f"part-{shard}.parquet")


def _write_array_shards(folder: Path) -> None:
    (folder / "pool").mkdir()
    for shard in range(2):
        rows = np.random.default_rng(shard).normal(size=(4, 6)).astype(np.float32)
        arrays = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 6)
        table = pa.table({"id": [f"s{shard}-{i}" for i in range(4)], "features": arrays})
        pq.write_table(table, folder / "pool" / f"part-{shard}.parquet")


def _write_address_shards(folder: Path) -> None:
    names = _write_pictures(folder / "pool" / "images")
    paths = [f"images/{name}" for name in names]
    table = pa.table({"id": [f"s{i}" for i in range(_COUNT)], "path": paths})
    pq.write_table(table, folder / "pool" / "part-0.parquet")


def _read_addresses(folder: Path) -> list[Any]:
    pool = open_pool(f"{(folder / 'pool').absolute().as_uri()}/*.parquet")
    with pool.open(pool.shards[0]) as rows:
        return [list(rows.ids), rows.inputs(range(len(rows))).numpy()]


def _write_tar_shards(folder: Path) -> None:
    (folder / "pool").mkdir()
    for shard in range(2):
        members = [(f"{i:04}.png", _png(i)) for i in range(4 * shard, 4 * shard + 4)]
        _pack(folder / "pool" / f"{shard:03}.tar", members)


def _write_picture_shards(folder: Path) -> None:
    _write_pictures(folder / "pool")


# --- labels that are imported into a project ---


def _import(kind: AnswerKind, name: str) -> Callable[[Path], list[Any]]:
    def read(folder: Path) -> list[Any]:
        settings = ProjectSettings(str(folder / "images"), _CLASSES, kind)
        samples = samples_of(settings)
        return sorted(map(repr, imports._read(folder / name, settings, samples, LeftOut())))

    return read


def _brush() -> list[int]:
    """The run-length code of a mask of `_SIZE`, all of whose pixels are marked."""
    fields = [(4 * _SIZE[0] * _SIZE[1], 32), (7, 5), (7, 4), (7, 4), (7, 4), (7, 4)]
    fields += [(1, 1), (0, 2), (4 * _SIZE[0] * _SIZE[1] - 1, 8), (255, 8)]
    text = "".join(f"{value:0{width}b}" for value, width in fields)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def _region(kind: str, i: int) -> dict[str, Any]:
    if kind == "choices":
        value: dict[str, Any] = {"choices": [_CLASSES[i % 2]]}
    elif kind == "brushlabels":
        value = {"format": "rle", "rle": _brush(), "brushlabels": [_CLASSES[i % 2]]}
    else:
        box = {"x": 10.0, "y": 20.5, "width": 30, "height": 40, "rotation": 0}
        value = {**box, "rectanglelabels": [_CLASSES[i % 2]]}
    return {
        "id": f"r{i}", "type": kind, "from_name": "label", "to_name": "image", "value": value,
        "original_width": _SIZE[1], "original_height": _SIZE[0], "image_rotation": 0,
    }  # fmt: skip


def _write_studio(kind: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        names = _write_pictures(folder / "images")
        tasks = [
            {
                "id": i,
                "data": {"image": f"/data/upload/1/0123abcd-{name}"},
                "annotations": [{"id": i, "was_cancelled": False, "result": [_region(kind, i)]}],
            }
            for i, name in enumerate(names)
        ]
        (folder / "export.json").write_text(json.dumps(tasks), encoding="utf-8")

    return write


def _write_coco_labels(folder: Path) -> None:
    names = _write_pictures(folder / "images")
    (folder / "export.json").write_text(json.dumps(_coco(names)), encoding="utf-8")


def _write_labels(kind: AnswerKind) -> Callable[[Path], None]:
    mask = np.zeros(_SIZE, np.bool_)
    mask[2:4, 3:6] = True
    cells: Mapping[AnswerKind, str] = {
        "class": "cat",
        "labels": "cat;dog",
        "boxes": boxes_text(_SIZE, [("cat", 1, 1, 3, 2)]),
        "masks": masks_text(_SIZE, {"dog": mask}, _CLASSES),
    }

    def write(folder: Path) -> None:
        names = _write_pictures(folder / "images")
        quoted = cells[kind].replace('"', '""')
        lines = [f'{name},"{quoted}"' for name in names]
        (folder / "labels.csv").write_text("id,label\n" + "\n".join(lines) + "\n", "utf-8")

    return write


def _write_annotator(folder: Path) -> None:
    names = _write_pictures(folder / "images")
    rows = [f"{n},{n},{i},0.5,near,{_CLASSES[i % 2]},ann,2.5,note" for i, n in enumerate(names)]
    (folder / SHEET).write_text("\n".join([",".join(COLUMNS), *rows]) + "\n", encoding="utf-8")


def _read_annotator(folder: Path) -> list[Any]:
    answers = FilesAnnotator(folder, "class", _CLASSES, "ann").pull()
    return [(a.id, a.author, a.answer, a.reason, a.seconds, a.note) for a in answers]


COLLECTIONS: Mapping[str, Format] = {
    "webdataset": Format(
        _write_tars(tarfile.PAX_FORMAT, lambda i: ("cls", b"%d" % (i % 2))), _data("webdataset")
    ),
    "webdataset, json": Format(
        _write_tars(tarfile.GNU_FORMAT, _json_label), _data("webdataset", label="json")
    ),
    "webdataset, skipping": Format(
        _write_tars(tarfile.USTAR_FORMAT, lambda i: ("txt", _CLASSES[i % 2].encode())),
        _data("webdataset", size=4, on_error="skip"),
    ),
    "coco, classes": Format(_write_coco, _data("coco", size=4), "**/*.json"),
    "coco, masks": Format(_write_coco, _data("coco", size=4, target="masks"), "**/*.json"),
    "voc, classes": Format(
        _write_voc, _data("voc", target="classes", classes=list(_CLASSES), size=4), _LISTS
    ),
    "voc, masks": Format(_write_voc, _data("voc", size=4), "**/Seg*/*"),
    "pool of parquet": Format(_write_shards, _read_pool),
    "pool of arrays": Format(_write_array_shards, _read_pool),
    "pool of addresses": Format(_write_address_shards, _read_addresses, "**/*.parquet"),
    "pool of tars": Format(_write_tar_shards, _read_pool),
    "pool of images": Format(_write_picture_shards, _read_pool, "pool/*", tidy=False),
    "import, label studio, class": Format(_write_studio("choices"), _import("class", "export.json"),
                                          "*.json"),
    "import, label studio, labels": Format(_write_studio("choices"),
                                           _import("labels", "export.json"), "*.json"),
    "import, label studio, boxes": Format(_write_studio("rectanglelabels"),
                                          _import("boxes", "export.json"), "*.json"),
    "import, label studio, masks": Format(_write_studio("brushlabels"),
                                          _import("masks", "export.json"), "*.json"),
    "annotator's sheet": Format(_write_annotator, _read_annotator, "*.csv"),
    **{
        f"import, coco, {kind}": Format(_write_coco_labels, _import(kind, "export.json"), "*.json")
        for kind in ("class", "labels", "boxes", "masks")
    },
    **{
        f"import, csv, {kind}": Format(_write_labels(kind), _import(kind, "labels.csv"), "*.csv")
        for kind in ("class", "labels", "boxes", "masks")
    },
}  # fmt: skip
"""name -> format, as tables of results call it."""
