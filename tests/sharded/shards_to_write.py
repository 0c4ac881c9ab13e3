"""Pools of small images for the tests: the same samples as Parquet, tars, a folder, addresses."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE = 8


def pixels(number: int) -> np.ndarray:
    """(side, side, 3) uint8: of no other number."""
    return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels(number)).save(stream, "png")
    return stream.getvalue()


def id_of(number: int) -> str:
    return f"sample-{number:05d}"


def numbers(shards: int, each: int) -> list[range]:
    return [range(i * each, (i + 1) * each) for i in range(shards)]


def write_parquet(folder: Path, shards: int = 3, each: int = 5) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, part in enumerate(numbers(shards, each)):
        table = pa.table({"id": [id_of(n) for n in part], "image": [png(n) for n in part]})
        pq.write_table(table, folder / f"part-{i:05d}.parquet")
    return folder


def write_arrays(folder: Path, shards: int = 3, each: int = 5) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, part in enumerate(numbers(shards, each)):
        rows = np.stack([pixels(n).transpose(2, 0, 1).reshape(-1) for n in part])
        arrays = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
        table = pa.table({"id": [id_of(n) for n in part], "image": arrays})
        pq.write_table(table, folder / f"part-{i:05d}.parquet")
    return folder


def write_tars(folder: Path, shards: int = 3, each: int = 5) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, part in enumerate(numbers(shards, each)):
        with tarfile.open(folder / f"{i:05d}.tar", "w") as archive:
            for n in part:
                content = png(n)
                member = tarfile.TarInfo(f"{id_of(n)}.png")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return folder


def write_images(folder: Path, shards: int = 3, each: int = 5) -> Path:
    for i, part in enumerate(numbers(shards, each)):
        (folder / f"{i}").mkdir(parents=True, exist_ok=True)
        for n in part:
            (folder / f"{i}" / f"{id_of(n)}.png").write_bytes(png(n))
    return folder


def write_addresses(folder: Path, images: Path, shards: int = 3, each: int = 5) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, part in enumerate(numbers(shards, each)):
        table = {"key": [id_of(n) for n in part], "path": [f"{i}/{id_of(n)}.png" for n in part]}
        pq.write_table(pa.table(table), folder / f"part-{i:05d}.parquet")
    write_images(images, shards, each)
    return folder
