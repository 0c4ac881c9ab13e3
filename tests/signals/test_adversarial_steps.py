"""A whole training step of VAAL and of SRAAL, written out: draws, losses, gradients, Adam.

Networks are taken over as layers; what is checked is everything that is done with them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from toy import context

from upslope.pool import Need
from upslope.signals import FitContext, build
from upslope.signals.fitting import training_steps, without_gradients
from upslope.signals.sraal import indicator
from upslope.signals.vaal import Vaal
from upslope.signals.vae import VAE, Discriminator


class Adam:
    """Kingma and Ba, Algorithm 1, in float64."""

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        self.weights = list(weights)
        self.m = [torch.zeros_like(w, dtype=torch.float64) for w in self.weights]
        self.v = [torch.zeros_like(w, dtype=torch.float64) for w in self.weights]
        self.t = 0

    def step(self, loss: Tensor, rate: float = 5e-4) -> None:
        grads = torch.autograd.grad(loss, self.weights, allow_unused=True)
        self.t += 1
        for k, (w, g) in enumerate(zip(self.weights, grads, strict=True)):
            if g is None:
                continue
            g = g.double()
            self.m[k] = 0.9 * self.m[k] + 0.1 * g
            self.v[k] = 0.999 * self.v[k] + 0.001 * g**2
            m, v = self.m[k] / (1 - 0.9**self.t), self.v[k] / (1 - 0.999**self.t)
            w.data = (w.data.double() - rate * m / (v.sqrt() + 1e-8)).float()


def log_sigmoid_loss(logits: Tensor, state: Tensor | float) -> Tensor:
    """-[s log D + (1 - s) log(1 - D)], with D the sigmoid of the logits."""
    d = 1 / (1 + torch.exp(-logits))
    return -(state * torch.log(d) + (1 - state) * torch.log(1 - d)).mean()


def autoencoding(vae: VAE, x: Tensor, rng: torch.Generator, weight: float) -> tuple[Tensor, Tensor]:
    """(weight |x^ - x|^2 + KL, the means)."""
    mean, log_variance = vae.encode(x)
    noise = torch.randn(mean.shape, generator=rng)
    restored = vae.decode(mean + torch.exp(log_variance / 2) * noise)
    error = ((restored - x) ** 2).sum(dim=(1, 2, 3)).mean()
    kl = ((mean**2 + torch.exp(log_variance) - log_variance - 1) / 2).sum(dim=1).mean()
    return weight * error + kl, mean


def shuffled(ctx: FitContext, indices: list[int]) -> tuple[Tensor, list[int]]:
    """The one batch of a pass over so few, and the places in `indices` that it has."""
    places = torch.randperm(len(indices), generator=ctx.rng).tolist()
    return ctx.dataset.inputs([indices[p] for p in places]), places


def assert_same(ours: nn.Module, expected: nn.Module) -> None:
    """Weights and BatchNorm statistics."""
    for name, value in expected.state_dict().items():
        assert torch.allclose(ours.state_dict()[name].float(), value.float(), atol=2e-6), name


def test_two_steps_of_vaal() -> None:
    options = {"steps": 2, "latent": 4, "width": 4}
    fitted = build(Need.of("vaal", **options)).fit(context(seed=7))  # type: ignore[attr-defined]
    ctx = context(seed=7)
    vae, d = Vaal(steps=2, latent=4, width=4).networks(ctx)
    before = [p.detach().clone() for p in d.parameters()]
    adam, adam_d = Adam(vae.parameters()), Adam(d.parameters())
    for _ in range(2):
        for _ in range(2):
            known, _ = shuffled(ctx, list(ctx.labelled))
            new, _ = shuffled(ctx, list(ctx.unlabelled))
            loss = torch.zeros(())
            for x in (known, new):
                own, mean = autoencoding(vae, x, ctx.rng, 1.0)
                loss = loss + own + log_sigmoid_loss(d(mean), 1.0)
            adam.step(loss)
        with torch.no_grad():
            of_known, of_new = vae.encode(known)[0], vae.encode(new)[0]
        adam_d.step(log_sigmoid_loss(d(of_known), 1.0) + log_sigmoid_loss(d(of_new), 0.0))
    assert_same(fitted.vae, vae)
    assert_same(fitted.discriminator, d)
    assert any((a - b).abs().max() > 5e-4 for a, b in zip(before, d.parameters(), strict=True))


def test_two_steps_of_sraal() -> None:
    options = {"steps": 2, "latent": 6, "width": 4}
    signal = build(Need.of("sraal", **options))
    fitted = signal.fit(context(seed=7))  # type: ignore[attr-defined]
    ctx = context(seed=7)
    vae, classifier, d = signal.networks(ctx)  # type: ignore[attr-defined]
    adam, adam_d = Adam([*vae.parameters(), *classifier.parameters()]), Adam(d.parameters())
    for _ in range(2):
        known, places = shuffled(ctx, list(ctx.labelled))
        y = torch.as_tensor(ctx.targets[places])
        new, _ = shuffled(ctx, list(ctx.unlabelled))
        with torch.no_grad():
            u = indicator(ctx.model(new).softmax(dim=1))
        loss, mean = autoencoding(vae, known, ctx.rng, 5.0)
        z = classifier(mean[:, 3:])
        right = z.gather(1, y[:, None])[:, 0]
        loss = loss + log_sigmoid_loss(d(mean), 1.0) + 5 * (z.logsumexp(dim=1) - right).mean()
        own, mean = autoencoding(vae, new, ctx.rng, 5.0)
        adam.step(loss + own + log_sigmoid_loss(d(mean), 1.0))
        with torch.no_grad():
            of_known, of_new = vae.encode(known)[0], vae.encode(new)[0]
        adam_d.step(log_sigmoid_loss(d(of_known), 0.0) + log_sigmoid_loss(d(of_new), u))
    assert_same(fitted.vae, vae)
    assert_same(fitted.discriminator, d)


def test_steps_follow_the_pool_up_to_a_thousand() -> None:
    ctx = context()
    assert training_steps(ctx, None, 128) == 10  # 10 passes over 120 samples, rounded up
    assert training_steps(ctx, None, 40) == 30
    assert training_steps(ctx, None, 1) == 1000
    assert training_steps(ctx, 4321, 128) == 4321


def test_what_is_held_gets_no_gradient_and_is_as_before_afterwards() -> None:
    d = Discriminator(3)
    with without_gradients(d):
        x = torch.randn(2, 3, requires_grad=True)
        d(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None and p.requires_grad for p in d.parameters())
