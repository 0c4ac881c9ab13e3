"""Pools by URL: each format gives the same samples; what is wrong with a shard is told by name."""

from __future__ import annotations

import errno
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from json import JSONDecodeError
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shards_to_write import (
    SIDE,
    id_of,
    pixels,
    png,
    write_addresses,
    write_arrays,
    write_images,
    write_parquet,
    write_tars,
)

from upslope.errors import ConfigError, DataError, RunError
from upslope.pools import Patience, ReadOptions, ShardedPool, Storage, StorageError, open_pool
from upslope.pools.rows import temporary_file
from upslope.pools.shard import Shard
from upslope.pools.storage import Entry


def samples(pool: ShardedPool) -> dict[str, np.ndarray]:
    """id -> (c, h, w) pixels, over all shards."""
    every = {}
    for shard in pool.shards:
        with pool.open(shard) as rows:
            assert len(rows) == len(rows.ids)
            images = rows.inputs(range(len(rows))).numpy()
            every |= dict(zip(rows.ids, images, strict=True))
    return every


def opened(kind: str, folder: Path) -> ShardedPool:
    if kind == "parquet":
        return open_pool(f"file://{write_parquet(folder / 'pool')}")
    if kind == "arrays":
        options = ReadOptions(shape=(3, SIDE, SIDE))
        return open_pool(str(write_arrays(folder / "pool")), options=options)
    if kind == "tars":
        return open_pool(f"{write_tars(folder / 'pool')}/{{00000..00002}}.tar")
    if kind == "images":
        return open_pool(
            str(write_images(folder / "pool")),
            index=folder / "index.arrow",
            options=ReadOptions(per_shard=4),
        )
    table = write_addresses(folder / "pool", folder / "images")
    return open_pool(str(table), options=ReadOptions(images_at=str(folder / "images")))


@pytest.mark.parametrize("kind", ["parquet", "arrays", "tars", "images", "addresses"])
def test_every_format_gives_the_samples_under_their_ids(kind: str, tmp_path: Path) -> None:
    pool = pickle.loads(pickle.dumps(opened(kind, tmp_path)))
    every = samples(pool)
    assert len(pool) == (4 if kind == "images" else 3)
    assert pool.input_shape == (3, SIDE, SIDE)
    name = (lambda n: f"{n // 5}/{id_of(n)}.png") if kind == "images" else id_of
    assert sorted(every) == sorted(name(n) for n in range(15))
    for n in range(15):
        np.testing.assert_array_equal(every[name(n)], pixels(n).transpose(2, 0, 1))


def test_rows_without_ids_are_named_by_shard_and_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [png(0), png(1)]}), tmp_path / "a.parquet")
    assert sorted(samples(open_pool(str(tmp_path)))) == ["a.parquet#0", "a.parquet#1"]


def test_a_folder_is_listed_once_in_order_of_names(tmp_path: Path) -> None:
    folder, index = write_images(tmp_path / "pool"), tmp_path / "index.arrow"
    first = open_pool(str(folder), index=index)
    (folder / "0" / "a-new-one.png").write_bytes(png(99))
    assert open_pool(str(folder), index=index).shards == first.shards


def test_a_missing_shard_of_a_range_is_named(tmp_path: Path) -> None:
    write_tars(tmp_path)
    (tmp_path / "00001.tar").unlink()
    with pytest.raises(DataError, match=r"00001\.tar but there is none"):
        open_pool(f"{tmp_path}/{{00000..00002}}.tar")


def test_names_that_state_a_total_tell_missing_shards(tmp_path: Path) -> None:
    write_parquet(tmp_path / "all")
    for i in (0, 2):
        source = tmp_path / "all" / f"part-{i:05d}.parquet"
        source.rename(tmp_path / f"part-{i:05d}-of-00003.parquet")
    with pytest.raises(DataError, match=r"part-\*-of-00003.*but 1 is missing"):
        open_pool(f"{tmp_path}/*.parquet")


@pytest.mark.parametrize("name", ["photos [2024]", "what?", "a{b}", "stars*"])
def test_a_folder_may_be_named_as_patterns_are(name: str, tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / name)
    assert len(open_pool(str(folder))) == 3
    assert len(open_pool(str(folder / "part-00001.parquet"))) == 1


def test_a_total_beyond_all_shards_is_told_at_once(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [png(0)]}), tmp_path / "part-1-of-99999999999.parquet")
    with pytest.raises(DataError, match=r"but 0, 2, 3 and 99999999995 more are missing"):
        open_pool(str(tmp_path))


@pytest.mark.parametrize(("write", "ending"), [(write_parquet, "parquet"), (write_tars, "tar")])
def test_a_shard_cut_short_is_named(write: object, ending: str, tmp_path: Path) -> None:
    write(tmp_path)  # type: ignore[operator]
    last = sorted(tmp_path.glob(f"*.{ending}"))[-1]
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 3])
    pool = open_pool(str(tmp_path))
    with pytest.raises(DataError, match=last.name), pool.open(pool.shards[-1]):
        pass


