"""MRC files: volumes and stacks of volumes, with an isotropic voxel size, checked.

Headers that depart from MRC2014 in ways that leave no doubt about the numbers are read, and each
departure is put into words (`MrcHeader.oddities`). Those that leave a doubt are refused.
"""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from upslope.errors import DataError
from upslope.extras import import_package
from upslope.files import write_atomically
from upslope.reading import check_room, compression_of, count_rest, open_unpacked, reporting_damage

_HEADER = 1024  # bytes, before the extended header
_BYTES, _SIGNED_MAX = 0, 127  # the mode of 8-bit files, and the largest value that it can hold
_IMOD_STAMP, _IMOD_AT, _IMOD_SIGNED = 1146047817, 152, 1
"""IMOD's mark in a header, where it lies, and the bit of the next word that says "bytes are
signed"; https://bio3d.colorado.edu/imod/doc/mrc_format.txt."""
_STAMPS = {0x44: "<", 0x11: ">"}
ANISOTROPY = 1e-3
"""Relative difference of voxel edges above which they count as different."""
_SKEW = 0.05
"""Degrees from a right angle beyond which a cell is skewed; 0 is an angle that nobody has set."""


@dataclass(frozen=True, eq=False)
class MrcVolume:
    """values: (..., z, y, x); voxel: edge in angstrom."""

    values: NDArray[np.float32]
    voxel: float


@dataclass(frozen=True, eq=False)
class MappedVolume:
    """values: (..., z, y, x) in the type of the file, read as they are looked at; voxel: edge."""

    values: NDArray[np.generic]
    voxel: float
    oddities: tuple[str, ...] = ()


@dataclass(frozen=True)
class MrcHeader:
    """The layout of an MRC file.

    shape: as stored, (..., sections, rows, columns). kind: type and byte order of the values.
    offset: bytes before them. axes: how the last three dimensions become z, y, x. voxel: edge in
    angstrom. start: of the first voxel, (x, y, z) in angstrom, as NXSTART and ORIGIN have it, 0
    where neither says so; nothing is moved by it. oddities: what departs from MRC2014 and how it
    was taken, each the end of a sentence that begins with the file's name.
    """

    shape: tuple[int, ...]
    kind: np.dtype[Any]
    offset: int
    axes: tuple[int, int, int]
    voxel: float
    oddities: tuple[str, ...]
    start: tuple[float, float, float] = (0.0, 0.0, 0.0)


def read_volume(path: Path, voxel: float | None = None) -> MrcVolume:
    """Read a volume (z, y, x), or a stack of volumes (n, z, y, x), of an MRC file.

    The file may be compressed with gzip or bzip2. voxel: the voxel size where the header has none.
    The values are float32. Oddities of the header are told in a warning.

    Raises:
        DataError: the file is truncated or no MRC file, holds complex numbers, NaN or infinity,
            has no voxel size, or one that differs between the axes.
        ConfigError: mrcfile is not installed.
    """
    density_map = map_volume(path, voxel)
    for oddity in density_map.oddities:
        warnings.warn(f"{path} {oddity}.", stacklevel=2)
    return MrcVolume(finite(density_map.values, path), density_map.voxel)


def map_volume(path: Path, voxel: float | None = None) -> MappedVolume:
    """Map a volume into memory: of a tomogram, only the pages that are looked at are read.

    A compressed file cannot be mapped, and is read. Values are not checked: `finite` does that.

    Raises:
        DataError, ConfigError: as for `read_volume`, but for what the values are.
    """
    grid: NDArray[np.generic]
    with _reading(path) as file:
        if compression_of(path) is None:
            header = _parse(file.read(_HEADER), path.stat().st_size, path, voxel)
            grid = np.memmap(path, header.kind, "r", header.offset, header.shape)
        else:
            header, grid = _unpacked_values(file, path, voxel)
    front = tuple(range(grid.ndim - 3))
    order = (*front, *(len(front) + axis for axis in header.axes))
    return MappedVolume(grid.transpose(order), header.voxel, header.oddities)


def read_header(path: Path, voxel: float | None = None) -> MrcHeader:
    """Read the header of an MRC file, and check it against the length of an uncompressed file.

    Raises:
        DataError, ConfigError: as for `map_volume`.
    """
    with _reading(path) as file:
        size = path.stat().st_size if compression_of(path) is None else None
        return _parse(file.read(_HEADER), size, path, voxel)


