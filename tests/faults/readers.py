"""Readers of one file each, called by themselves: thousands of inputs a second.

`formats` has whole data sets, which are read as a user reads them; here the functions below those
are called, on files of some hundred bytes.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from tests.faults.formats import Format

from upslope.checkpoints import load_tensors, save_tensors
from upslope.config.yaml_text import read_yaml
from upslope.cryoet.mrc import read_volume, write_volume
from upslope.cryoet.star import read_star
from upslope.cryoet.structures import read_structure
from upslope.datasets.arrow import check_ipc, read_parquet
from upslope.datasets.decoding import read_text
from upslope.datasets.delimited import read_delimited
from upslope.datasets.idx import read_idx
from upslope.datasets.json_lines import read_json_lines
from upslope.errors import DataError
from upslope.files import read_digested_json, write_digested_json
from upslope.images import Form, decode, read_header
from upslope.reading import read_npz, reporting_damage

_AT_ONCE = 2000


def _one(name: str, data: bytes, read: Callable[[Path], Any], *, loose: bool = False) -> Format:
    """A format whose only file has these bytes. loose: reading may leave files beside it."""

    def write(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return Format(write, lambda folder: [read(folder / name)], at_once=_AT_ONCE, tidy=not loose)


def _image(form: str, mode: str = "RGB", size: tuple[int, int] = (7, 5), **options: Any) -> Format:
    rng = np.random.default_rng(len(form))
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)

    def read(path: Path) -> Any:
        header = read_header(path, path.name)
        return repr(header), decode(path.read_bytes(), path.name, Form("RGB", (8, 8)))

    return _one(f"x.{form.lower()}", buffer.getvalue(), read)


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.arange(6, dtype=np.float32).reshape(2, 3), y=np.array(["a", "b"]))
    return buffer.getvalue()


def _read_npz(path: Path) -> Any:
    with reporting_damage("an archive", "None."):
        return sorted(read_npz(path).items())


def _table() -> pa.Table:
    return pa.table(
        {
            "id": ["a", "b", None],
            "x": [1.5, float("nan"), -3.0],
            "n": pa.array([1, 2, 3], pa.int32()),
            "image": [{"bytes": b"\x89PNG", "path": "a.png"}, None, {"bytes": b"", "path": None}],
            "word": pa.array(["u", "v", "u"]).dictionary_encode(),
        }
    )


def _parquet() -> bytes:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(_table(), buffer)
    return buffer.getvalue()


def _arrow() -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, _table().schema) as writer:
        writer.write_table(_table())
    return buffer.getvalue()


def _read_arrow(path: Path) -> Any:
    check_ipc(path)
    with reporting_damage("an Arrow file", "None."), pa.memory_map(str(path)) as file:
        try:
            return pa.ipc.open_file(file).read_all().to_pydict()
        except pa.ArrowInvalid:
            return pa.ipc.open_stream(file).read_all().to_pydict()


def _csv() -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["a", "b", "c"], ["1", "x,y", "2.5"], ["2", 'q"q', "nan"]])
    return buffer.getvalue().encode()


def _made(name: str, make: Callable[[Path], Any]) -> bytes:
    """Return the bytes of a file that a writer makes."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / name)
        return (Path(folder) / name).read_bytes()


def _read_volume(path: Path) -> Any:
    volume = read_volume(path)
    return volume.values, volume.voxel


def _read_digested(path: Path) -> Any:
    data = read_digested_json(path)
    if data is None:
        raise DataError("damaged")  # what its callers take it for
    return repr(data)


def _tensors() -> dict[str, Any]:
    import torch

    return {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(3)}


_IDX = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (3, 2, 2)) + bytes(range(12))
_STAR = (
    "data_particles\n\nloop_\n_rlnImageName #1\n_kind #2\na.mrc 'cat x'\nb.mrc dog\n\n"
    "data_optics\n_voltage 300\n_note 'of two words'\n"
)
_YAML = (
    "data: {name: digits, limit: 40}\nstrategies: [margin, &a egl]\nmodel:\n  name: mlp\n"
    "  hidden: 0x10\nother: *a\ntext: |\n  lines\n  more\n"
)
_JSON = [{"a": 1, "b": "x", "c": [1.5, None]}, {"a": 2, "b": "é", "c": []}]
_PDB = (
    "HEADER    X\nATOM      1  CA  ALA A   1      11.104   6.134  -6.504  1.00  0.00           C\n"
    "ATOM      2  N   ALA A   1      12.560   6.250  -5.100  1.00  0.00           N\nEND\n"
)


def _read_structure(path: Path) -> Any:
    structure = read_structure(path)
    return structure.xyz, structure.weights


READERS: Mapping[str, Format] = {
    "file, png": _image("PNG"),
    "file, png of a palette": _image("PNG", "P"),
    "file, png with alpha": _image("PNG", "RGBA"),
    "file, jpeg": _image("JPEG"),
    "file, gif": _image("GIF", "P"),
    "file, bmp": _image("BMP"),
    "file, ppm": _image("PPM"),
    "file, tiff": _image("TIFF", compression="tiff_lzw"),
    "file, tiff, plain": _image("TIFF"),
    "file, webp": _image("WEBP"),
    "file, idx": _one("x-idx3-ubyte", _IDX, read_idx),
    "file, npz": _one("x.npz", _npz(), _read_npz),
    "file, csv": _one("x.csv", _csv(), lambda path: read_delimited(path)[0].to_pydict()),
    "file, jsonl": _one(
        "x.jsonl",
        "".join(json.dumps(row) + "\n" for row in _JSON).encode(),
        lambda path: read_json_lines(path).to_pydict(),
    ),
    "file, parquet": _one("x.parquet", _parquet(), lambda path: read_parquet(path).to_pydict()),
    "file, arrow": _one("x.arrow", _arrow(), _read_arrow),
    "file, yaml": _one(
        "x.yaml", _YAML.encode(), lambda path: repr(read_yaml(read_text(path), "x.yaml"))
    ),
    "file, star": _one("x.star", _STAR.encode(), lambda path: repr(read_star(path))),
    "file, mrc": _one(
        "x.mrc",
        _made("x.mrc", lambda path: write_volume(path, np.ones((3, 3, 3), np.float32), 10.0)),
        _read_volume,
    ),
    "file, pdb": _one("x.pdb", _PDB.encode(), _read_structure),
    "file, safetensors": _one(
        "x.safetensors",
        _made("x.safetensors", lambda path: save_tensors(path, _tensors(), {"a": 1})),
        lambda path: [
            [(k, v.float().numpy()) for k, v in load_tensors(path)[0].items()],
            load_tensors(path)[1],
        ],
    ),
    "file, digested json": _one(
        "x.json",
        _made("x.json", lambda path: write_digested_json(path, {"key": "a", "figures": [1.5]})),
        _read_digested,
    ),
}
"""name -> reader, as tables of results call it."""
