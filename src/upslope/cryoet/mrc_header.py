"""Headers of MRC files, checked.

Headers that depart from MRC2014 in ways that leave no doubt about the numbers are read, and each
departure is put into words (`MrcHeader.oddities`). Those that leave a doubt are refused.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from upslope.errors import DataError
from upslope.extras import import_package

HEADER_BYTES = 1024  # bytes, before the extended header
_BYTES, _SIGNED_MAX = 0, 127  # the mode of 8-bit files, and the largest value that it can hold
_IMOD_STAMP, _IMOD_AT, _IMOD_SIGNED = 1146047817, 152, 1
"""IMOD's mark in a header, where it lies, and the bit of the next word that says "bytes are
signed"; https://bio3d.colorado.edu/imod/doc/mrc_format.txt."""
_COMPLEX = ("complex numbers, as of a Fourier transform", "Take the volume in real space")
_UNREAD = {
    3: _COMPLEX,
    4: _COMPLEX,
    16: ("three colours a voxel", "Save one number a voxel"),
    101: ("two numbers of 4 bits a byte", "Make bytes of them, as IMOD's `newstack -mode 0` does"),
}
"""Mode of a file that is not read -> what it holds, and what to do."""
_STAMPS = {0x44: "<", 0x11: ">"}
ANISOTROPY = 1e-3
"""Relative difference of voxel edges above which they count as different."""
_SKEW = 0.05
"""Degrees from a right angle beyond which a cell is skewed; 0 is an angle that nobody has set."""


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


@dataclass(frozen=True)
class _Layout:
    """A header in one byte order, and what it says of the file's content.

    fields: the record of mrcfile. order: "<" or ">". needs: bytes of the whole file.
    """

    fields: Any
    order: str
    kind: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    needs: int


def parse_header(raw: bytes, size: int | None, path: Path, voxel: float | None) -> MrcHeader:
    """Return the header that `raw` holds, in the byte order under which it describes the file.

    raw: the first `HEADER_BYTES` of the file. size: of the file in bytes; None where it is not
    known, and not checked. voxel: edge in angstrom where the header has none.

    Raises:
        DataError: the file is too short or no MRC file, holds complex numbers, has a skewed cell,
            no voxel size, or one that differs between the axes.
        ConfigError: mrcfile is not installed.
    """
    layout = _fitting_layout(raw, size, path)
    fields, kind = layout.fields, layout.kind
    oddities = _oddities_of_format(raw, size, layout)
    if int(fields.mode) == _BYTES and (how := _signedness(raw, layout.order, fields)):
        kind = np.dtype(np.uint8)
        oddities.append(f"holds bytes that are read as unsigned, {how}")
    axes = _axes([int(fields.mapc), int(fields.mapr), int(fields.maps)], path)
    if axes != (0, 1, 2):
        oddities.append("stores its axes in another order; they are brought to z, y, x")
    _refuse_skewed_cell(fields, path)
    edge = _isotropic(path, _edges(fields), voxel)
    if voxel is not None and abs(edge - voxel) > ANISOTROPY * voxel:
        oddities.append(
            f"has voxels of {edge:g} angstrom by its header, not the {voxel:g} of `data.voxel`"
        )
    start = _start(fields, edge)
    return MrcHeader(layout.shape, kind, layout.offset, axes, edge, tuple(oddities), start)


def _fitting_layout(raw: bytes, size: int | None, path: Path) -> _Layout:
    """Return the layout in the stated byte order, or in the other where that alone fits the
    file.
    """
    if len(raw) < HEADER_BYTES:
        raise DataError(
            f"Expected an MRC file in {path}, which begins with {HEADER_BYTES} bytes of header, "
            f"but it has {len(raw)} bytes. Get it again."
        )
    stated_order = _STAMPS.get(raw[212], "<")
    problem = ""
    for order in (stated_order, {"<": ">", ">": "<"}[stated_order]):
        try:
            layout = _layout(raw, order, path)
            if size is not None and size < layout.needs:
                raise ValueError(f"it has {size} bytes and its header asks for {layout.needs}")
            break
        except ValueError as error:
            problem = problem or str(error)
    else:
        raise DataError(
            f"Expected an MRC file in {path} but {problem}. It is cut short or of another format: "
            "get it again."
        )
    _refuse_unread_mode(int(layout.fields.mode), path)
    if len(layout.shape) not in (3, 4):
        raise DataError(
            f"Expected a volume, or a stack of volumes, in {path} but it is an image of "
            f"{layout.shape[0]} rows and {layout.shape[1]} columns. Take the reconstructed volume."
        )
    return layout


