"""A strategy that chooses the initial set too."""

from __future__ import annotations

from pathlib import Path

import pytest

from small_tasks import MODEL, TASK, splits
from upslope.errors import ConfigError
from upslope.experiment import Experiment, ExperimentSettings
from upslope.pool import Need
from upslope.strategies import build
from upslope.training import TrainingSettings


def run(path: Path, initial: str, seed: int = 0, **options: object) -> Experiment:
    return Experiment(
        path,
        splits=splits(60),
        task=TASK,
        model=MODEL,
        strategy=build("sraal", steps=3, latent=4, width=4, initial=initial),
        settings=ExperimentSettings(initial=8, budget=4, cycles=2, seed=seed),
        training=TrainingSettings(epochs=1, batch_size=4),
        device="cpu",
        **options,  # type: ignore[arg-type]
    )


def test_sraal_starts_where_k_center_says(tmp_path: Path) -> None:
    with run(tmp_path / "own", "k-center") as own:
        first = own.ask()
    with run(tmp_path / "shared", "shared") as shared, run(tmp_path / "again", "k-center") as again:
        assert again.ask() == first != shared.ask()
    assert len(set(first)) == 8
    with run(tmp_path / "own", "k-center") as own:  # opened again, it goes on
        assert own.ask() == first
        result = own.run()
    assert [c.n_labelled for c in result.cycles] == [8, 12]


def test_the_first_model_is_not_shared_with_other_starts(tmp_path: Path) -> None:
    folder = tmp_path / "first"
    with run(tmp_path / "own", "k-center", shared=folder) as own:
        own.run()
    assert not folder.exists()
    with run(tmp_path / "shared", "shared", shared=folder) as shared:
        shared.run()
    assert folder.exists()


def test_the_start_is_k_center_of_the_latents() -> None:
    start = build("sraal", steps=7, latent=6, width=5, initial="k-center").start  # type: ignore[attr-defined]
    (need,) = start.needs
    assert need == Need.of("latents", labelled=True, steps=7, latent=6, width=5)
    assert build("sraal").start is None  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="`initial`"):
        build("sraal", initial="random")
