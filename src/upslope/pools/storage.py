"""Files by URL through fsspec: listed, read in parts, fetched whole, with retries.

Buckets fail in passing: one request in some is refused, slow, or cut off. Such a read is tried
again after a pause that doubles. What will not change by itself (no such file, refused credentials)
is told at once. An error of a bucket is never a `DataError`, so that samples which could not be
fetched are not left out as if they were damaged.
"""

from __future__ import annotations

import errno
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from json import JSONDecodeError
from pathlib import Path
from typing import Any, TypeVar

from upslope.datasets.layout import is_hidden
from upslope.datasets.paths import refuse_empty_path
from upslope.errors import ConfigError, DataError, RunError, UpslopeError
from upslope.extras import missing_package
from upslope.files import disk_errors

SCHEMES = ("file", "s3", "gs", "az", "abfs", "hf", "memory")
"""Where pools may lie. Chains of fsspec (`zip://...::s3://...`) are refused."""
EXTRA = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub"}
"""Scheme -> the package that reads it; the extra `scale` has the first two."""
PART = 1 << 24
"""Bytes that are fetched at once (16 MiB): what a failed request costs."""
_CONNECT, _READ = 10, 60  # seconds that a request to S3 may wait
_REFUSAL_CODES = (401, 403)
_CREDENTIALS = (  # errors of botocore and google.auth
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "TokenRetrievalError",
    "DefaultCredentialsError",
    "RefreshError",
)
_NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP)
_TAGS = ("ETag", "etag", "md5Hash", "blob_id", "mtime")
"""How file systems call what tells one content of a file from another."""

T = TypeVar("T")


class StorageError(RunError):
    """A place that refuses to be read, or fails again and again."""


@dataclass(frozen=True)
class Patience:
    """How often a failing read is tried, and how long is waited between.

    attempts: in all. first, most: seconds before the second attempt, and at most; each pause is
    twice the last, less up to a half at random, so that workers do not ask all at once.
    """

    attempts: int = 7
    first: float = 0.5
    most: float = 30.0

    def pause(self, failures: int) -> float:
        """Return the seconds to wait after so many failures."""
        longest: float = min(self.most, self.first * 2 ** (failures - 1))
        return longest * random.SystemRandom().uniform(0.5, 1)


@dataclass(frozen=True)
class Entry:
    """A file or folder in a listing.

    path: without the scheme. size: bytes. tag: tells its content from another: the ETag of a
    bucket, or the time of the last change. is_link: to a file or a folder, on this machine.
    """

    path: str
    is_folder: bool
    size: int
    tag: str
    is_link: bool = False


@dataclass(frozen=True)
class Storage:
    """A file system of fsspec. It can be pickled: workers connect by themselves.

    scheme: one of `SCHEMES`. options: of the file system (endpoint, credentials); they are
    recorded nowhere. patience: with reads that fail.
    """

    scheme: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    patience: Patience = Patience()

    @property
    def is_local(self) -> bool:
        """Return whether files have paths on this machine."""
        return self.scheme == "file"

    def url(self, path: str) -> str:
        """Return the URL of a path without the scheme."""
        return f"{self.scheme}://{path}"

    def entry(self, path: str) -> Entry | None:
        """Return what lies at a path; None for nothing.

        Raises:
            StorageError: the place refuses, or fails again and again.
        """
        try:
            return self.attempt(lambda fs: _entry(fs.info(path)), path)
        except DataError:
            return None

    def entries(self, folder: str) -> list[Entry]:
        """Return what a folder holds, in the order of the names.

        Raises:
            DataError: no such folder.
            StorageError: as for `entry`.
        """
        listing = self.attempt(lambda fs: fs.ls(folder, detail=True), folder)
        inside = [entry for entry in map(_entry, listing) if entry.path != folder.rstrip("/")]
        return sorted(inside, key=lambda entry: entry.path)

    def glob(self, pattern: str) -> list[Entry]:
        """Return the files that a pattern names, in order; hidden ones where it begins as their
        names do. Raises as `entries`."""
        paths = self.attempt(lambda fs: fs.glob(pattern, detail=True), pattern)
        inside = [_entry(info) for info in paths.values()]
        takes_hidden = pattern.rpartition("/")[2].startswith(".")
        files = [e for e in inside if not e.is_folder and (takes_hidden or not _is_hidden(e))]
        return sorted(files, key=lambda entry: entry.path)

    def read(self, path: str, most: int | None = None) -> bytes:
        """Return the bytes of a small file.

        path: without the scheme. most: how many it may have.

        Raises:
            DataError: no such file, or it is larger.
            StorageError: as for `entry`.
        """
        end = None if most is None else most + 1
        content: bytes = self.attempt(lambda fs: fs.cat_file(path, start=0, end=end), path)
        if most is not None and len(content) > most:
            raise DataError(
                f"Expected {self.url(path)} to have at most {most:,} bytes but it has more. If it "
                "is what it should be, raise `data.read_limit`."
            )
        return content

    def fetch(self, path: str, size: int, to: Path) -> None:
        """Copy a file to this machine, part by part; a part that fails is fetched again.

        path: without the scheme. size: bytes that it has. to: the copy.

        Raises:
            DataError: no such file, or it is shorter than the listing says.
            StorageError: as for `entry`.
            RunError: the disk is full.
        """
        with disk_errors(to), to.open("wb") as file:
            for start in range(0, size, PART):
                end = min(size, start + PART)

                def part(fs: Any, start: int = start, end: int = end) -> bytes:
                    content: bytes = fs.cat_file(path, start=start, end=end)
                    if len(content) < end - start:
                        raise _ShortError(f"it ended after {start + len(content):,} bytes")
                    return content

                file.write(self.attempt(part, path))

    def attempt(self, action: Callable[[Any], T], path: str) -> T:
        """Return what `action` makes of the file system, trying again after errors that pass.

        path: what messages name.

        Raises:
            ConfigError: the package of the scheme is not installed.
            DataError: there is no such file.
            StorageError: refused credentials, a wrong request, or an error that stayed.
        """
        name = self.url(path)
        system = self._connect()
        for failures in range(1, self.patience.attempts + 1):
            try:
                return action(system)
            except UpslopeError:
                raise
            except Exception as error:  # each file system has errors of its own
                if _is_absence(error):
                    raise DataError(f"Expected a file at {name} but there is none.") from error
                if _is_wrong_request(error):
                    raise StorageError(
                        f"Expected to read {name} but it cannot be asked for: {_words(error)}. "
                        "Look at the URL."
                    ) from error
                if _is_refusal(error):
                    raise StorageError(
                        f"Expected to be allowed to read {name} but got: {_words(error)}. Check "
                        "the credentials that this process sees, and what they may read; then run "
                        "the same command again: nothing done is lost."
                    ) from error
                if failures == self.patience.attempts:
                    raise StorageError(
                        f"Expected to read {name} but it failed {failures} times, at last with: "
                        f"{_words(error)}. Run the same command again once it answers: nothing "
                        "done is lost."
                    ) from error
                time.sleep(self.patience.pause(failures))
        raise AssertionError("the last attempt returns or raises")

    def _connect(self) -> Any:
        import fsspec

        options = dict(self.options)
        if self.scheme == "s3":
            options.setdefault(
                "config_kwargs", {"connect_timeout": _CONNECT, "read_timeout": _READ}
            )
        try:
            # Listings are not held: those of a large folder would stay in memory.
            return fsspec.filesystem(self.scheme, use_listings_cache=False, **options)
        except ImportError as error:
            package = EXTRA.get(self.scheme, "fsspec")
            raise missing_package(package, f"for pools at {self.scheme}://") from error