def finite(values: NDArray[np.generic], name: object) -> NDArray[np.float32]:
    """Return the values, which messages call `name`, as float32.

    Raises:
        DataError: NaN or infinity.
    """
    floats = np.asarray(values).astype(np.float32)
    if not np.isfinite(floats).all():
        bad = int((~np.isfinite(floats)).sum())
        raise DataError(
            f"Expected finite numbers in {name} but {bad} of {floats.size} voxels are NaN or "
            "infinite. Repair or remove the file."
        )
    return floats


def write_volume(path: Path, values: NDArray[np.generic], voxel: float) -> None:
    """Write (z, y, x) as a volume, (n, z, y, x) as a stack of volumes, in float32, whole or not at
    all.

    Raises:
        ConfigError: mrcfile is not installed.
        RunError: the disk is full or cannot be written.
    """
    mrcfile = import_package("mrcfile", "to write this file", "cryoet")

    def write(temporary: Path) -> None:
        with mrcfile.new(temporary, overwrite=True) as out:
            out.set_data(values.astype(np.float32))  # four dimensions make it a stack of volumes
            out.voxel_size = voxel

    write_atomically(path, write)


def _unpacked_values(
    file: IO[bytes], path: Path, voxel: float | None
) -> tuple[MrcHeader, NDArray[np.generic]]:
    """The header and the values of a compressed file, which `file` unpacks; the length that the
    header asks for is checked before so much is read."""
    raw = file.read(_HEADER)
    stated_header = _parse(raw, None, path, voxel)
    needed_size = (
        stated_header.offset + math.prod(stated_header.shape) * stated_header.kind.itemsize
    )
    check_room(needed_size, path)
    content = raw + file.read(needed_size - len(raw))
    size = len(content) + count_rest(file, path, len(content))
    header = _parse(raw, size, path, voxel)  # the other byte order, where that alone fits
    count = math.prod(header.shape)
    values = np.frombuffer(content, header.kind, count, header.offset)
    return header, values.reshape(header.shape)


@contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    """The content of a file, unpacked where it is compressed; failures become DataErrors."""
    with reporting_damage(f"an MRC file in {path}", "Get it again."), open_unpacked(path) as file:
        yield file


def _parse(raw: bytes, size: int | None, path: Path, voxel: float | None) -> MrcHeader:
    """The header that `raw` holds, in the byte order under which it describes the file.

    size: of the file in bytes; None where it is not known, and not checked.
    """
    import_package("mrcfile", "to read this file", "cryoet")
    from mrcfile.dtypes import HEADER_DTYPE
    from mrcfile.utils import (
        data_dtype_from_header,
        data_shape_from_header,
        spacegroup_is_volume_stack,
    )

    if len(raw) < _HEADER:
        raise DataError(
            f"Expected an MRC file in {path}, which begins with {_HEADER} bytes of header, but it "
            f"has {len(raw)} bytes. Get it again."
        )
    byte_order = _STAMPS.get(raw[212])
    problem = ""
    for order in (byte_order or "<", {"<": ">", ">": "<"}[byte_order or "<"]):
        header = np.frombuffer(raw, HEADER_DTYPE.newbyteorder(order)).reshape(()).view(np.recarray)
        sides = [int(n) for n in (header.nx, header.ny, header.nz)]
        if not all(0 < n < 2**24 for n in sides) or int(header.nsymbt) < 0:
            problem = problem or f"its header says {sides} columns, rows and sections"
            continue
        depth = int(header.mz) if spacegroup_is_volume_stack(header.ispg) else sides[2]
        if depth < 1 or sides[2] % depth:
            problem = problem or f"its {sides[2]} sections are no stack of volumes of {depth}"
            continue
        try:
            kind, shape = data_dtype_from_header(header), data_shape_from_header(header)
        except ValueError as error:
            problem = problem or str(error)
            continue
        offset = _HEADER + int(header.nsymbt)
        needs = offset + math.prod(shape) * kind.itemsize
        if size is not None and size < needs:
            problem = problem or f"it has {size} bytes and its header asks for {needs}"
            continue
        break
    else:
        raise DataError(
            f"Expected an MRC file in {path} but {problem}. It is cut short or of another format: "
            "get it again."
        )
    if len(shape) not in (3, 4) or kind.kind not in "fiu":
        raise DataError(
            f"Expected volumes of real numbers in {path} but got shape {shape} of {kind}."
        )
    odd = []
    if raw[208:211] != b"MAP":
        odd.append("has no MAP identifier; its sizes fit its length, and it is read as MRC")
    if order != byte_order:
        stamp = raw[212:216].hex(" ")
        word = "little" if order == "<" else "big"
        odd.append(f"has the machine stamp {stamp}; it is read as {word}-endian, which fits")
    if size is not None and size > needs:
        odd.append(f"is {size - needs} bytes longer than its header says; the end is not read")
    if int(header.mode) == _BYTES and (how := _signedness(raw, order, header)):
        kind = np.dtype(np.uint8)
        odd.append(f"holds bytes that are read as unsigned, {how}")
    axes = _axes([int(header.mapc), int(header.mapr), int(header.maps)], path)
    if axes != (0, 1, 2):
        odd.append("stores its axes in another order; they are brought to z, y, x")
    edges = [
        float(header.cella[axis]) / n if (n := int(header[f"m{axis}"])) > 0 else math.nan
        for axis in "xyz"
    ]
    angles = [float(header.cellb[name]) for name in ("alpha", "beta", "gamma")]
    if any(angle != 0 and not abs(angle - 90) <= _SKEW for angle in angles):
        raise DataError(
            f"Expected a cell with right angles in {path} but got {angles} degrees. Resample the "
            "volume to cubic voxels, or set the angles to 90 where the header is wrong."
        )
    edge = _isotropic(path, edges, voxel)
    if voxel is not None and abs(edge - voxel) > ANISOTROPY * voxel:
        odd.append(
            f"has voxels of {edge:g} angstrom by its header, not the {voxel:g} of `data.voxel`"
        )
    return MrcHeader(shape, kind, offset, axes, edge, tuple(odd), _start(header, edge))


