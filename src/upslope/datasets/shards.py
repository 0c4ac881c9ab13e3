"""The shards of a WebDataset, and the split that each belongs to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from upslope.datasets.folder_names import split_of
from upslope.datasets.left_out import name_some
from upslope.datasets.paths import visible
from upslope.errors import ConfigError, DataError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST = 1_000_000  # shards that a range may name


@dataclass(frozen=True)
class Shards:
    """Tar files in order, and their splits: train, test or validation.

    stated: options or names say which shards are to test on; otherwise all are train.
    lone_validation: the test set is what names call the validation set.
    """

    paths: Sequence[Path]
    splits: Sequence[str]
    stated: bool
    lone_validation: bool = False


def find_shards(root: Path, train: str | None, test: str | None, validation: str | None) -> Shards:
    """Return the tar files that the options name, or else all in `root` by their names' splits.

    root: a folder, or one tar file. train, test, validation: the options, patterns from `root`.

    Raises:
        ConfigError: a pattern without a file, or shards to test on without some to learn from.
        DataError: no tar file, or names of which some say a split and others none or several.
    """
    options = {"shards": train, "test_shards": test, "validation_shards": validation}
    if train is None and (test or validation):
        raise ConfigError(
            "Expected `data.shards`, the tar files to learn from, beside `data.test_shards` and "
            "`data.validation_shards` but got none. Name them too."
        )
    if train is not None:
        if root.is_file():
            raise ConfigError(
                f"Expected `data.shards` with a folder as the root but the root is the file {root}."
            )
        return _by_option(root, options)
    if root.is_file():
        return Shards([root], ["train"], stated=False)
    return _by_name(root, _tars_in(root))


def _tars_in(root: Path) -> list[Path]:
    paths = visible(root.rglob("*.tar"))
    if paths:
        return paths
    archive = min((p.name for p in root.rglob("*.t*gz")), default=None)
    advice = f" {archive} is compressed, and read only as .tar: gunzip it." if archive else ""
    raise DataError(
        f"Expected tar files, the shards of a WebDataset, in {root} but there are none.{advice}"
    )


def _by_name(root: Path, paths: Sequence[Path]) -> Shards:
    """Return shards by the splits that all their names say; all to learn from where none does."""
    splits = [_split_of(path, root) for path in paths]
    if not any(splits):
        return Shards(paths, ["train"] * len(paths), stated=False)
    without = [p.relative_to(root).as_posix() for p, s in zip(paths, splits, strict=True) if not s]
    if without:
        raise DataError(
            f"Expected the names of all shards in {root} to say train, test or validation, or none "
            f"to, but {name_some(without)} {'says' if len(without) == 1 else 'say'} none. Name "
            "them with `data.shards` and `data.test_shards`."
        )
    lone = "test" not in splits and "validation" in splits
    split_names = ["test" if lone and split == "validation" else str(split) for split in splits]
    return Shards(paths, split_names, stated="test" in split_names, lone_validation=lone)


def _by_option(root: Path, options: dict[str, str | None]) -> Shards:
    paths: list[Path] = []
    splits: list[str] = []
    names = {"shards": "train", "test_shards": "test", "validation_shards": "validation"}
    for option, pattern in options.items():
        if pattern is None:
            continue
        for path in _matching(root, pattern, option):
            if path in paths:
                raise ConfigError(
                    f"Expected each shard in one split but {path} is named twice, at last by "
                    f"`data.{option}`."
                )
            paths.append(path)
            splits.append(names[option])
    return Shards(paths, splits, stated="test" in splits)


def _matching(root: Path, pattern: str, option: str) -> list[Path]:
    """Return the files that a pattern names, in order; every part of a range must be there."""
    paths: list[Path] = []
    for one in expand_pattern(pattern, option):
        anchor = Path(one).anchor  # of an absolute path, which `glob` takes in parts alone
        start = Path(anchor) if anchor else root
        files = visible(start.glob(one.removeprefix(anchor)))
        if not files:
            raise ConfigError(
                f"Expected tar files {one} in {root}, as `data.{option}` says, but there are none."
            )
        paths += files
    return paths


def expand_pattern(pattern: str, option: str) -> list[str]:
    """Return the patterns that a range such as {000..012} stands for, with its number of digits.

    option: of `data`, that messages name.

    Raises:
        ConfigError: a range that falls, or names more than a million.
    """
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + _MOST:
        raise ConfigError(
            f"Expected a range that rises, as {{000..012}}, in `data.{option}` but got {match[0]}."
        )
    begins, ends, width = pattern[: match.start()], pattern[match.end() :], len(match[1])
    return [
        path
        for number in range(first, last + 1)
        for path in expand_pattern(f"{begins}{number:0{width}d}{ends}", option)
    ]


def _split_of(path: Path, root: Path) -> str | None:
    """Return the split that the words in a shard's name and folders say; None where they say
    none.
    """
    words = re.findall(r"[a-z]+", path.relative_to(root).with_suffix("").as_posix().lower())
    splits = {split for word in words if (split := split_of(word))}
    if len(splits) > 1:
        raise DataError(
            f"Expected the name of {path} to say one split but it says "
            f"{' and '.join(sorted(splits))}. Name the shards with `data.shards` and "
            "`data.test_shards`."
        )
    return next(iter(splits), None)
