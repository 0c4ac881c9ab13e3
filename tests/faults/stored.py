"""What Upslope itself keeps on the disk, and how each is read back: bits are flipped in all of it.

Every file here has a digest, so that nothing but what was written may be read, or a warning says
that it is made again. Files are read by what reads them in a run, without the run itself, which
takes a thousand times as long; `flips` goes on with runs.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tests.faults import annotator
from tests.faults.commands import begin_project, what_counts
from tests.faults.formats import Format
from tests.faults.subject import stop_midway
from torch import nn

from upslope.checkpoints import load_tensors
from upslope.errors import DataError, RunError
from upslope.experiment.first_model_cache import FirstModelCache
from upslope.experiment.verify import verify_run
from upslope.files import read_digested_json, write_digested_json
from upslope.frozen.probe import store_folder
from upslope.frozen.store import FeatureStore, gather, map_block
from upslope.labelling.project import Project
from upslope.scoring.score_files import check_joined, read_scores, with_facts, write_joined
from upslope.signal_store import StoreWriter, read_ids
from upslope.training.state import load_position

_AT_ONCE = 100


@cache
def _stopped_run() -> Path:
    """Return the folder of runs stopped in the middle of a training."""
    folder = Path(mkdtemp(prefix="upslope-faults-"))
    stop_midway(folder)
    return folder


def _copy_of_runs(folder: Path) -> None:
    shutil.copytree(_stopped_run(), folder, dirs_exist_ok=True)


def _read_runs(folder: Path) -> list[Any]:
    read: list[Any] = []
    for run in sorted(path.parent for path in folder.glob("*/ledger.sqlite")):
        result = verify_run(run)
        if result.problems:
            raise RunError("; ".join(result.problems))
        read += [repr(what_counts(run)), result.sound]
    return read


def _read_checkpoints(folder: Path) -> list[Any]:
    """Take checkpoints back into a network that has no weights: what is sound is then compared."""
    read: list[Any] = []
    for path in sorted(folder.glob("*/training.safetensors")):
        try:
            tensors, header = load_tensors(path)
        except Exception:  # a header that cannot be read; `load_position` tells of it
            tensors, header = {}, {"key": "damaged"}
        network = nn.Module()
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
        key = str(header.get("key")) if isinstance(header, dict) else "damaged"
        try:
            position = load_position(path, key, network, optimizer, torch.amp.GradScaler(), None)
        except RuntimeError:  # it is sound: its weights are those of another network
            position = None
        if position is not None:
            raise RunError("set aside")
        read.append([(name, value.numpy()) for name, value in sorted(tensors.items())])
        read.append(json.dumps(header, sort_keys=True))
    return read


def _read_first_models(folder: Path) -> list[Any]:
    keys = {"margin": "first"}
    read: list[Any] = []
    for name in keys:
        model = folder / f"taken-{name}"
        record = FirstModelCache(folder).fetch("a key", model)
        if record is None:
            raise RunError("made again")
        read += [json.dumps(record, sort_keys=True), model.read_bytes()]
        model.unlink()
    return read


def _write_first_model(folder: Path) -> None:
    from upslope.checkpoints import file_sha256

    model = next(iter(_stopped_run().glob("margin/models/*.safetensors")))
    record = {"sha256": file_sha256(model), "trained": {"loss": 1.5}, "evaluated": {}}
    FirstModelCache(folder).publish("a key", model, record)


_WIDTH = 6
_KEYS = [bytes([i]) * 32 for i in range(20)]


def _write_features(folder: Path) -> None:
    store = FeatureStore(folder, _WIDTH)
    features = torch.arange(len(_KEYS) * _WIDTH, dtype=torch.float32).reshape(-1, _WIDTH)
    store.add(_KEYS[:12], features[:12])
    store.add(_KEYS[12:], features[12:])


def _read_features(folder: Path) -> list[Any]:
    store = FeatureStore(folder, _WIDTH)
    places = store.places(_KEYS)
    if (places < 0).any():
        warnings.warn("damaged: computed again", stacklevel=1)
        return []
    blocks = [map_block(path, _WIDTH) for path in store.blocks]
    return [gather(blocks, places, _WIDTH).numpy()]


def _write_decoded(folder: Path) -> None:
    from upslope.datasets import encoded

    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    encoded._save(folder / "decoded-x.npy", pixels)


def _read_decoded(folder: Path) -> list[Any]:
    from upslope.datasets import encoded

    return [encoded._read_cache(folder / "decoded-x.npy", (5, 3, 4, 4))]


def _write_metrics(folder: Path) -> None:
    write_digested_json(folder / "seed-0.json", {"key": "a", "figures": {"loss": [0.5, 0.25]}})


def _read_metrics(folder: Path) -> list[Any]:
    data = read_digested_json(folder / "seed-0.json")
    if data is None:
        raise DataError("computed again")
    return [repr(data)]


def _write_scores(folder: Path) -> None:
    table = pa.table({"id": [f"s{i}" for i in range(9)], "margin": np.linspace(0, 1, 9)})
    facts = {"shard": "a", "size": 9, "tag": "t", "skipped": ["x"]}
    pq.write_table(with_facts(table, facts), folder / "a.parquet")


def _read_scores(folder: Path) -> list[Any]:
    table, facts = read_scores(folder / "a.parquet")
    return [repr(table.to_pydict()), repr(facts)]


def _write_joined(folder: Path) -> None:
    table = pa.table({"id": [f"s{i}" for i in range(9)], "margin": np.linspace(0, 1, 9)})
    write_joined(folder / "scores.parquet", [table, table.slice(0, 3)])


def _read_joined(folder: Path) -> list[Any]:
    check_joined(folder / "scores.parquet")
    with pq.ParquetFile(folder / "scores.parquet") as file:
        return [repr(file.read().to_pydict())]


def _write_ids(folder: Path) -> None:
    StoreWriter(folder).finish("a", [f"s{i}" for i in range(9)], [(0, 5), (5, 4)])


def _read_ids(folder: Path) -> list[Any]:
    file = StoreWriter(folder).ids_of("a")
    blocks, _ = read_ids(file)
    with pa.OSFile(str(file)) as source:
        return [blocks, pa.ipc.open_file(source).read_all().column("id").to_pylist()]


_PROBED = torch.arange(12.0).reshape(2, 6)


def _write_probe(folder: Path) -> None:
    store_folder(folder, "d" * 64, _PROBED, torch.device("cpu"))


def _read_probe(folder: Path) -> list[Any]:
    return [str(store_folder(folder, "d" * 64, _PROBED, torch.device("cpu")).relative_to(folder))]


def _write_answers(folder: Path) -> None:
    begin_project(folder)
    with Project(folder / annotator.PROJECT) as project:
        for i in range(20):
            project.answer(f"row-{i:02}", annotator.CLASSES[i % 2], author="somebody", note="n")


def _read_answers(folder: Path) -> list[Any]:
    return [repr(annotator.answers(folder / annotator.PROJECT))]


STORED: Mapping[str, Format] = {
    "models": Format(_copy_of_runs, _read_runs, "*/models/*", at_once=_AT_ONCE, tidy=False),
    "ledgers": Format(_copy_of_runs, _read_runs, "*/ledger.sqlite", at_once=_AT_ONCE, tidy=False),
    "checkpoints of trainings": Format(
        _copy_of_runs, _read_checkpoints, "*/training.safetensors", at_once=_AT_ONCE, tidy=False
    ),
    "first models": Format(_write_first_model, _read_first_models, at_once=_AT_ONCE),
    "features": Format(_write_features, _read_features, at_once=_AT_ONCE, tidy=False),
    "decoded images": Format(_write_decoded, _read_decoded, at_once=_AT_ONCE),
    "metrics": Format(_write_metrics, _read_metrics, at_once=_AT_ONCE),
    "scores of a shard": Format(_write_scores, _read_scores, at_once=_AT_ONCE),
    "scores of all shards": Format(_write_joined, _read_joined, at_once=_AT_ONCE),
    "ids of stored signals": Format(_write_ids, _read_ids, at_once=_AT_ONCE),
    "features of made-up samples": Format(_write_probe, _read_probe, at_once=_AT_ONCE, tidy=False),
    "answers of a project": Format(
        _write_answers, _read_answers, "*/labels.sqlite", at_once=_AT_ONCE, tidy=False
    ),
}
"""name -> what is stored, as tables of results call it."""
