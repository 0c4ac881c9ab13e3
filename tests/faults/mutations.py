"""Mutations of files: of their bytes, and of what is packed, summed or structured inside them.

A mutation of bytes alone seldom gets past a checksum or a parser. So packed files are mutated
inside and packed again with right sums, texts by words, JSON by its tree, headers by numbers that
programs stumble over.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.io import loadmat, savemat

NUMBERS = (0, 1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 1000, 0x7FFF, 0x8000, 0xFFFF, 0x10000,
           0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)  # fmt: skip
WORDS = (
    "", " ", "nan", "NaN", "inf", "-inf", "1e999", "-0", "0x10", "1_000", "1,5", "1.5", "9" * 40,
    "1e-400", "null", "None", "NA", "true", "false", "[]", "{}", '"', "'", '""', "\\", "\0", "\r",
    "\n", "\r\n", "\t", ",", ";", "|", "=1+1", "@x", "../../x", "/dev/zero", "C:\\x", "\ufeff",
    "\u202e", "é", "𝟙", "١٢", "<b>", "${x}", "%s" * 9, "x" * 5000, "[" * 3000, '{"a":' * 3000,
    "data_", "loop_", "_x", "#", ";\n", "? : -", "!!python/object:os.system x", "&a [*a]", "*a",
    "<<: *a", "2026-11-27", "12:30", "0o17", "yes", "off", "~",
)  # fmt: skip
_CUT = re.compile(r"([\s,;:\[\]{}\"'|=]+)")
_MOST_INSIDE = 1 << 24  # bytes that a packed file is unpacked to at most


def mutate(data: bytes, name: str, rng: random.Random) -> bytes:
    """Return a mutation of a valid file; name: its file name, which says what is inside."""
    for _ in range(1 + (rng.random() < 0.3) + (rng.random() < 0.1)):
        data = _mutate_once(data, name.lower(), rng)
    return data


def _mutate_once(data: bytes, name: str, rng: random.Random) -> bytes:
    if rng.random() < 0.7:
        try:
            if changed := _inside(data, name, rng):
                return changed
        except Exception:  # it has been mutated before, and is no longer what its name says
            pass
    return rng.choice(_BYTES)(data, rng)


def _inside(data: bytes, name: str, rng: random.Random) -> bytes | None:
    """Mutate what a file of this kind is made of; None where that is its bytes."""
    if name.endswith(".gz"):
        inner = gzip.decompress(data)[:_MOST_INSIDE]
        return gzip.compress(_mutate_once(inner, name[:-3], rng), 1)
    if name.endswith((".npz", ".pt", ".zip")):
        return _zip(data, rng)
    if name.endswith(".npy"):
        return _npy(data, rng)
    if name.endswith(".png"):
        return _png(data, rng)
    if name.endswith((".json", ".jsonl")):
        return _json(data, rng) if rng.random() < 0.6 else _text(data, rng)
    if name.endswith(".tar"):
        return _tar(data, rng)
    if name.endswith((".csv", ".star", ".yaml", ".txt", ".xml")):
        return _text(data, rng)
    if name.endswith(".parquet"):
        return _parquet(data, rng)
    if name.endswith(".safetensors"):
        return _safetensors(data, rng)
    if name.endswith(".mat"):
        return _mat(data, rng)
    return _header(data, rng)


# --- bytes ---


def _flip(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if out else 0):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _overwrite(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    value = rng.choice(NUMBERS)
    size = rng.choice((1, 2, 4, 8))
    order = rng.choice(("little", "big"))
    return data[:at] + (value % (1 << 8 * size)).to_bytes(size, order) + data[at + size :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _remove(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice((1, 4, 64)) :]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at : at + rng.choice((1, 16, 512))] * 2 + data[at:]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 4, 100))) + data[at:]


def _move(data: bytes, rng: random.Random) -> bytes:
    a, b, c = sorted(rng.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def _append(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice((b"\0", b"\n", b"\0" * 4096, data, rng.randbytes(32)))


def _header(data: bytes, rng: random.Random) -> bytes:
    """Set a number at a multiple of four of the first kilobyte."""
    at = 4 * rng.randrange(max(1, min(256, len(data) // 4)))
    size = rng.choice((2, 4, 8))
    value = rng.choice(NUMBERS) % (1 << 8 * size)
    return data[:at] + value.to_bytes(size, rng.choice(("little", "big"))) + data[at + size :]


_BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip, _flip, _overwrite, _overwrite, _cut, _remove, _repeat, _insert, _move, _append, _header,
)  # fmt: skip


# --- texts ---


def _text(data: bytes, rng: random.Random) -> bytes:
    text = data.decode("utf-8", "surrogateescape")
    kind = rng.randrange(8)
    if kind < 4:
        parts = _CUT.split(text)
        at = rng.randrange(len(parts))
        parts[at] = rng.choice(WORDS) if kind < 3 else rng.choice(parts)
        text = "".join(parts)
    elif kind < 7:
        lines = text.splitlines(keepends=True) or [""]
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        change = rng.randrange(4)
        if change == 0:
            del lines[at]
        elif change == 1:
            lines.insert(other, lines[at])
        elif change == 2:
            lines[at], lines[other] = lines[other], lines[at]
        else:
            lines[at] = lines[at].strip() + rng.choice((",", ";", ",x", "\t", " \\", '"')) + "\n"
        text = "".join(lines)
    else:
        coding = rng.choice(("utf-16", "utf-8-sig", "latin-1", "utf-32", "utf-16-le"))
        return text.encode(coding, "replace")
    return text.encode(
        "utf-8", "surrogateescape" if max(text, default="") >= "\udc00" else "replace"
    )


def _json(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove or double a part of the tree; of JSON Lines, of one of its lines."""
    lines = data.decode().splitlines() or [""]
    at = rng.randrange(len(lines)) if len(lines) > 1 and lines[0].startswith("{") else None
    tree = json.loads(lines[at] if at is not None else data)
    text = json.dumps(_tree(tree, rng))
    if at is None:
        return text.encode()
    lines[at] = text
    return ("\n".join(lines) + "\n").encode()