class _ShortError(OSError):
    """A file gave fewer bytes than it has."""


def split_url(url: str) -> tuple[str, str]:
    """Return (scheme, path without it) of a URL or of a path on this machine.

    Raises:
        ConfigError: an empty text, a scheme that is not read, a chain, or credentials in the URL.
    """
    refuse_empty_path(url, "the place of a pool")
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "file", str(Path(url).expanduser().absolute())
    if scheme == "gcs":
        scheme = "gs"
    if scheme not in SCHEMES or "::" in url:
        raise ConfigError(
            f"Expected a pool at {', '.join(f'{s}://' for s in SCHEMES[:-1])} or in a folder but "
            f"got {without_user(url)!r}."
        )
    if "@" in rest.partition("/")[0] and scheme not in ("abfs", "hf"):
        raise ConfigError(
            f"Expected no credentials in the URL of a pool, which is recorded, but got some: "
            f"{without_user(url)!r}. Set them in the environment, as its tools want them."
        )
    if scheme == "file":
        return scheme, str(Path(rest).absolute())
    return scheme, rest.rstrip("/")


def without_user(url: str) -> str:
    """Return a URL without the user and the password before its host; a path as it is."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def walk(storage: Storage, folder: str, passed_over: Counter[tuple[str, str]]) -> Iterator[Entry]:
    """Yield the files below a folder, those of a folder before those of its folders, in order.

    The names of one folder at a time are held. Hidden files and folders, folders of operating
    systems, and links to folders are passed over. passed_over: counts these by (noun, words behind
    it).

    Raises:
        DataError, StorageError: as `Storage.entries`.
    """
    waiting = [folder]
    while waiting:
        folders: list[str] = []
        for entry in storage.entries(waiting.pop()):
            if _is_hidden(entry):
                passed_over["hidden folder" if entry.is_folder else "hidden file", ""] += 1
            elif entry.is_folder:
                folders.append(entry.path)
            elif entry.is_link and Path(entry.path).is_dir():
                passed_over["linked folder", " (links are not followed)"] += 1
            else:
                yield entry
        waiting += reversed(folders)


def _entry(info: Mapping[str, Any]) -> Entry:
    tag = next((info[key] for key in _TAGS if info.get(key)), "")
    path = str(info["name"]).rstrip("/")
    is_folder, is_link = info.get("type") == "directory", bool(info.get("islink"))
    return Entry(path, is_folder, int(info.get("size") or 0), str(tag), is_link)


def _is_hidden(entry: Entry) -> bool:
    name = entry.path.rpartition("/")[2]
    return is_hidden(name) if entry.is_folder else name.startswith(".")


def _status(error: Exception) -> int | None:
    """Return the HTTP status that an error carries, where it does."""
    response = getattr(error, "response", None)
    for value in (getattr(response, "status_code", None), getattr(error, "status", None),
                  getattr(error, "code", None)):  # fmt: skip
        if isinstance(value, int):
            return value
    return None


def _is_absence(error: Exception) -> bool:
    """Return whether there is no such file, or none that could have such a name."""
    return (
        isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        or getattr(error, "errno", None) in _NO_NAME
        or _status(error) == 404
    )


def _is_wrong_request(error: Exception) -> bool:
    """Return whether the library refuses what it is asked, as a bucket of a name that none can
    have.
    """
    is_garbled_answer = isinstance(error, JSONDecodeError | UnicodeDecodeError)
    return isinstance(error, ValueError | TypeError) and not is_garbled_answer


def _is_refusal(error: Exception) -> bool:
    is_credential_error = type(error).__name__ in _CREDENTIALS
    return (
        isinstance(error, PermissionError)
        or is_credential_error
        or _status(error) in _REFUSAL_CODES
    )


def _words(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