@pytest.mark.parametrize("column", ["arrays", "another name", "floats", "another shape"])
def test_a_shard_of_another_schema_is_named(column: str, tmp_path: Path) -> None:
    write_parquet(tmp_path) if "name" in column or column == "arrays" else write_arrays(tmp_path)
    shape = (3, SIDE, SIDE)
    arrays = {
        "arrays": {"image": [[1, 2]], "id": ["x"]},
        "another name": {"img": [png(0)], "id": ["x"]},
        "floats": {"image": [[0.5] * 192], "id": ["x"]},
        "another shape": {"image": [[[0] * 16] * 12], "id": ["x"]},
    }[column]
    types = {"another shape": pa.list_(pa.list_(pa.uint8())), "arrays": pa.list_(pa.uint8())}
    table = pa.table({k: pa.array(v, types.get(column) if k == "image" else None)
                      for k, v in arrays.items()})  # fmt: skip
    pq.write_table(table, tmp_path / "zz.parquet")
    pool = open_pool(str(tmp_path), options=ReadOptions(shape=shape))
    with pytest.raises(DataError, match=r"zz\.parquet"), pool.open(pool.shards[-1]):
        pass


def test_an_id_twice_in_a_shard_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["x", "x"], "image": [png(0), png(1)]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="'x' is there twice"):
        open_pool(str(tmp_path))


def test_a_cache_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shard = Shard(0, "a.parquet", "bucket/a.parquet", 3, "tag")
    with pytest.raises(RunError, match=r"able to write .*cache"), temporary_file(shard):
        pass


@pytest.mark.parametrize("address", ["../secret.png", "/etc/hostname", "file:///etc/hostname",
                                     "s3://other/x.png", "link.png"])  # fmt: skip
def test_addresses_lead_nowhere_else(address: str, tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(png(0))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "good.png").write_bytes(png(1))
    pq.write_table(pa.table({"id": ["a", "b"], "path": ["good.png", address]}),
                   folder / "a.parquet")  # fmt: skip
    with pytest.raises(DataError, match="addresses of images below"):
        open_pool(f"{folder}/*.parquet")


