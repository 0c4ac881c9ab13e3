"""VAAL and SRAAL: losses by hand, one update step, and what they learn on toy data."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from toy import Toy, context

from short_forms import mark_rest_long
from upslope.errors import DataError
from upslope.pool import Need
from upslope.signals import build, sraal, vaal
from upslope.signals.fitting import batches
from upslope.signals.vae import VAE, Discriminator, divergence, sample_latents, towards


def bce(probability: Tensor, target: Tensor) -> Tensor:
    return -(target * probability.log() + (1 - target) * (1 - probability).log()).mean()


@pytest.mark.parametrize(
    "shape",
    [(3, 32, 32), (1, 8, 8), (1, 28, 28), (2, 13, 21), (1, 8, 9, 10), (2, 40), (5,), (3, 2, 2)],
)
def test_autoencoder_takes_any_size(shape: tuple[int, ...]) -> None:
    vae = VAE(shape, latent=6, width=4)
    x = torch.randn(3, *shape)
    mean, log_variance = vae.encode(x)
    assert mean.shape == log_variance.shape == (3, 6)
    assert vae.decode(mean).shape == x.shape


def test_decoder_sees_only_its_half() -> None:
    vae = VAE((1, 8, 8), latent=6, width=4, code_size=3).eval()
    z = torch.randn(2, 6)
    other = torch.cat([z[:, :3], torch.randn(2, 3)], dim=1)
    assert torch.equal(vae.decode(z), vae.decode(other))


def test_divergence_is_the_kl_of_the_distributions() -> None:
    mean, log_variance = torch.randn(4, 3), torch.randn(4, 3)
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    p = torch.distributions.Normal(torch.zeros(4, 3), torch.ones(4, 3))
    expected = torch.distributions.kl_divergence(q, p).sum(dim=1).mean()
    assert torch.allclose(divergence(mean, log_variance), expected, atol=1e-5)


def test_batches_pass_over_all_and_never_hold_one_alone() -> None:
    ctx = context()
    stream = batches(ctx, list(range(9)), 4)
    first = [next(stream) for _ in range(2)]
    assert [len(b) for b in first] == [4, 4]
    assert len(next(batches(ctx, [7], 4))) == 2
    assert next(batches(ctx, [], 4), None) is None


@torch.no_grad()
def test_vaal_losses_by_hand() -> None:
    torch.manual_seed(0)
    vae, d = VAE((1, 8, 8), 4, 4).eval(), Discriminator(4).eval()
    known, new = torch.randn(5, 1, 8, 8), torch.randn(7, 1, 8, 8)
    rng = torch.Generator().manual_seed(3)
    ours = vaal.generator_loss(vae, d, known, new, rng)
    rng.manual_seed(3)
    expected = torch.zeros(())
    for x in (known, new):
        mean, log_variance = vae.encode(x)
        restored = vae.decode(sample_latents(mean, log_variance, rng))
        expected += ((restored - x) ** 2).sum() / len(x)
        expected += -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum() / len(x)
        expected += bce(d(mean).sigmoid(), torch.ones(len(x)))
    assert torch.allclose(ours, expected, rtol=1e-5)
    of_d = bce(d(vae.encode(known)[0]).sigmoid(), torch.ones(5))
    of_d += bce(d(vae.encode(new)[0]).sigmoid(), torch.zeros(7))
    assert torch.allclose(vaal.discriminator_loss(vae, d, known, new), of_d, rtol=1e-5)


@torch.no_grad()
def test_sraal_losses_by_hand() -> None:
    torch.manual_seed(0)
    vae, d = VAE((1, 8, 8), 4, 4, code_size=2).eval(), Discriminator(4, layers=4).eval()
    classifier = nn.Linear(2, 3)
    known, y, new = torch.randn(5, 1, 8, 8), torch.randint(3, (5,)), torch.randn(7, 1, 8, 8)
    u = torch.rand(7)
    rng = torch.Generator().manual_seed(3)
    ours = sraal.generator_loss(vae, classifier, d, (known, y), new, rng)
    rng.manual_seed(3)
    expected = torch.zeros(())
    for x in (known, new):
        mean, log_variance = vae.encode(x)
        restored = vae.decode(sample_latents(mean, log_variance, rng))
        expected += 5 * ((restored - x) ** 2).sum() / len(x)
        expected += -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum() / len(x)
        expected += bce(d(mean).sigmoid(), torch.ones(len(x)))
    scores = classifier(vae.encode(known)[0][:, 2:]).log_softmax(dim=1)
    expected += -5 * scores[torch.arange(5), y].mean()
    assert torch.allclose(ours, expected, rtol=1e-5)
    of_d = bce(d(vae.encode(new)[0]).sigmoid(), u)
    of_d += bce(d(vae.encode(known)[0]).sigmoid(), torch.zeros(5))
    assert torch.allclose(sraal.discriminator_loss(vae, d, known, new, u), of_d, rtol=1e-5)


def test_indicator_by_hand() -> None:
    # 0.6, 0.4, 0: variance (0.0711 + 0.0044 + 0.1111) / 3; with 0.6, 0.2, 0.2 it is 0.0356.
    p = torch.tensor([[0.6, 0.4, 0.0], [0.6, 0.2, 0.2], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    expected = [1 - 0.6 * 0.035556 / 0.062222, 1 - 0.6, 0.0, 2 / 3]
    assert sraal.indicator(p).tolist() == pytest.approx(expected, abs=1e-4)
    assert sraal.indicator(torch.ones(2, 1)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("module", [vaal, sraal])
def test_one_update_is_adams_first_step(module: object) -> None:
    """Adam's first step moves every weight that has a gradient by the rate, against its sign."""
    torch.manual_seed(0)
    vae, d = VAE((1, 8, 8), 4, 4), Discriminator(4)
    known, new = torch.randn(5, 1, 8, 8), torch.randn(7, 1, 8, 8)
    loss = (
        vaal.discriminator_loss(vae, d, known, new)
        if module is vaal
        else sraal.discriminator_loss(vae, d, known, new, torch.rand(7))
    )
    loss.backward()
    assert all(p.grad is None for p in vae.parameters())
    adam = torch.optim.Adam(d.parameters(), lr=5e-4)
    before = [p.detach().clone() for p in d.parameters()]
    adam.step()
    for p, old in zip(d.parameters(), before, strict=True):
        assert p.grad is not None
        clear = p.grad.abs() > 1e-5
        moved = (p - old)[clear].detach()
        assert torch.allclose(moved, -5e-4 * p.grad[clear].sign(), atol=1e-5)


