"""Files made to do harm, for every reader that may meet them."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from upslope import config, datasets
from upslope.errors import ConfigError, DataError, UpslopeError
from upslope.image_formats import FORMATS
from upslope.images import Form, decode, read_header

EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n"
    b"newpath 0 0 moveto 20 20 lineto stroke\nshowpage\n%%EOF\n"
)


def png(value: int, side: int = 9) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


def image_folder(root: Path, victim: bytes) -> Path:
    for split in ("train", "test"):
        for label in "ab":
            (root / split / label).mkdir(parents=True)
            for k in range(4):
                (root / split / label / f"{k}.png").write_bytes(png(20 * k))
    (root / "train/a/2.png").write_bytes(victim)
    return root


def parquet_folder(root: Path, victim: bytes) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split in ("train", "test"):
        cells = [{"bytes": png(20 * k), "path": None} for k in range(8)]
        if split == "train":
            cells[2] = {"bytes": victim, "path": None}
        table = pa.table({"image": cells, "label": [k % 2 for k in range(8)]})
        pq.write_table(table, root / f"{split}-00000-of-00001.parquet")
    return root


def mask_folder(root: Path, victim: bytes) -> Path:
    (root / "classes.csv").write_text("name,id\nsky,0\nroad,1\n")
    for kind in ("images", "masks"):
        for split in ("train", "test"):
            (root / kind / split).mkdir(parents=True)
            for k in range(8):
                mask = Image.fromarray(np.full((9, 9), k % 2, np.uint8))
                path = root / kind / split / f"{k}.png"
                mask.save(path) if kind == "masks" else path.write_bytes(png(20 * k))
    (root / "images/train/2.png").write_bytes(victim)
    return root


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in `gs` on PATH; the file that is there once it was started."""
    mark = tmp_path / "started"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gs").write_text(f"#!/bin/sh\ntouch {mark}\nexit 1\n")
    (tmp_path / "bin/gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return mark


@pytest.mark.parametrize(
    "read", [lambda s: decode(s, "x", Form("RGB", (8, 8))), lambda s: read_header(s, "x")]
)
@pytest.mark.parametrize("as_file", [True, False], ids=["file", "bytes"])
def test_postscript_starts_no_program(
    tmp_path: Path, ghostscript: Path, read: Callable[[bytes | Path], object], as_file: bool
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(EPS)
    with pytest.raises(DataError, match="cannot be decoded"):
        read(path if as_file else EPS)
    assert not ghostscript.exists()


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_formats_that_pillow_knows_beside_those_listed_are_refused() -> None:
    """Whatever Pillow can write here and is not listed, under a name that says nothing."""
    Image.init()
    tried = 0
    for form in sorted(
        set(Image.SAVE) & set(Image.OPEN) - {*FORMATS, "HEIF"}
    ):  # HEIF: by pillow-heif
        out = io.BytesIO()
        try:
            Image.fromarray(np.full((16, 16, 3), 7, np.uint8)).save(out, form)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        tried += 1
        data = out.getvalue()
        if form not in ("DIB", "SPIDER", "IM") and Image.open(io.BytesIO(data)).format in FORMATS:
            continue  # another name of a listed format
        with pytest.raises(DataError, match="x but it cannot be decoded"):
            decode(data, "x", Form("RGB", None))
    assert tried > 5


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def grey_png(rows: int, missing: int = 0, interlaced: int = 0) -> bytes:
    """A grey PNG of 8 x 8 that says it has so many rows, `missing` of which it has not."""
    head = struct.pack(">IIBBBBB", 8, rows, 8, 0, 0, 0, interlaced)
    pixels = b"".join(bytes([0, *([9] * 8)]) for _ in range(rows - missing))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )  # fmt: skip


def test_what_pillow_leaves_unchecked_of_a_png_is_damage() -> None:
    form = Form("L", None)
    sound = grey_png(8)
    assert (decode(sound, "x", form) == 9).all()
    assert (decode(sound + b"more", "x", form) == 9).all()
    flips = 0
    for i in range(8, len(sound)):  # every bit of every chunk, with its sum
        for bit in range(8):
            changed = bytearray(sound)
            changed[i] ^= 1 << bit
            flips += 1
            with pytest.raises(DataError):
                decode(bytes(changed), "x", form)
    assert flips == 8 * (len(sound) - 8)
    for cut in range(1, len(sound)):
        with pytest.raises(DataError):
            decode(sound[:-cut], "x", form)


@pytest.mark.parametrize("missing", [1, 3, 8])
def test_a_png_without_all_of_its_rows_is_refused(missing: int, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(grey_png(8, missing))
    for source in (path, path.read_bytes()):
        with pytest.raises(DataError, match="x but it cannot be decoded"):
            decode(source, "x", Form("L", None))


def test_a_png_whose_last_row_is_black_and_one_that_is_interlaced_are_read() -> None:
    rng = np.random.default_rng(0)
    for width, height in ((1, 1), (5, 3), (8, 8), (17, 9)):
        pixels = rng.integers(1, 256, (height, width, 3), dtype=np.uint8)
        pixels[-1] = 0
        for mode in ("RGB", "L", "1", "P"):
            out = io.BytesIO()
            image = Image.fromarray(pixels).convert(mode)
            image.save(out, "PNG")
            wanted = np.asarray(image.convert("L"))
            assert (decode(out.getvalue(), "x", Form("L", None))[0] == wanted).all()
    rows = adam7(np.arange(64, dtype=np.uint8).reshape(8, 8))
    head = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1)
    for part, sound in ((rows, True), (rows[:-9], False)):
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
        data += chunk(b"IDAT", zlib.compress(part)) + chunk(b"IEND", b"")
        if sound:
            assert decode(data, "x", Form("L", None)).ravel().tolist() == list(range(64))
        else:
            with pytest.raises(DataError):
                decode(data, "x", Form("L", None))


def adam7(pixels: np.ndarray) -> bytes:
    """The rows of an interlaced PNG, written as its specification has them."""
    starts = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
              (1, 0, 2, 1))  # fmt: skip
    return b"".join(
        b"\0" + line.tobytes() for y, x, dy, dx in starts for line in pixels[y::dy, x::dx]
    )