def _tree(tree: Any, rng: random.Random) -> Any:
    strange = (None, True, -1, 0, 1 << 70, 1e308, float("nan"), float("-inf"), "", "\0", [], {},
               [[]], [None], {"": {}}, [1, "a"], "9" * 30, rng.choice(WORDS))  # fmt: skip
    keys = list(tree) if isinstance(tree, dict) else []
    if isinstance(tree, list):
        keys = list(range(len(tree)))
    if not keys or rng.random() < 0.2:
        return rng.choice(strange)
    key = rng.choice(keys)
    change = rng.randrange(5)
    if change == 0 and isinstance(tree, dict):
        tree[rng.choice(WORDS)] = tree.pop(key)
    elif change == 1:
        del tree[key]
    else:
        tree[key] = _tree(tree[key], rng)
    return tree


# --- what is packed, with right sums ---


def _zip(data: bytes, rng: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [
            (i.filename, archive.read(i)) for i in archive.infolist() if i.file_size < _MOST_INSIDE
        ]
    at = rng.randrange(len(members))
    name, inner = members[at]
    change = rng.randrange(8)
    if change == 0:
        members[at] = (rng.choice(("x.npy", "../x.npy", "", name.upper(), "x_train.npy")), inner)
    elif change == 1:
        del members[at]
    elif change == 2:
        members.append((name, inner))
    else:
        members[at] = (name, _mutate_once(inner, name, rng))
    buffer = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice, which is wanted
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for name, inner in members:
                archive.writestr(name, inner)
    return buffer.getvalue()


def _tar(data: bytes, rng: random.Random) -> bytes:
    """Change a member, its name or its kind, or a field of its header whose sum is then right."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [
            (member, reader.read() if (reader := archive.extractfile(member)) else b"")
            for member in archive
        ]
    at = rng.randrange(len(members))
    header, inner = members[at]
    first = members[0][0].name
    names = (*WORDS[:40], header.name.upper(), first, "a/../b.png", "/a.png", "b" * 300)
    change = rng.randrange(8)
    if change == 0:
        header.name = rng.choice(names)
    elif change == 1:
        header.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE,
                                  tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE,
                                  b"x", b"g", b"L", b"?"))  # fmt: skip
        header.linkname = rng.choice(("/etc/passwd", members[0][0].name, ""))
    elif change == 2:
        del members[at]
    elif change == 3:
        members.append((header, inner))
    elif change == 4:
        header.pax_headers = {rng.choice(("size", "path", "GNU.sparse.major", "mtime")):
                              rng.choice(("1", "-1", "9" * 30, "x", "../y"))}  # fmt: skip
    else:
        members[at] = (header, _mutate_once(inner, header.name, rng))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", errors="surrogateescape") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    out = bytearray(buffer.getvalue())
    if rng.random() < 0.2 and len(out) >= 512:  # a field of a header, in octal or in binary
        field = rng.choice((slice(100, 108), slice(124, 136), slice(136, 148), slice(156, 157)))
        size = field.stop - field.start
        value = rng.choice((b"%o" % rng.choice(NUMBERS), b"\x80" + b"\xff" * 11, b"-1", b" "))
        out[field] = value[:size].ljust(size, b"\0")
        out[148:156] = b" " * 8
        out[148:156] = b"%06o\0 " % sum(out[:512])
    return bytes(out)


def _npy(data: bytes, rng: random.Random) -> bytes:
    """Change a word of the header, which stays as long as it says."""
    length = struct.unpack_from("<H", data, 8)[0]
    header = data[10 : 10 + length].decode("latin-1")
    kinds = ("|u1", "<u2", "<f4", "<f8", ">i8", "|b1", "|O", "<c16", "<U5", "|S3", "<M8[s]", "|V8")
    change = rng.randrange(4)
    if change == 0:
        header = re.sub(r"'descr': '[^']*'", f"'descr': '{rng.choice(kinds)}'", header)
    elif change == 1:
        shape = ", ".join(str(rng.choice(NUMBERS)) for _ in range(rng.randrange(5)))
        header = re.sub(r"'shape': \([^)]*\)", f"'shape': ({shape},)", header)
    elif change == 2:
        header = header.replace("False", "True")
    else:
        header = _text(header.encode("latin-1"), rng).decode("latin-1", "replace")
    packed = header.encode("latin-1", "replace")[:65535]
    return data[:8] + struct.pack("<H", len(packed)) + packed + data[10 + length :]


def _png(data: bytes, rng: random.Random) -> bytes:
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    at = rng.randrange(len(chunks))
    kind, inner = chunks[at]
    change = rng.randrange(7)
    if change == 0:
        del chunks[at]
    elif change == 1:
        chunks.insert(rng.randrange(len(chunks) + 1), chunks[at])
    elif change == 2:
        kinds = (b"PLTE", b"tRNS", b"iTXt", b"zTXt", b"eXIf", b"acTL", b"fdAT", b"iCCP", b"gAMA")
        chunks.insert(at, (rng.choice(kinds), rng.choice((b"", inner, rng.randbytes(30)))))
    elif change == 3:
        rng.shuffle(chunks)
    elif kind == b"IDAT":
        chunks[at] = (kind, zlib.compress(_mutate_once(zlib.decompress(inner), "", rng)))
    else:
        chunks[at] = (kind, _overwrite(inner, rng))
    return data[:8] + b"".join(
        struct.pack(">I", len(inner)) + kind + inner + struct.pack(">I", zlib.crc32(kind + inner))
        for kind, inner in chunks
    )


def _safetensors(data: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack_from("<Q", data)
    header = json.dumps(_tree(json.loads(data[8 : 8 + length]), rng)).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def _parquet(data: bytes, rng: random.Random) -> bytes:
    """Write the table again with a column of another type, with nulls, twice, or without it."""
    table = pq.read_table(io.BytesIO(data))
    at = rng.randrange(table.num_columns)
    name, column = table.column_names[at], table.column(at).to_pylist()
    strange = (None, [], [[1], None], {"a": 1}, b"\0", "x", 1 << 62, float("nan"), True)
    change = rng.randrange(6)
    if change == 0:
        table = table.remove_column(at)
    elif change == 1:
        table = table.append_column(name, table.column(at))
    elif change == 2:
        table = table.set_column(at, rng.choice(WORDS), table.column(at))
    elif change == 3:
        table = table.slice(0, rng.randrange(table.num_rows + 1))
    elif change == 4:
        table = table.set_column(at, name, pa.array([rng.choice(strange)] * table.num_rows))
    else:
        column[rng.randrange(len(column))] = None if rng.random() < 0.5 else rng.choice(column)
        table = table.set_column(at, name, pa.array(column))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _mat(data: bytes, rng: random.Random) -> bytes:
    """Write the variables again, one of them changed, or mutate a compressed one inside."""
    arrays = {k: v for k, v in loadmat(io.BytesIO(data)).items() if not k.startswith("__")}
    name = rng.choice(list(arrays))
    value = arrays.pop(name)
    changes: tuple[Callable[[], Any], ...] = (
        lambda: value.astype(rng.choice((np.float64, np.int16, np.complex128))),
        lambda: value[..., :0], lambda: value.T, lambda: np.array([[value, None]], dtype=object),
        lambda: rng.choice(WORDS).replace("\ud7ff", ""), lambda: np.zeros((3, 0)),
        lambda: {"a": value}, lambda: np.full(value.shape, np.nan),
    )  # fmt: skip
    arrays[rng.choice((name, name, "x"))] = rng.choice(changes)()
    buffer = io.BytesIO()
    savemat(buffer, arrays, do_compression=rng.random() < 0.5)
    return buffer.getvalue()
