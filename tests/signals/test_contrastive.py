"""Features learnt by contrast: the loss by its formula, the variants, once for a run."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy import Toy, context

from upslope.errors import ConfigError, DataError, ModelError
from upslope.pool import Need
from upslope.scoring import LabelledSet, compute_signals
from upslope.signals import FitContext, contrastive
from upslope.signals.contrastive import ContrastiveFeatures, network, nt_xent, variant
from upslope.strategies import build
from upslope.tasks.classification import Classification


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_loss_by_its_formula() -> None:
    z = torch.randn(10, 4, generator=rng())
    total = 0.0
    for i in range(10):

        def similar(j: int, i: int = i) -> float:
            cosine = float(z[i] @ z[j] / (z[i].norm() * z[j].norm()))
            return math.exp(cosine / 0.5)

        total -= math.log(similar((i + 5) % 10) / sum(similar(j) for j in range(10) if j != i))
    assert nt_xent(z).item() == pytest.approx(total / 10, rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 20), (1, 28, 28)])
def test_network_and_variants_take_grey_and_colour(shape: tuple[int, ...]) -> None:
    x = torch.randn(6, *shape, generator=rng())
    changed, again = (variant(x, rng(1), mirror=True) for _ in range(2))
    assert changed.shape == x.shape
    assert torch.equal(changed, again)
    assert all(not torch.allclose(a, b) for a, b in zip(changed, x, strict=True))
    assert network(shape).eval()(x).shape == (6, 512)


def test_a_variant_of_everything_is_the_image_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "SMALLEST", 1.0)
    monkeypatch.setattr(contrastive, "JITTER", 0.0)
    x = torch.randn(20, 3, 9, 9, generator=rng())
    assert torch.allclose(variant(x, rng(), mirror=False), x, atol=1e-5)
    mirrored = variant(x, rng(), mirror=True)
    kinds = [
        (torch.allclose(a, b, atol=1e-5), torch.allclose(a, b.flip(-1), atol=1e-5))
        for a, b in zip(mirrored, x, strict=True)
    ]
    assert set(kinds) == {(True, False), (False, True)}


def test_crops_stay_inside_and_cover_at_least_the_least_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a ramp, what a crop shows tells where it is and how wide."""
    monkeypatch.setattr(contrastive, "JITTER", 0.0)
    ramp = (torch.arange(64) + 0.5).expand(200, 1, 64, 64).clone()
    row = variant(ramp, rng(), mirror=False)[:, 0, 30]
    width = (row[:, -1] - row[:, 0]) / 63 * 64
    assert float(width.min()) >= 64 * 0.5**0.5 - 1
    assert float(width.min()) < 50
    assert float(width.max()) > 60
    assert float(row.min()) >= 0
    assert float(row.max()) <= 64


def textures(seed: int = 0) -> FitContext:
    """Stripes along and across, at any phase and level: alike in pixels, unlike in kind."""
    draw = rng(9)
    phase = 6.3 * torch.rand(120, 1, 1, generator=draw)
    wave = torch.sin(torch.arange(8.0)[:, None] * 1.6 + phase).expand(120, 8, 8)
    images = torch.where(torch.arange(120)[:, None, None] < 60, wave, wave.mT)[:, None]
    ctx = context(seed)
    toy = Toy(images + 0.3 * torch.randn(120, 1, 8, 8, generator=draw))
    return dataclasses.replace(ctx, dataset=toy)  # type: ignore[arg-type]


def neighbours_agree(x: Tensor) -> float:
    unit = torch.nn.functional.normalize(x.flatten(start_dim=1), dim=1)
    nearest = (unit @ unit.T).fill_diagonal_(-2).topk(5).indices
    kind = torch.arange(120) < 60
    return float((kind[nearest] == kind[:, None]).float().mean())


def test_training_lowers_the_loss_and_brings_like_images_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses: list[float] = []

    def noted(z: Tensor) -> Tensor:
        loss = nt_xent(z)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(contrastive, "nt_xent", noted)
    ctx = textures()
    told: list[tuple[int, int]] = []
    ctx = dataclasses.replace(ctx, progress=lambda done, total: told.append((done, total)))
    fitted = ContrastiveFeatures(steps=40).fit(ctx)
    features = fitted.compute(ctx.model, ctx.task, ctx.dataset.inputs(list(range(120))))
    assert features.shape == (120, 512)
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.5
    assert neighbours_agree(features) > 0.95
    assert told == [(i + 1, 40) for i in range(40)]


def test_same_seed_same_weights_and_the_model_is_left_alone() -> None:
    state = torch.get_rng_state()
    runs = []
    for seed in (1, 1, 2):
        ctx = context(seed)  # another data set each time: nothing is taken over
        before = {k: v.clone() for k, v in ctx.model.state_dict().items()}
        fitted = ContrastiveFeatures(steps=2).fit(ctx)
        runs.append(fitted.compute(ctx.model, ctx.task, ctx.dataset.inputs([3, 70])))
        assert all(torch.equal(before[k], v) for k, v in ctx.model.state_dict().items())
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(state, torch.get_rng_state())


def test_trained_once_for_a_run_whatever_is_labelled_by_now() -> None:
    ctx = context(seed=1, labelled=30)
    signal = ContrastiveFeatures(steps=1)
    first = signal.fit(ctx)
    later = dataclasses.replace(
        ctx, labelled=list(range(40)), unlabelled=list(range(40, 120)), rng=rng(1)
    )
    assert signal.fit(later).encoder is first.encoder
    assert ContrastiveFeatures(steps=2).fit(later).encoder is not first.encoder
    signal.fit(later)
    passed = dataclasses.replace(later, unlabelled=list(range(40, 100)), rng=rng(1))
    again = dataclasses.replace(later, rng=rng(1))
    assert signal.fit(passed).encoder is signal.fit(again).encoder


