"""Memory and time of `score_pool` as a pool grows: generated 32x32 images, by file:// and from S3.

    python benchmarks/pool_memory.py --sizes 100000,1000000 --kinds parquet,tar
    python benchmarks/pool_memory.py --sizes 100000,1000000 --kinds parquet,tar --s3

Images are noise, in shards of 10,000: arrays in Parquet, or PNG files in tars. The network is of
two small convolutions. Each size runs in a process of its own with one thread, after the first
shard was scored once into another folder, so that imports and first batches count for no size. Time
is processor time; memory is the peak of what the process holds of its own (RssAnon, looked at every
10 ms), and of all that it holds, as the kernel keeps it (VmHWM). With --s3 the shards lie behind
moto's server on loopback, in another process (`pip install 'moto[server]' s3fs`).
"""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from PIL import Image

from two_stage import Watch
from upslope import strategies, tasks
from upslope.pools import ReadOptions, ShardedPool, open_pool
from upslope.scoring import ShardScorer, score_pool

SHARD, SHAPE, BUCKET = 10_000, (3, 32, 32), "generated"
KEYS = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}


def write(folder: Path, count: int, kind: str) -> None:
    """Write the shards that are not there yet; shard i has the same images in pools of any size."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, count, SHARD):
        number, rows = start // SHARD, min(SHARD, count - start)
        path = folder / f"{number:06d}.{kind}"
        if path.is_file():
            continue
        rng = np.random.default_rng(number)
        images = rng.integers(0, 256, (rows, 3072), dtype=np.uint8)
        names = [f"image-{n:09d}" for n in range(start, start + rows)]
        part = path.with_suffix(".part")
        if kind == "parquet":
            arrays = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), 3072)
            pq.write_table(pa.table({"id": names, "image": arrays}), part)
        else:
            _write_tar(part, names, images.reshape(-1, 32, 32, 3))
        part.rename(path)


def _write_tar(path: Path, names: list[str], images: np.ndarray) -> None:
    with tarfile.open(path, "w") as archive:
        for name, image in zip(names, images, strict=True):
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "png", compress_level=1)
            member = tarfile.TarInfo(f"{name}.png")
            member.size = stream.tell()
            stream.seek(0)
            archive.addfile(member, stream)


def network() -> torch.nn.Module:
    """Return the network: 9,000 parameters, which takes less time than reading an image."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 4, 4), torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 4, 4), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(128, 10),
    ).eval()  # fmt: skip


def measure(url: str, endpoint: str) -> dict[str, Any]:
    """Score a pool once, and return processor seconds and peak bytes."""
    torch.set_num_threads(1)
    options = {"endpoint_url": endpoint, "key": "k", "secret": "s"} if endpoint else None
    pool = open_pool(url, options=ReadOptions(shape=SHAPE), storage_options=options)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        score_pool(_scorer(replace(pool, shards=pool.shards[:1]), Path(folder) / "first"))
        watch = Watch(0.01)
        watch.start()
        began, clock = time.process_time(), time.monotonic()
        report = score_pool(_scorer(pool, Path(folder) / "all"))
        seconds, wall = time.process_time() - began, time.monotonic() - clock
        watch.over = True
    most = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
    return {
        "scored": report.scored,
        "seconds": seconds,
        "wall": wall,
        "own": watch.peak,
        "all": int(most) * 1024,
    }


def _scorer(pool: ShardedPool, out: Path) -> ShardScorer:
    task = tasks.build("classification", num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3)
    scores = {"margin": strategies.build("margin")}
    return ShardScorer(pool, out, scores, network(), task, torch.device("cpu"))


def upload(folder: Path, count: int, kind: str, endpoint: str) -> str:
    """Put the shards into a bucket; return the URL of the first `count` images."""
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint, **KEYS)
    if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET)
    last = -(-count // SHARD) - 1
    for number in range(last + 1):
        key = f"{kind}/{number:06d}.{kind}"
        if client.list_objects_v2(Bucket=BUCKET, Prefix=key)["KeyCount"] == 0:
            client.upload_file(str(folder / f"{number:06d}.{kind}"), BUCKET, key)
    return f"s3://{BUCKET}/{kind}/{{{0:06d}..{last:06d}}}.{kind}"


def serve() -> tuple[subprocess.Popen[bytes], str]:
    """Start moto's server on loopback; return it and its URL once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.2)
    return server, f"http://127.0.0.1:{port}"


def main(
    sizes: Annotated[str, typer.Option(help="Images, with commas between.")] = "10000,100000",
    kinds: Annotated[str, typer.Option(help="parquet, tar, or both.")] = "parquet",
    s3: Annotated[bool, typer.Option("--s3", help="From moto's server on loopback.")] = False,
    folder: Annotated[Path, typer.Option(help="Where the pools are kept.")] = Path("generated"),
    one: Annotated[str, typer.Option(hidden=True)] = "",
    endpoint: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure how memory and time grow with a pool."""
    if one:
        print(json.dumps(measure(one, endpoint)))
        return
    server = None
    if s3:
        server, endpoint = serve()
    print("| shards | images | CPU s | us per image | wall s | own MiB | all MiB |")
    print("| --- | --: | --: | --: | --: | --: | --: |", flush=True)
    try:
        for kind in kinds.split(","):
            for count in map(int, sizes.split(",")):
                _tell(kind, count, folder / kind, endpoint)
    finally:
        if server is not None:
            server.terminate()
            server.wait()


def _tell(kind: str, count: int, folder: Path, endpoint: str) -> None:
    write(folder, count, kind)
    last = -(-count // SHARD) - 1
    url = f"{folder.absolute()}/{{{0:06d}..{last:06d}}}.{kind}"
    if endpoint:
        url = upload(folder, count, kind, endpoint)
    command = [sys.executable, __file__, "--one", url, "--endpoint", endpoint]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        print(f"| {kind} | {count:,} | failed: {done.stderr.strip().splitlines()[-1]} |")
        return
    row = json.loads(done.stdout.strip().splitlines()[-1])
    print(
        f"| {kind}{' from S3' if endpoint else ''} | {row['scored']:,} | {row['seconds']:.1f} | "
        f"{1e6 * row['seconds'] / row['scored']:.1f} | {row['wall']:.0f} | "
        f"{row['own'] / 2**20:.0f} | {row['all'] / 2**20:.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    typer.run(main)
