"""Features learnt here without labels, by contrast (SimCLR: Chen et al., ICML 2020).

Two random variants of each image of a batch go through an encoder and a projection; z_1 .. z_2n are
the projections at unit length, i' the other variant of i's image, and

    loss = mean over i of  -log  exp(<z_i, z_i'> / t) / sum_{j != i} exp(<z_i, z_j> / t)     (Eq. 1)

with t = 0.5, the source's on CIFAR-10. A variant is a crop of 50% to 100% of the area at the size
of the image, brightness and contrast changed, of colour images each channel by itself, and mirrored
where the task's own augmentation mirrors: not everything may be (digits, letters). The projection
is thrown away afterwards.

It learns from all of the pool, labelled, passed or neither, and so once for a run: the weights
depend on the pool, the seed and the options, and not on the cycle or on the strategy. They are kept
on the disk, in the folder that the run gives.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Hashable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.errors import ModelError, RunError
from upslope.options import Options
from upslope.signals.base import FitContext
from upslope.signals.fitting import readable_batches, seeding, training_steps
from upslope.signals.learnt import key_of, load_learnt, prepared_bytes, save_learnt
from upslope.tasks.base import Augments, Task

BATCH = 256
RATE = 1e-3
TEMPERATURE = 0.5
PASSES = 50
WIDTHS = (32, 64, 128)
CELLS = 2
WIDTH = WIDTHS[-1] * CELLS**2
PROJECTION = 64
SMALLEST = 0.5
JITTER = 0.4

Steps = Annotated[
    int | None,
    Field(ge=1, description="of training; none: 50 passes over the pool, at most 1000 steps"),
]


@dataclass(frozen=True)
class ContrastiveFeatures(Options):
    """Features of a small network trained on the pool's images without labels: (n, 512)."""

    name: ClassVar[str] = "contrastive-features"
    once: ClassVar[bool] = True

    steps: Steps = None

    def fit(self, context: FitContext) -> EncoderFeatures:
        """Train the encoder on all of the pool, or take the one that was trained before."""
        seed, samples = context.rng.initial_seed(), prepared_bytes(context)
        key = (self, seed, _mirrors(context.task), str(context.device), samples)
        encoder = _LAST.get(context.dataset, key)
        if encoder is None:
            encoder = self._read_or_learn(context)
            _LAST.put(context.dataset, key, encoder)
        return EncoderFeatures(encoder)

    def check(self, model: nn.Module, task: Task, inputs: Tensor) -> None:  # noqa: ARG002
        """Raise ModelError for what is not an image of 8 x 8 or more."""
        if inputs.ndim != 4 or min(inputs.shape[2:]) < 8:
            raise ModelError(
                "Expected images of at least 8 x 8, (n, c, h, w), for features learnt by contrast "
                f"but got {tuple(inputs.shape)}. Give an extractor of your own: "
                "features=my_package.nets:features."
            )

    def _read_or_learn(self, context: FitContext) -> nn.Module:
        """The encoder, from the disk where it is there."""
        if context.cache is None:
            return self._train(context)
        seed, options = context.rng.initial_seed(), asdict(self)
        short = hashlib.sha256(f"{seed} {options}".encode()).hexdigest()[:16]
        path = context.cache / f"{self.name}-{short}.safetensors"
        key = key_of(context, options=options, mirrors=_mirrors(context.task))
        weights = load_learnt(path, key)
        if weights is None:
            save_learnt(path, key, self._train(context).state_dict())
            weights = load_learnt(path, key)
        if weights is None:
            raise RunError(
                f"Expected {path} as it was just written but it reads otherwise: the disk is "
                "failing, or something else writes there. Then run the same command again."
            )
        with torch.random.fork_rng(devices=[]):  # its first weights are overwritten
            encoder = network(context.dataset.input_shape)
        encoder.load_state_dict(weights)
        return encoder.to(context.device).eval()

    def _train(self, context: FitContext) -> nn.Module:
        with seeding(context):
            encoder = network(context.dataset.input_shape)
            head = nn.Sequential(
                nn.Linear(WIDTH, WIDTHS[-1]), nn.ReLU(), nn.Linear(WIDTHS[-1], PROJECTION)
            )
        encoder, head = encoder.to(context.device), head.to(context.device)
        adam = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=RATE)
        mirror, pool = _mirrors(context.task), range(len(context.dataset))
        steps = training_steps(context, self.steps, BATCH, PASSES, len(pool))
        stream = readable_batches(context, pool, BATCH)
        with torch.enable_grad():
            for step in range(steps):
                x = next(stream)
                views = [variant(x, context.rng, mirror=mirror) for _ in range(2)]
                adam.zero_grad()
                nt_xent(head(encoder(torch.cat(views)))).backward()  # type: ignore[no-untyped-call]
                adam.step()
                context.progress(step + 1, steps)
        return encoder.eval()