def _start(header: Any, edge: float) -> tuple[float, float, float]:
    """Where the first voxel lies, (x, y, z) in angstrom: ORIGIN, or else the start in voxels.

    The starts are those of columns, rows and sections.
    """
    origin = tuple(float(header.origin[axis]) for axis in "xyz")
    if any(math.isfinite(value) and value != 0 for value in origin):
        return origin[0], origin[1], origin[2]
    starts = [int(header.nxstart), int(header.nystart), int(header.nzstart)]
    along = [int(header.mapc), int(header.mapr), int(header.maps)]
    place = dict(zip(along if sorted(along) == [1, 2, 3] else (1, 2, 3), starts, strict=True))
    return place[1] * edge, place[2] * edge, place[3] * edge


def _signedness(raw: bytes, order: str, header: Any) -> str:
    """Why bytes are unsigned though MRC2014 has them signed; "" where nothing says so."""
    mark, flags = struct.unpack_from(f"{order}ii", raw, _IMOD_AT)
    if mark == _IMOD_STAMP:
        return "" if flags & _IMOD_SIGNED else "as its IMOD stamp says"
    if header.dmin >= 0 and header.dmax > _SIGNED_MAX:
        return f"as its header gives {header.dmax:g} as the largest value"
    return ""


def _axes(axis_codes: list[int], path: Path) -> tuple[int, int, int]:
    """The dimension, among sections, rows and columns, that is z, that is y and that is x."""
    if axis_codes == [0, 0, 0]:  # older than the field
        return 0, 1, 2
    if sorted(axis_codes) != [1, 2, 3]:
        raise DataError(
            f"Expected the columns, rows and sections of {path} to be axes 1, 2 and 3 in some "
            f"order but got {axis_codes}. Set MAPC, MAPR and MAPS in its header."
        )
    columns, rows, sections = axis_codes
    place = {sections: 0, rows: 1, columns: 2}
    return place[3], place[2], place[1]


def _isotropic(path: Path, edges: list[float], voxel: float | None) -> float:
    if not all(math.isfinite(e) and e > 0 for e in edges):
        if voxel is not None:
            return voxel
        raise DataError(
            f"Expected a voxel size in the header of {path} but got {edges} angstrom (x, y, z). "
            "Give `data.voxel`, in angstrom, or set it in the file."
        )
    if max(edges) - min(edges) > ANISOTROPY * max(edges):
        raise DataError(
            f"Expected voxels of one edge length in {path} but got {edges} angstrom (x, y, z). "
            "Resample the volume to cubic voxels."
        )
    return edges[0]