@pytest.mark.parametrize("name", mark_rest_long(["vaal", "sraal"], 2))
def test_what_is_unlike_the_labelled_scores_highest(name: str) -> None:
    ctx = context()
    signal = build(Need.of(name, steps=60, width=4, latent=8)).fit(ctx)  # type: ignore[attr-defined]
    inputs = ctx.dataset.inputs(list(range(30, 120)))
    scores = signal.compute(ctx.model, ctx.task, inputs)
    assert scores.shape == (90,)
    assert scores[30:].mean() > scores[:30].mean()


@pytest.mark.parametrize("name", ["vaal", "sraal"])
def test_fit_is_deterministic_leaves_the_model_and_the_global_generator(name: str) -> None:
    need = Need.of(name, steps=2, width=4, latent=8)
    state = torch.get_rng_state()
    runs = []
    for _ in range(2):
        ctx = context(seed=5)
        before = {k: v.clone() for k, v in ctx.model.state_dict().items()}
        signal = build(need).fit(ctx)  # type: ignore[attr-defined]
        runs.append(signal.compute(ctx.model, ctx.task, ctx.dataset.inputs([3, 70])))
        assert all(torch.equal(before[k], v) for k, v in ctx.model.state_dict().items())
        assert not ctx.model.training
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", ["vaal", "sraal"])
@pytest.mark.parametrize("labelled", [0, 1])
def test_nothing_or_one_sample_labelled(name: str, labelled: int) -> None:
    ctx = context(labelled=labelled)
    signal = build(Need.of(name, steps=2, width=4, latent=8)).fit(ctx)  # type: ignore[attr-defined]
    scores = signal.compute(ctx.model, ctx.task, ctx.dataset.inputs([3, 70]))
    assert torch.isfinite(scores).all()


def test_a_score_does_not_depend_on_its_batch() -> None:
    ctx = context()
    signal = build(Need.of("vaal", steps=2, width=4, latent=8)).fit(ctx)  # type: ignore[attr-defined]
    whole = signal.compute(ctx.model, ctx.task, ctx.dataset.inputs(list(range(8))))
    alone = signal.compute(ctx.model, ctx.task, ctx.dataset.inputs([5]))
    assert torch.allclose(whole[5:6], alone, atol=1e-5)
    assert towards(torch.zeros(3), 1.0) == pytest.approx(0.6931, abs=1e-3)


def test_latents_restore_the_images_better_the_longer_they_are_trained() -> None:
    errors = []
    for steps in (1, 120):
        ctx = context(labelled=0)
        fitted = build(Need.of("latents", steps=steps, latent=4, width=4)).fit(ctx)  # type: ignore[attr-defined]
        x = ctx.dataset.inputs(list(range(120)))
        z = fitted.compute(ctx.model, ctx.task, x)
        assert z.shape == (120, 4)
        with torch.no_grad():
            errors.append(float((fitted.vae.decode(z) - x).square().mean()))
    assert errors[1] < errors[0] / 2


def test_latents_update_is_adams_on_the_loss_by_hand() -> None:
    ctx = context(labelled=0)
    fitted = build(Need.of("latents", steps=1, latent=4, width=4)).fit(ctx)  # type: ignore[attr-defined]
    again = context(labelled=0)
    with sraal.seeding(again):
        vae = VAE((1, 8, 8), 4, 4)
    order = torch.randperm(120, generator=again.rng).tolist()
    x = again.dataset.inputs(order)
    mean, log_variance = vae.encode(x)
    noise = torch.randn(mean.shape, generator=again.rng)
    restored = vae.decode(mean + log_variance.exp().sqrt() * noise)
    error = (restored - x).square().sum(dim=(1, 2, 3)).mean()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1).mean()
    (5 * error + kl).backward()
    torch.optim.Adam(vae.parameters(), lr=5e-4).step()
    for one, other in zip(vae.parameters(), fitted.vae.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("name", ["vaal", "sraal", "latents"])
def test_unlabelled_samples_none_of_which_can_be_read_end_with_an_error(name: str) -> None:
    """Where the run skips such samples, the next batch was waited for without end."""
    reads = 0

    class Damaged(Toy):
        def inputs(self, indices: list[int]) -> Tensor:
            nonlocal reads
            reads += 1
            assert reads < 1000
            if any(i >= 30 for i in indices):
                raise DataError(f"sample {indices[0]} cannot be read")
            return super().inputs(indices)

    ctx = context(labelled=30)
    broken = Damaged(ctx.dataset.inputs(list(range(120))))
    ctx = dataclasses.replace(ctx, dataset=broken, skip_unreadable=True)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="cannot be read"):
        build(Need.of(name, steps=2)).fit(ctx)  # type: ignore[attr-defined]
