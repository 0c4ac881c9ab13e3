"""The first model that runs of one seed share: taken where it is whole, trained anew where not."""

from __future__ import annotations

from pathlib import Path

import pytest

from upslope.checkpoints import file_sha256
from upslope.experiment.first_model_cache import FirstModelCache


@pytest.fixture
def cache(tmp_path: Path) -> FirstModelCache:
    model = tmp_path / "model"
    model.write_bytes(b"weights")
    made = FirstModelCache(tmp_path / "shared")
    record = {"sha256": file_sha256(model), "trained": {"loss": 0.25}, "evaluated": {}}
    made.publish("key", model, record)
    return made


def test_what_was_published_is_fetched(cache: FirstModelCache, tmp_path: Path) -> None:
    record = cache.fetch("key", tmp_path / "copy")
    assert record is not None
    assert record["trained"] == {"loss": 0.25}
    assert (tmp_path / "copy").read_bytes() == b"weights"
    assert cache.fetch("another", tmp_path / "none") is None
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("first.json", b"0.25", b"0.75"),
        ("first.json", b"{", b"["),
        ("first.safetensors", b"w", b"v"),
    ],
)
def test_what_is_damaged_is_not_taken(
    cache: FirstModelCache, tmp_path: Path, name: str, old: bytes, new: bytes
) -> None:
    file = cache.folder / name
    file.write_bytes(file.read_bytes().replace(old, new, 1))
    with pytest.warns(UserWarning, match=rf"{name} is damaged: the first model .* trained again"):
        assert cache.fetch("key", tmp_path / "copy") is None
    assert not (tmp_path / "copy").exists()


def test_what_a_killed_process_left_is_removed(cache: FirstModelCache) -> None:
    torn = cache.folder / ".first.safetensors.999999999.part"
    torn.mkdir()
    (torn / "first.safetensors").touch()
    cache.tidy()
    assert sorted(p.name for p in cache.folder.iterdir()) == ["first.json", "first.safetensors"]