def weights_of(ctx: FitContext, steps: int = 2) -> dict[str, Tensor]:
    return ContrastiveFeatures(steps=steps).fit(ctx).encoder.state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_encoder_is_kept_on_the_disk_under_what_it_was_learnt_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings: list[int] = []

    def noted(z: Tensor) -> Tensor:
        trainings.append(len(z))
        return nt_xent(z)

    monkeypatch.setattr(contrastive, "nt_xent", noted)
    fresh = weights_of(context(1))  # each context has a data set of its own, as a process has
    assert len(trainings) == 2
    kept = dataclasses.replace(context(1), cache=tmp_path)
    assert same(weights_of(kept), fresh)
    assert len(trainings) == 4
    passed = dataclasses.replace(context(1), cache=tmp_path, unlabelled=[50, 51], labelled=[])
    assert same(weights_of(passed), fresh)
    assert len(trainings) == 4
    assert len([*tmp_path.iterdir()]) == 2

    # Another pool, seed or number of steps are learnt anew.
    other = dataclasses.replace(context(1), cache=tmp_path)
    other.dataset.values[7, 0, 3, 3] += 1  # type: ignore[attr-defined]
    assert not same(weights_of(other), fresh)
    assert not same(weights_of(dataclasses.replace(context(2), cache=tmp_path)), fresh)
    weights_of(dataclasses.replace(context(1), cache=tmp_path), steps=1)
    assert len(trainings) == 9


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_other_statistics_of_pixels_are_another_encoder(tmp_path: Path, place: str) -> None:
    ctx = context(1)
    pixels = (ctx.dataset.inputs(list(range(120))) * 50 + 120).byte()
    learnt, kept = [], Toy(pixels)
    for mean in (0.2, 0.6):
        task = Classification(num_classes=2, mean=(mean,), std=(0.3,))
        dataset = kept if place == "memory" else Toy(pixels)
        cache = tmp_path if place == "disk" else None
        ctx = dataclasses.replace(context(1), dataset=dataset, task=task, cache=cache)  # type: ignore[arg-type]
        learnt.append(weights_of(ctx))
    assert not same(*learnt)


@pytest.mark.parametrize("ending", [".safetensors", ".json"])
def test_damaged_weights_on_the_disk_are_learnt_again(tmp_path: Path, ending: str) -> None:
    fresh = weights_of(dataclasses.replace(context(1), cache=tmp_path))
    (file,) = tmp_path.glob(f"*{ending}")
    sound = file.read_bytes()
    for place in (9, len(sound) // 2, len(sound) - 9):
        file.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        with pytest.warns(UserWarning, match=rf"\{ending} is damaged: its weights are"):
            again = weights_of(dataclasses.replace(context(1), cache=tmp_path))
        assert same(again, fresh)
        assert file.read_bytes() == sound
    file.unlink()
    assert same(weights_of(dataclasses.replace(context(1), cache=tmp_path)), fresh)


def test_images_that_cannot_be_read_are_skipped_where_the_run_skips_them() -> None:
    class Damaged(Toy):
        def inputs(self, indices: list[int]) -> Tensor:
            if 5 in indices:
                raise DataError("sample 5 cannot be read")
            return super().inputs(indices)

    ctx = context(1)
    broken = Damaged(ctx.dataset.inputs(list(range(120))))
    with pytest.raises(DataError, match="sample 5"):
        weights_of(dataclasses.replace(ctx, dataset=broken))  # type: ignore[arg-type]
    skipping = dataclasses.replace(ctx, dataset=broken, skip_unreadable=True, rng=rng(1))  # type: ignore[arg-type]
    assert all(torch.isfinite(value).all() for value in weights_of(skipping).values())


def test_every_cycle_and_every_process_gives_the_same_features() -> None:
    need = Need.of("contrastive-features", steps=2, labelled=True)
    tables = []
    for cycle, known in ((0, 10), (3, 20)):
        ctx = context()  # a fresh data set, as in a process that resumes
        tables.append(
            compute_signals(
                [need],
                ctx.model,
                ctx.task,
                ctx.dataset,
                [90, 91],
                device=ctx.device,
                seed=4,
                cycle=cycle,
                labelled=LabelledSet(range(known), torch.zeros(known, dtype=torch.int64)),
                unlabelled=range(known, 120),
            )
        )
    assert torch.equal(tables[0].signals[need], tables[1].signals[need])
    assert len(tables[1].labelled_signals[need]) == 20


@pytest.mark.parametrize("name", ["typiclust", "prob-cover", "max-herding", "u-herding"])
def test_strategies_take_them(name: str) -> None:
    strategy = build(name, features="contrastive", steps=7)
    assert Need.of("contrastive-features", steps=7, labelled=True) in strategy.needs
    with pytest.raises(ConfigError, match="features"):
        build(name, features="contrasting")
    with pytest.raises(ConfigError, match="steps"):
        _ = build(name, steps=7).needs


def test_what_is_no_image_is_refused_before_any_training() -> None:
    for shape in ((2, 20), (2, 1, 8, 8, 8), (2, 1, 5, 9)):
        with pytest.raises(ModelError, match="8 x 8"):
            ContrastiveFeatures().check(torch.nn.Identity(), Classification(2), torch.zeros(shape))