VICTIMS = {
    "postscript": EPS,
    "cut": png(3)[:40],
    "empty": b"",
    "text": b"no image at all",
    "dds": b"DDS " + struct.pack("<I", 124) + bytes(120),
    "avif": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(200),
    "nested": b"\x89PNG\r\n\x1a\n" + bytes(500),
}


@pytest.mark.parametrize("victim", VICTIMS.values(), ids=VICTIMS)
@pytest.mark.parametrize(
    ("name", "make"),
    [("folder", image_folder), ("parquet", parquet_folder), ("mask-folder", mask_folder)],
    ids=["folder", "parquet", "mask-folder"],
)
def test_what_cannot_be_decoded_is_skipped_or_named(
    tmp_path: Path, ghostscript: Path, name: str, make: Callable[[Path, bytes], Path], victim: bytes
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    make(root, victim)
    with pytest.raises(DataError):
        datasets.load(name, root)
    with pytest.warns(UserWarning, match="(?i)left out 1 of 8"):
        splits = datasets.load(name, root, on_error="skip")
    assert len(splits.pool) == 7
    assert not ghostscript.exists()


def test_a_pipe_among_images_is_no_image(tmp_path: Path) -> None:
    root = image_folder(tmp_path, png(1))
    (root / "train/a/2.png").unlink()
    os.mkfifo(root / "train/a/2.png")
    with pytest.warns(UserWarning, match="(?i)left out 1 of 8"):
        assert len(datasets.load("folder", root, on_error="skip", duplicates="off").pool) == 7


def test_an_image_with_more_pixels_than_it_may_have(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.new("L", (4000, 4000)).save(out, "PNG")  # 16 MB from 16 kB
    root = image_folder(tmp_path, out.getvalue())
    options = {"size": 8, "duplicates": "off"}
    with pytest.raises(DataError, match=r"2\.png to take at most .*`data\.read_limit`"):
        datasets.load("folder", root, read_limit=0.1, **options)
    with pytest.warns(UserWarning, match="(?i)left out 1 of 8"):
        datasets.load("folder", root, read_limit=0.1, on_error="skip", **options)
    # The limit goes along where images are decoded later.
    streamed = datasets.load("folder", root, read_limit=0.1, memory=0, **options).pool
    with pytest.raises(DataError, match="read_limit"):
        streamed.inputs(range(8))
    assert len(datasets.load("folder", root, read_limit=0.2, **options).pool) == 8


def idx_bomb(root: Path) -> tuple[str, Path]:
    for name, shape in (
        ("train-images-idx3", (64, 1024, 1024)), ("train-labels-idx1", (64,)),
        ("t10k-images-idx3", (2, 1024, 1024)), ("t10k-labels-idx1", (2,)),
    ):  # fmt: skip
        with gzip.open(root / f"{name}-ubyte.gz", "wb") as file:
            file.write(bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape))
            file.write(bytes(int(np.prod(shape))))
    return "idx", root


def npz_bomb(root: Path) -> tuple[str, Path]:
    arrays = {"x_train": np.zeros((64, 1 << 20), np.float32), "y_train": np.arange(64) % 2}
    arrays |= {"x_test": np.zeros((2, 1 << 20), np.float32), "y_test": np.arange(2)}
    np.savez_compressed(root / "a.npz", **arrays)
    return "npz", root


def parquet_bomb(root: Path) -> tuple[str, Path]:
    """One cell of a megabyte, 64 times, which is stored once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split in ("train", "test"):
        cells = [png(1) + bytes(1 << 20)] * 64
        table = pa.table({"image": cells, "label": [k % 2 for k in range(64)]})
        pq.write_table(table, root / f"{split}-00000-of-00001.parquet", compression="zstd")
    return "parquet", root


def table_bomb(root: Path) -> tuple[str, Path]:
    """Ten million equal numbers, run-length coded."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    n = 5_000_000
    table = pa.table({"x": np.ones(n), "label": np.ones(n, np.int64)})
    pq.write_table(table, root / "t.parquet")
    return "table", root / "t.parquet"


def dictionary_bomb(root: Path) -> tuple[str, Path]:
    """A text of a megabyte in 64 rows, stored once: pandas writes categories so."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), ["x" * (1 << 20)])
    table = pa.table({"text": texts, "label": [k % 2 for k in range(64)]})
    pq.write_table(table, root / "t.parquet")
    return "text", root / "t.parquet"


def mrc_bomb(root: Path) -> tuple[str, Path]:
    from upslope.cryoet.mrc import write_volume

    lines = ["data_", "loop_", "_rlnImageName #1", "_rlnClassNumber #2"]
    for k in range(4):
        write_volume(root / "v.mrc", np.zeros((256, 256, 128), np.float32), 2.0)
        (root / f"{k}.mrc").write_bytes(gzip.compress((root / "v.mrc").read_bytes(), 1))
        lines.append(f"{k}.mrc {k % 2 + 1}")
    (root / "p.star").write_text("\n".join([*lines, ""]))
    return "subtomograms", root / "p.star"


BOMBS = [idx_bomb, npz_bomb, parquet_bomb, dictionary_bomb, table_bomb, mrc_bomb]


@pytest.mark.parametrize("make", BOMBS, ids=[make.__name__ for make in BOMBS])
def test_a_file_that_unpacks_to_more_than_it_may(
    tmp_path: Path, make: Callable[[Path], tuple[str, Path]]
) -> None:
    name, path = make(tmp_path)
    files = [path] if path.is_file() and path.suffix != ".star" else sorted(tmp_path.iterdir())
    assert min(f.stat().st_size for f in files if f.suffix != ".star") < 1 << 20
    with pytest.raises(DataError, match=r"to take at most 0\.0312 GiB .*`data\.read_limit`"):
        datasets.load(name, path, read_limit=1 / 32)


def test_labels_that_count_to_the_trillions_make_no_classes(tmp_path: Path) -> None:
    y = np.array([0, 10**12])
    x = np.zeros((2, 3), np.float32)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    with pytest.raises(DataError, match=r"count the classes from 0 .* got 1000000000000"):
        datasets.load("npz", tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "null", "[1, 2]", "[" * 100_000, '{"a":' * 100_000, '{"a": NaN}', '{"a": 1, "a": 2}',
        '{"a"', "3", '{"label": [1, {"b": 2}]}',
    ],
    ids=range(9),
)  # fmt: skip
def test_json_lines_that_are_no_rows(tmp_path: Path, line: str) -> None:
    rows = [f'{{"x": {k}, "label": "{"ab"[k % 2]}"}}' for k in range(9)]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join([*rows[:5], line, *rows[5:]]))
    with pytest.raises(DataError, match=r"t\.jsonl"):
        datasets.load("table", path)


def test_json_lines_have_the_columns_of_all_lines(tmp_path: Path) -> None:
    from upslope.datasets.json_lines import read_json_lines

    path = tmp_path / "t.jsonl"
    path.write_text('{"a": 1, "b": "2020-01-01"}\n\n{"c": [1.5], "a": 2.5}\n{"b": null}\n')
    table = read_json_lines(path)
    assert table.to_pylist() == [
        {"a": 1.0, "b": "2020-01-01", "c": None},
        {"a": 2.5, "b": None, "c": [1.5]},
        {"a": None, "b": None, "c": None},
    ]


ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALIASES, "aliases make more than 1,000,000"),
        ("data: &a [*a]\n", "alias stands within"),
        ("data: " + "[" * 90 + "]" * 90, "deeper than 64"),
        ("data: " + "[" * 400_000, "brackets are opened"),
        ("data: " + "x" * (5 << 20), "at most 4 MiB"),
        ("data: 2001-99-99\n", "YAML but"),
        ("data: " + "9" * 10_000, "YAML but"),
        ("data: !!python/object/apply:os.system [echo]\n", "YAML but"),
        ("data: \0\n", "YAML but"),
        ("data: 0x" + "f" * 10_000, "a number has 10,002 digits"),
        ("seeds: 1\nworkers: 1\nseeds: 2\n", "'seeds' is there in line 1 and again in line 3"),
        ("data: {name: digits, limit: 5, limit: 6}\n", "'limit' is there in line 1 and again"),
    ],
    ids=range(12),
)
def test_hostile_yaml_is_one_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        config.load(path)
    assert len(str(error.value)) < 1000
    if len(text) < 2000:
        with pytest.raises(ConfigError):
            config.load(None, sets=[f"data.name={text.partition(': ')[2]}"])


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("seeds=1000000000000", r"seeds: expected how many \(1 to 100,000\)"),
        ("experiment.cycles=1000000000", "experiment.cycles: expected an integer"),
        ("model.width=99999999999999999999", r"width: expected a number of at most 2\^53"),
        ("training.epochs=-99999999999999999999", r"epochs: expected a number of at most 2\^53"),
    ],
)
def test_counts_that_no_machine_can_hold_are_refused(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.assemble(config.load(None, sets=["data.limit=60", assignment]))


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "~nobody-of-this-name/data"])
def test_a_path_that_no_system_has_is_no_such_path(path: str) -> None:
    with pytest.raises(DataError, match="there is no such path"):
        datasets.load("npz", path)


def test_lines_with_keys_of_their_own_make_no_table_of_any_size(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"  # 90 kB, and 16 million cells
    path.write_text("".join(f'{{"k{i}": 1, "y": {i % 2}}}\n' for i in range(4000)))
    with pytest.raises(DataError, match=r"to take at most 0\.1 GiB .* asks for 0\.119 GiB"):
        datasets.load("table", path, target="y", read_limit=0.1)


def test_aliases_of_ordinary_size_are_read(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seeds: &n 3\nfull_data: *n\n")
    loaded = config.load(path)
    assert (loaded.seeds, loaded.full_data) == ((0, 1, 2), 3)


def test_subtomograms_skip_a_first_volume_that_is_damaged(tmp_path: Path) -> None:
    from upslope.cryoet.mrc import write_volume

    lines = ["data_", "loop_", "_rlnImageName #1", "_rlnClassNumber #2"]
    for k in range(8):
        volume = np.random.default_rng(k).normal(size=(8, 8, 8))
        write_volume(tmp_path / f"{k}.mrc", volume, 2.0)
        lines.append(f"{k}.mrc {k % 2 + 1}")
    (tmp_path / "p.star").write_text("\n".join([*lines, ""]))
    (tmp_path / "0.mrc").write_bytes(b"cut short")
    with pytest.raises(DataError, match=r"0\.mrc"):
        datasets.load("subtomograms", tmp_path)
    with pytest.warns(UserWarning, match="(?i)left out 1 of 8 particles"):
        splits = datasets.load("subtomograms", tmp_path, on_error="skip")
    assert len(splits.pool) + len(splits.test) == 7


def test_a_damaged_arrow_file_is_refused_before_it_is_mapped(tmp_path: Path) -> None:
    import pyarrow as pa

    from upslope.datasets.arrow import check_ipc

    path = tmp_path / "train.arrow"
    table = pa.table({"s": ["a" * k for k in range(50)]})
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    check_ipc(path)
    data = path.read_bytes()
    offsets = np.cumsum([0, *range(50)]).astype("<i4").tobytes()
    at = data.index(offsets)
    path.write_bytes(data[: at + 40] + struct.pack("<i", 1 << 30) + data[at + 44 :])
    with pytest.raises(DataError, match=r"train\.arrow but reading it failed"):
        check_ipc(path)


def test_what_no_reader_foresaw_is_still_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(root: Path, *, progress: object) -> datasets.Splits:
        raise ZeroDivisionError("in a library")

    monkeypatch.setitem(datasets.REGISTRY, "digits", broken)
    with pytest.raises(DataError, match="ZeroDivisionError: in a library") as error:
        datasets.load("digits")
    assert isinstance(error.value, UpslopeError)