def _layout(raw: bytes, order: str, path: Path) -> _Layout:
    """Return the layout in a byte order. Raises ValueError, with the reason, where it describes
    none; DataError where it is one of numbers that are not read.
    """
    import_package("mrcfile", "to read this file", "cryoet")
    from mrcfile.dtypes import HEADER_DTYPE
    from mrcfile.utils import (
        data_dtype_from_header,
        data_shape_from_header,
        spacegroup_is_volume_stack,
    )

    fields = np.frombuffer(raw, HEADER_DTYPE.newbyteorder(order)).reshape(()).view(np.recarray)
    sides = [int(n) for n in (fields.nx, fields.ny, fields.nz)]
    if not all(0 < n < 2**24 for n in sides) or int(fields.nsymbt) < 0:
        raise ValueError(f"its header says {sides} columns, rows and sections")
    depth = int(fields.mz) if spacegroup_is_volume_stack(fields.ispg) else sides[2]
    if depth < 1 or sides[2] % depth:
        raise ValueError(f"its {sides[2]} sections are no stack of volumes of {depth}")
    try:
        kind = data_dtype_from_header(fields)
    except ValueError:  # a mode that mrcfile does not know
        _refuse_unread_mode(int(fields.mode), path)
        raise
    shape = data_shape_from_header(fields)
    offset = HEADER_BYTES + int(fields.nsymbt)
    return _Layout(fields, order, kind, shape, offset, offset + math.prod(shape) * kind.itemsize)


def _refuse_unread_mode(mode: int, path: Path) -> None:
    if mode in _UNREAD:
        content, advice = _UNREAD[mode]
        raise DataError(
            f"Expected volumes of real numbers in {path} but its mode is {mode}: {content}. "
            f"{advice}."
        )


def _oddities_of_format(raw: bytes, size: int | None, layout: _Layout) -> list[str]:
    """Return what the identifier, the machine stamp and the file's length do otherwise than
    MRC2014.
    """
    oddities = []
    if raw[208:211] != b"MAP":
        oddities.append("has no MAP identifier; its sizes fit its length, and it is read as MRC")
    if layout.order != _STAMPS.get(raw[212]):
        stamp = raw[212:216].hex(" ")
        word = "little" if layout.order == "<" else "big"
        oddities.append(f"has the machine stamp {stamp}; it is read as {word}-endian, which fits")
    if size is not None and size > layout.needs:
        rest = size - layout.needs
        oddities.append(f"is {rest} bytes longer than its header says; the end is not read")
    return oddities


def _edges(fields: Any) -> list[float]:
    """Return the edges of a voxel in angstrom, (x, y, z); NaN where the header gives none."""
    counts = {axis: int(fields[f"m{axis}"]) for axis in "xyz"}
    return [float(fields.cella[a]) / n if n > 0 else math.nan for a, n in counts.items()]


def _refuse_skewed_cell(fields: Any, path: Path) -> None:
    angles = [float(fields.cellb[name]) for name in ("alpha", "beta", "gamma")]
    if any(angle != 0 and not abs(angle - 90) <= _SKEW for angle in angles):
        raise DataError(
            f"Expected a cell with right angles in {path} but got {angles} degrees. Resample the "
            "volume to cubic voxels, or set the angles to 90 where the header is wrong."
        )


def _start(header: Any, edge: float) -> tuple[float, float, float]:
    """Return where the first voxel lies, (x, y, z) in angstrom: ORIGIN, or else the start in
    voxels.

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
    """Return why bytes are unsigned though MRC2014 has them signed; "" where nothing says so."""
    mark, flags = struct.unpack_from(f"{order}ii", raw, _IMOD_AT)
    if mark == _IMOD_STAMP:
        return "" if flags & _IMOD_SIGNED else "as its IMOD stamp says"
    if header.dmin >= 0 and header.dmax > _SIGNED_MAX:
        return f"as its header gives {header.dmax:g} as the largest value"
    return ""


def _axes(axis_codes: list[int], path: Path) -> tuple[int, int, int]:
    """Return the dimension, among sections, rows and columns, that is z, that is y and that is
    x.
    """
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