@dataclass(frozen=True)
class EncoderFeatures:
    """What the encoder puts out: (n, 512)."""

    encoder: nn.Module
    name: ClassVar[str] = ContrastiveFeatures.name

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:  # noqa: ARG002
        """(n, 512) for a prepared batch."""
        with torch.no_grad():
            features: Tensor = self.encoder(inputs.float())
        return features


def _mirrors(task: Task) -> bool:
    return isinstance(task, Augments) and task.augmentation == "flip-crop"


def network(shape: tuple[int, ...]) -> nn.Sequential:
    """Three convolutions, the last two halving, the first too from 24 pixels a side on; then the
    mean of each quarter of the image. Images (n, *shape) -> (n, 512)."""
    strides = (2 if min(shape[1:]) >= 24 else 1, 2, 2)
    layers: list[nn.Module] = []
    for (a, b), stride in zip(pairwise((shape[0], *WIDTHS)), strides, strict=True):
        layers += [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(CELLS), nn.Flatten())


def nt_xent(z: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """The loss above. z: (2n, d); i and n + i are variants of one image."""
    n = len(z) // 2
    z = F.normalize(z, dim=1)
    itself = torch.eye(2 * n, dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    return F.cross_entropy(logits, torch.arange(2 * n, device=z.device).roll(n))


def variant(x: Tensor, rng: torch.Generator, *, mirror: bool) -> Tensor:
    """A random variant of each prepared image. x: (n, c, h, w); rng: on the CPU."""
    n, c = x.shape[:2]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=rng)

    scale = uniform(SMALLEST, 1.0, n).sqrt()
    shift = uniform(-1, 1, n, 2) * (1 - scale[:, None])
    signs = torch.where(uniform(0, 1, n) < 0.5, -1.0, 1.0) if mirror else torch.ones(n)
    grid = torch.zeros(n, 2, 3)
    grid[:, 0, 0], grid[:, 1, 1], grid[:, :, 2] = signs * scale, scale, shift
    places = F.affine_grid(grid.to(x.device), list(x.shape), align_corners=False)
    x = F.grid_sample(x, places, padding_mode="border", align_corners=False)
    contrast = uniform(1 - JITTER, 1 + JITTER, n, c, 1, 1).to(x.device)
    brightness = uniform(-JITTER, JITTER, n, c, 1, 1).to(x.device)
    mean = x.mean(dim=(2, 3), keepdim=True)
    return (x - mean) * contrast + mean + brightness


class _Last:
    """The encoder that was trained last, as long as its data set lives."""

    def __init__(self) -> None:
        self.dataset: weakref.ref[object] | None = None
        self.key: Hashable = None
        self.encoder: nn.Module | None = None

    def get(self, dataset: object, key: Hashable) -> nn.Module | None:
        same = self.dataset is not None and self.dataset() is dataset and self.key == key
        return self.encoder if same else None

    def put(self, dataset: object, key: Hashable, encoder: nn.Module) -> None:
        self.dataset, self.key, self.encoder = weakref.ref(dataset), key, encoder


_LAST = _Last()
