"""A pool in a bucket: moto's server speaks S3 on loopback, one request in ten failing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shards_to_write import id_of, pixels, write_images, write_parquet, write_tars

from upslope.errors import DataError
from upslope.pools import Patience, ReadOptions, StorageError, open_pool

pytest.importorskip("moto.server", reason="needs moto[server]")
pytest.importorskip("s3fs", reason="needs s3fs")
boto3 = pytest.importorskip("boto3", reason="needs boto3")

BUCKET = "photographs"


class FailsSometimes:
    """A WSGI application before another: each tenth request is answered by an error."""

    def __init__(self, application: Any) -> None:
        self.application, self.count, self.failed, self.every = application, 0, 0, 0

    def __call__(self, environ: Any, start_response: Any) -> Any:
        self.count += 1
        if self.every and self.count % self.every == 0:
            self.failed += 1
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>busy</Message></Error>"]
        return self.application(environ, start_response)


@pytest.fixture(scope="module")
def bucket() -> Iterator[tuple[str, FailsSometimes]]:
    """(endpoint, the application that may be told to fail)."""
    import threading

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = FailsSometimes(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    client(endpoint).create_bucket(Bucket=BUCKET)
    yield endpoint, application
    server.shutdown()
    thread.join()


def client(endpoint: str) -> Any:
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1",
                        aws_access_key_id="key", aws_secret_access_key="secret")  # fmt: skip


def upload(endpoint: str, folder: Path, prefix: str) -> str:
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = f"{prefix}/{path.relative_to(folder).as_posix()}"
        client(endpoint).put_object(Bucket=BUCKET, Key=name, Body=path.read_bytes())
    return f"s3://{BUCKET}/{prefix}"


def options(endpoint: str) -> dict[str, Any]:
    return {"key": "key", "secret": "secret", "endpoint_url": endpoint,
            "config_kwargs": {"retries": {"max_attempts": 1}}}  # fmt: skip


@pytest.mark.parametrize("write", [write_parquet, write_tars, write_images])
def test_a_bucket_gives_the_samples_though_one_request_in_ten_fails(
    write: Any, bucket: tuple[str, FailsSometimes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, application = bucket
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = upload(endpoint, write(tmp_path / "pool"), write.__name__)
    application.every = 10
    before = application.failed
    try:
        pool = open_pool(
            url,
            storage_options=options(endpoint),
            index=tmp_path / "index.arrow",
            options=ReadOptions(per_shard=4),
            patience=Patience(first=0.01),
        )
        for _ in range(3):
            every = {}
            for shard in pool.shards:
                with pool.open(shard) as rows:
                    images = rows.inputs(range(len(rows))).numpy()
                    every |= dict(zip(rows.ids, images, strict=True))
    finally:
        application.every = 0
    assert application.failed > before
    stems = {id_.rpartition("/")[2].removesuffix(".png"): image for id_, image in every.items()}
    assert sorted(stems) == [id_of(n) for n in range(15)]
    for n in range(15):
        np.testing.assert_array_equal(stems[id_of(n)], pixels(n).transpose(2, 0, 1))
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_shard_that_vanished_is_named(bucket: tuple[str, FailsSometimes], tmp_path: Path) -> None:
    endpoint, _ = bucket
    url = upload(endpoint, write_parquet(tmp_path), "vanished")
    pool = open_pool(url, storage_options=options(endpoint))
    client(endpoint).delete_object(Bucket=BUCKET, Key="vanished/part-00002.parquet")
    with pytest.raises(DataError, match=r"s3://photographs/vanished/part-00002\.parquet"), \
            pool.open(pool.shards[2]):  # fmt: skip
        pass


def test_a_damaged_shard_is_named_by_its_url(
    bucket: tuple[str, FailsSometimes], tmp_path: Path
) -> None:
    endpoint, _ = bucket
    write_parquet(tmp_path)
    last = tmp_path / "part-00002.parquet"
    last.write_bytes(last.read_bytes()[:-100])
    pool = open_pool(upload(endpoint, tmp_path, "damaged"), storage_options=options(endpoint))
    with pytest.raises(DataError, match=r"s3://photographs/damaged/part-00002\.parquet"), \
            pool.open(pool.shards[2]):  # fmt: skip
        pass


def test_a_bucket_that_is_not_there_and_one_that_never_answers_are_named(
    bucket: tuple[str, FailsSometimes],
) -> None:
    endpoint, application = bucket
    with pytest.raises(DataError, match="s3://no-such-bucket/pool"):
        open_pool("s3://no-such-bucket/pool", storage_options=options(endpoint))
    application.every = 1
    try:
        with pytest.raises(StorageError, match=r"s3://photographs/pool but it failed 2 times"):
            open_pool(f"s3://{BUCKET}/pool", storage_options=options(endpoint),
                      patience=Patience(attempts=2, first=0.01))  # fmt: skip
    finally:
        application.every = 0


def test_refused_credentials_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses:
        def info(self, path: str) -> Any:
            raise PermissionError("Access Denied")

    from upslope.pools import storage

    monkeypatch.setattr(storage.Storage, "_connect", lambda self: Refuses())
    with pytest.raises(StorageError, match="Check the credentials"):
        open_pool("s3://private/pool")