@pytest.mark.parametrize(
    ("address", "words"),
    [("a\0b.png", "addresses of images"), ("loop.png", "links lead nowhere")],
    ids=["zero byte", "loop"],
)
def test_addresses_that_no_file_can_have_are_refused(
    address: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "good.png").write_bytes(png(1))
    (tmp_path / "loop.png").symlink_to("loop.png")
    pq.write_table(pa.table({"path": ["good.png", address]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=words):
        open_pool(f"{tmp_path}/*.parquet")


def test_a_tar_that_leads_out_of_the_archive_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        member = tarfile.TarInfo("../out.png")
        member.size = len(png(0))
        archive.addfile(member, io.BytesIO(png(0)))
    with pytest.raises(DataError, match=r"has a part \"\.\.\""):
        open_pool(str(tmp_path))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://host/pool", "Expected a pool at file://"),
        ("zip://a::file:///b", "Expected a pool at"),
        ("s3://key:secret@bucket/pool", "no credentials in the URL"),
    ],
)
def test_urls_that_are_not_read_are_refused(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        open_pool(url)
    assert "secret" not in str(raised.value)


def test_formats_that_lie_together_are_refused_unless_named(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    write_images(tmp_path)
    with pytest.raises(ConfigError, match="parquet and images"):
        open_pool(str(tmp_path), index=tmp_path / "index.arrow")
    assert len(open_pool(str(tmp_path), format="parquet")) == 3


def test_metadata_beside_tars_is_no_shard(tmp_path: Path) -> None:
    write_tars(tmp_path)
    for tar in tmp_path.glob("*.tar"):
        pq.write_table(pa.table({"key": ["x"]}), tar.with_suffix(".parquet"))
    assert open_pool(str(tmp_path)).format == "webdataset"


class Failing:
    """A file system whose first calls fail."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self, _: object) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "content"


QUICK = Patience(attempts=4, first=0.001)


def test_errors_that_pass_are_tried_again() -> None:
    failing = Failing(OSError("slow down"), TimeoutError(), ConnectionError("reset"))
    assert Storage("memory", {}, QUICK).attempt(failing, "x") == "content"
    assert failing.calls == 4


def test_a_garbled_answer_is_asked_for_again() -> None:
    failing = Failing(JSONDecodeError("Expecting value", "<html>", 0))
    assert Storage("memory", {}, QUICK).attempt(failing, "x") == "content"


def test_errors_that_stay_are_told_with_the_last() -> None:
    failing = Failing(*[OSError(f"slow down {i}") for i in range(9)])
    with pytest.raises(StorageError, match=r"memory://x but it failed 4 times.*slow down 3"):
        Storage("memory", {}, QUICK).attempt(failing, "x")


def test_what_will_not_pass_is_told_at_once() -> None:
    for error, kind, words in (
        (PermissionError("AccessDenied"), StorageError, "credentials"),
        (FileNotFoundError("x"), DataError, "there is none"),
        (OSError(errno.ENAMETOOLONG, "File name too long"), DataError, "there is none"),
        (OSError(errno.ELOOP, "Too many levels of links"), DataError, "there is none"),
        (ValueError("Bucket name invalid"), StorageError, "cannot be asked for.*name invalid"),
    ):
        failing = Failing(error)
        with pytest.raises(kind, match=words):
            Storage("memory", {}, QUICK).attempt(failing, "x")
        assert failing.calls == 1


def test_pauses_double_up_to_the_most() -> None:
    patience = Patience(first=1, most=5)
    for failures, longest in ((1, 1), (2, 2), (3, 4), (4, 5), (9, 5)):
        assert longest / 2 <= patience.pause(failures) <= longest


NOTHING = {
    "bytes": (lambda n: png(n), None),
    "struct": (lambda n: {"bytes": png(n), "path": f"{n}.png"}, {"bytes": None, "path": "x.png"}),
    "address": (lambda n: f"{n}.png", None),
}


@pytest.mark.parametrize("row", [0, 3])
@pytest.mark.parametrize("kind", NOTHING)
def test_a_row_without_an_image_is_named_with_its_shard(
    kind: str, row: int, tmp_path: Path
) -> None:
    cell, nothing = NOTHING[kind]
    for n in range(5):
        (tmp_path / f"{n}.png").write_bytes(png(n))
    cells = [nothing if n == row else cell(n) for n in range(5)]
    column = "path" if kind == "address" else "image"
    pq.write_table(pa.table({"id": list("abcde"), column: cells}), tmp_path / "z.parquet")
    pool = open_pool(f"{tmp_path}/z.parquet", options=ReadOptions(images_at=str(tmp_path)))
    with pool.open(pool.shards[0]) as rows:
        others = [n for n in range(5) if n != row]
        assert len(rows.inputs(others)) == 4
        with pytest.raises(DataError, match=rf"in row {row} \(from 0\) of .*z\.parquet but the"):
            rows.inputs(range(5))


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([[1] * 12, None], r"row 1 \(from 0\) has an empty cell"),
        ([[1] * 12, [1] * 11], "row 1 has 11 numbers where row 0 has 12"),
        ([[1] * 12, [1] * 11 + [None]], r"row 1 \(from 0\) has an empty number"),
        ([[[1] * 4] * 3, [[1] * 4, [1] * 4, [1] * 3]], "row 1 has 3 numbers where row 0 has 4"),
    ],
)
def test_a_row_whose_array_differs_is_named(
    cells: list[object], words: str, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"image": cells}), tmp_path / "z.parquet")
    with pytest.raises(DataError, match=rf"z\.parquet but {words}"):
        open_pool(str(tmp_path))


@pytest.mark.parametrize("kind", ["parquet", "arrays", "floats", "lists", "nulls"])
@pytest.mark.parametrize("empty_first", [False, True])
def test_a_shard_without_rows_is_read_as_such(kind: str, empty_first: bool, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    arrays = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 6)
    numbers = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(24, dtype=np.uint8)), 6)
    tables = {
        "parquet": pa.table({"id": ["a", "b"], "image": [png(0), png(1)]}),
        "arrays": pa.table({"id": list("abcd"), "image": numbers}),
        "floats": pa.table({"id": list("abcd"), "features": arrays}),
        "lists": pa.table({"id": list("abcd"), "features": rows.tolist()}),
        "nulls": pa.table({"id": list("abcd"), "features": rows.tolist()}),
    }
    none = tables[kind].slice(0, 0)
    if kind == "nulls":  # as of a frame without rows
        none = pa.table({name: pa.nulls(0) for name in none.column_names})
    both = (none, tables[kind]) if empty_first else (tables[kind], none)
    for number, table in enumerate(both):
        pq.write_table(table, tmp_path / f"part-{number}.parquet")
    pool = open_pool(str(tmp_path))
    with pool.open(pool.shards[0 if empty_first else 1]) as empty:
        assert len(empty) == 0
        assert empty.inputs([]).shape == (0, *pool.input_shape)


def test_a_tar_without_members_is_a_shard_without_rows(tmp_path: Path) -> None:
    write_tars(tmp_path)
    for name in ("00000a.tar", "a.tar"):
        tarfile.open(tmp_path / name, "w").close()
    pool = open_pool(str(tmp_path))
    assert len(samples(pool)) == 15


@pytest.mark.parametrize("first", ["small", "large"])
def test_images_of_two_writers_are_of_one_kind(first: str, tmp_path: Path) -> None:
    small = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    large = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])
    kinds = (small, large) if first == "small" else (large, small)
    for number, kind in enumerate(kinds):
        cells = pa.array([{"bytes": png(number), "path": None}], kind)
        pq.write_table(pa.table({"image": cells}), tmp_path / f"{number}.parquet")
    assert len(samples(open_pool(str(tmp_path)))) == 2


def test_images_of_cameras_are_read_and_those_of_systems_left_out_with_a_count(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "pool"
    names = ["_MG_0001.png", "IMG_2.PNG", "_new/a.png", "b/_DSC3.png"]
    left = ["@eaDir/IMG_2.png/THUMB_XL.png", ".hidden/c.png", "b/.d.png", "notes.txt", "Makefile"]
    for number, name in enumerate(names + left):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels(number)))
    told = r": 1 file of the kind \.txt, 1 file without a suffix, 1 hidden file, 2 hidden folders\."
    with pytest.warns(UserWarning, match=told):
        pool = open_pool(str(folder), index=tmp_path / "index.arrow")
    assert set(samples(pool)) == set(names)


def test_files_beside_shards_that_are_not_read_are_counted(tmp_path: Path) -> None:
    write_tars(tmp_path)
    for name in ("00003.tar.gz", "00004.tgz", "README", "_SUCCESS"):
        (tmp_path / name).write_bytes(b"")
    words = "1 file of the kind .gz, 1 file of the kind .tgz, 1 file without a suffix"
    with pytest.warns(UserWarning, match=f"{words}. They are not read as shards"):
        assert len(open_pool(str(tmp_path))) == 3


def test_shards_that_programs_have_not_finished_are_no_shards(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "pool")
    before = len(open_pool(str(folder)))
    (folder / "_temporary").mkdir()
    first = next(folder.glob("*.parquet"))
    (folder / "_temporary" / "part.parquet").write_bytes(first.read_bytes())
    (folder / "_SUCCESS").write_bytes(b"")
    assert len(open_pool(str(folder))) == before


def test_a_row_with_a_path_in_place_of_bytes_is_told_as_such(tmp_path: Path) -> None:
    cells = [{"bytes": png(pixels(i)), "path": f"{i}.png"} for i in range(3)]
    cells[1]["bytes"] = None
    pq.write_table(pa.table({"id": list("abc"), "image": cells}), tmp_path / "a.parquet")
    with open_pool(str(tmp_path)).open(open_pool(str(tmp_path)).shards[0]) as rows:
        assert rows.inputs([0, 2]).shape[0] == 2
        with pytest.raises(DataError, match=r"row 1 \(from 0\).* has the path '1\.png' alone"):
            rows.inputs([1])


@pytest.mark.parametrize("order", [None, [0, 1, 2], [2, 0, 1]])
def test_tensors_with_dimensions_in_another_order_are_refused(
    order: list[int] | None, tmp_path: Path
) -> None:
    values = np.arange(120, dtype=np.uint8).reshape(4, 3, 2, 5)
    storage = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 30)
    kind = pa.fixed_shape_tensor(pa.uint8(), (3, 2, 5), permutation=order)
    tensors = pa.ExtensionArray.from_storage(kind, storage)
    pq.write_table(pa.table({"id": list("abcd"), "image": tensors}), tmp_path / "a.parquet")
    if order == [2, 0, 1]:
        with pytest.raises(DataError, match=r"the permutation \[2, 0, 1\]"):
            open_pool(str(tmp_path))
    else:
        read = samples(open_pool(str(tmp_path)))
        assert all(np.array_equal(read[id_], values[i]) for i, id_ in enumerate("abcd"))


@pytest.mark.parametrize("write", [write_parquet, write_tars])
def test_a_shard_that_is_written_again_after_the_listing_is_named(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    pool = open_pool(str(write(tmp_path)))
    shard = pool.shards[1]
    os.utime(shard.path, (1, 1))  # as of another content of the same length
    message = rf"{shard.name} to stay as it was listed.*{shard.size:,} bytes \(1"
    with pytest.raises(DataError, match=message), pool.open(shard):
        pass


def test_a_shard_that_is_written_again_while_it_is_fetched_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    bucket = fsspec.filesystem("memory")
    for path in sorted(write_tars(tmp_path).glob("*.tar")):
        bucket.pipe_file(f"/photographs/{path.name}", path.read_bytes())
    pool = open_pool("memory://photographs")
    shard = pool.shards[1]
    monkeypatch.setattr(
        "upslope.pools.storage._entry",
        lambda info: Entry(str(info["name"]), False, int(info["size"]), "another"),
    )
    with pytest.raises(DataError, match="to stay as it was listed"), pool.open(shard):
        pass
