"""Memory and time of `score_pool` as a pool grows: generated 32x32 images, by file:// and from S3.

    python benchmarks/pool_memory.py --sizes 100000,1000000 --kind parquet
    python benchmarks/pool_memory.py --sizes 10000,100000 --kind tar
    python benchmarks/pool_memory.py --sizes 10000,100000 --kind parquet --s3

Each size runs in a process of its own with one thread and a linear network. Time is processor time;
memory is the peak of what the process holds of its own (RssAnon). With --s3 the shards lie behind
moto's server on loopback, in another process.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from PIL import Image

from two_stage import Watch
from upslope import strategies, tasks
from upslope.pools import ReadOptions, open_pool
from upslope.scoring import ShardScorer, score_pool

SHARD, SHAPE, BUCKET = 10_000, (3, 32, 32), "generated"


def write(folder: Path, count: int, kind: str) -> None:
    """Write the pool, a shard of 10,000 images after the other; images differ by their rotation."""
    folder.mkdir(parents=True, exist_ok=True)
    base = np.random.default_rng(0).integers(0, 256, 2 * SHARD + 3072, dtype=np.uint8)
    for start in range(0, count, SHARD):
        numbers = range(start, min(start + SHARD, count))
        path = folder / f"{start // SHARD:06d}.{kind}"
        if path.is_file():
            continue
        windows = np.lib.stride_tricks.sliding_window_view(base, 3072)[: len(numbers)]
        rows = windows ^ np.uint8(start // SHARD % 251)
        if kind == "parquet":
            arrays = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 3072)
            ids = [f"image-{n:09d}" for n in numbers]
            pq.write_table(pa.table({"id": ids, "image": arrays}), path)
            continue
        with tarfile.open(path, "w") as archive:
            for n, row in zip(numbers, rows, strict=True):
                stream = io.BytesIO()
                Image.fromarray(row.reshape(32, 32, 3)).save(stream, "png", compress_level=1)
                member = tarfile.TarInfo(f"image-{n:09d}.png")
                member.size = stream.tell()
                stream.seek(0)
                archive.addfile(member, stream)


def measure(url: str, endpoint: str) -> dict[str, float]:
    """Score a pool once, and return processor seconds and peak bytes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)).eval()
    task = tasks.build("classification", num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3)
    options = {"endpoint_url": endpoint, "key": "k", "secret": "s"} if endpoint else None
    with tempfile.TemporaryDirectory() as out:
        watch, began, clock = Watch(), time.process_time(), time.monotonic()
        watch.start()
        pool = open_pool(url, options=ReadOptions(shape=SHAPE), storage_options=options)
        scorer = ShardScorer(
            pool, Path(out), {"margin": strategies.build("margin")}, model, task,
            torch.device("cpu"),
        )  # fmt: skip
        report = score_pool(scorer)
        watch.over = True
        return {
            "scored": report.scored,
            "seconds": time.process_time() - began,
            "wall": time.monotonic() - clock,
            "bytes": watch.peak,
        }


def upload(folder: Path, count: int, kind: str, endpoint: str) -> str:
    """Put the shards into a bucket; return its URL."""
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1",
                          aws_access_key_id="k", aws_secret_access_key="s")  # fmt: skip
    client.create_bucket(Bucket=BUCKET)
    for path in sorted(folder.glob(f"*.{kind}"))[: -(-count // SHARD)]:
        client.put_object(Bucket=BUCKET, Key=f"{count}/{path.name}", Body=path.read_bytes())
    return f"s3://{BUCKET}/{count}"


def main(
    sizes: Annotated[str, typer.Option(help="Images, with commas between.")] = "10000,100000",
    kind: Annotated[str, typer.Option(help="parquet or tar.")] = "parquet",
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
        port = "5677"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
        quiet = subprocess.DEVNULL
        server = subprocess.Popen(command, stdout=quiet, stderr=quiet)
        endpoint = f"http://127.0.0.1:{port}"
        time.sleep(10)
    try:
        for count in map(int, sizes.split(",")):
            place = folder / f"{kind}-{count}"
            write(place, count, kind)
            url = upload(place, count, kind, endpoint) if s3 else str(place)
            command = [sys.executable, __file__, "--one", url, "--endpoint", endpoint]
            done = subprocess.run(command, capture_output=True, text=True, check=False,
                                  env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
            if done.returncode:
                print(f"| {count:,} | failed: {done.stderr.strip().splitlines()[-1]} |")
                continue
            row = json.loads(done.stdout.strip().splitlines()[-1])
            print(
                f"| {kind}{' from S3' if s3 else ''} | {int(row['scored']):,} | "
                f"{row['seconds']:.1f} | {row['wall']:.0f} | {row['bytes'] / 2**20:.0f} |"
            )
            sys.stdout.flush()
    finally:
        if server is not None:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    typer.run(main)
