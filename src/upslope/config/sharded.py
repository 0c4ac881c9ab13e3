"""From a checkpoint and the URL of a pool to what scores its shards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from upslope import models
from upslope.config.inputs import is_image
from upslope.config.recorded import ENCODED_BY_POOL, Source
from upslope.config.scoring import TrainedModel, load_trained_model
from upslope.datasets.base import Dataset
from upslope.errors import ConfigError, DataError, ModelError
from upslope.images import Mode
from upslope.pools import Format, ReadOptions, ShardedPool, open_pool
from upslope.progress import Observer, no_progress

_MODES: dict[int, Mode] = {1: "L", 3: "RGB"}


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """Return the shape that a text such as 3x32x32 names; None for none.

    Raises:
        ConfigError: it is none.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"Expected --shape to be like 3x32x32 but got {text!r}.")
    return tuple(int(part) for part in parts)


def open_sharded(
    source: Source,
    url: str,
    options: ReadOptions,
    *,
    format: Format | None = None,
    index: Path | None = None,
    storage_options: Mapping[str, Any] | None = None,
    observer: Observer = no_progress,
) -> tuple[ShardedPool, TrainedModel]:
    """Return the shards at a URL, read as the network takes its images, and the network.

    Where a run trained it, images are brought to what they were in that run (grey or colour, its
    `data.size`, its `data.white`), unless options say otherwise.

    source: where the checkpoint is, and its configuration. url, options, format, index,
    storage_options: as for `pools.open_pool`. observer: is told of samples read.

    Raises:
        ConfigError: a network on frozen features, on rows of a table or on texts; images without
            statistics to normalise them by.
        DataError, StorageError: as for `open_pool`; inputs of another shape than the run's.
        ModelError: a checkpoint that cannot be read, or of another network.
    """
    config = source.config
    if config.freeze or (source.run and config.data.name in ENCODED_BY_POOL):
        what = "on frozen features" if config.freeze else f"on {config.data.name}"
        raise ConfigError(
            f"Expected a network that takes images or arrays to score a pool at a URL but the one "
            f"of {source.checkpoint} was trained {what}. Score folders or files of this machine "
            "with -s data.root=FOLDER."
        )
    pool = open_pool(
        url,
        format=format,
        options=_as_the_run(source, options),
        index=index,
        storage_options=storage_options,
    )
    for shard in pool.shards:
        with pool.open(shard) as rows:
            if not len(rows):
                continue
            has_statistics = source.statistics is not None or "mean" in config.data.options
            weights = models.image_form(config.model.name, config.model.options)
            if not has_statistics and weights is None and is_image(rows):
                raise ConfigError(
                    f"Expected the statistics by which images of {source.checkpoint} were "
                    "normalised in training, as no run recorded them, but got none. Give them: "
                    "-s 'data.mean=[0.485,0.456,0.406]' -s 'data.std=[0.229,0.224,0.225]'."
                )
            # Its `pool` is this shard alone, whose file is gone behind this block.
            try:
                return pool, load_trained_model(source, observer, rows)
            except (DataError, ModelError) as error:
                if options.shape is not None or len(rows.input_shape) != 1:
                    raise
                raise type(error)(f"{error} {_say_the_shape(source, rows)}") from error
    raise AssertionError("a pool that was opened has a sample")


def _say_the_shape(source: Source, rows: Dataset) -> str:
    """Return the advice to state the shape of arrays that are flat lists of numbers."""
    (count,) = rows.input_shape
    info = source.run.info if source.run else {}
    shape = tuple(info.get("source_shape", info.get("input_shape", ())))
    fits = len(shape) > 1 and math.prod(shape) == count
    example = "x".join(map(str, shape)) if fits else "3x32x32"
    return (
        f"The arrays are flat lists of {count:,} numbers: where the network takes them in another "
        f"shape, say which, such as --shape {example}."
    )


def _as_the_run(source: Source, options: ReadOptions) -> ReadOptions:
    if source.run is None:
        return options
    info, data = source.run.info, source.config.data.options
    shape = info.get("source_shape", info.get("input_shape", ()))
    mode = _MODES.get(shape[0]) if len(shape) == 3 else None
    return replace(
        options,
        mode=options.mode or mode,
        size=options.size or data.get("size"),
        white=options.white or data.get("white"),
    )
