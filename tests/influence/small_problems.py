"""Small float64 problems with everything formed explicitly: what the products are held against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.nn import functional as F

from upslope.models.resnet import resnet_small

Data = list[tuple[Tensor, Tensor]]


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4))


def convolutional() -> nn.Module:
    """With an in-place activation, batch normalisation, a stride and padding."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2, stride=2),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    for _ in range(3):
        model(torch.randn(16, 2, 4, 4))
    return model


def layer_normed() -> nn.Module:
    """With layer normalisation, GELU and a grouped convolution."""
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2),
        nn.LayerNorm((4, 2, 2)),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.GELU(approximate="tanh"),
        nn.Linear(5, 3),
    )


def residual() -> nn.Module:
    """The network of three stages that the package itself has, one channel wide."""
    torch.manual_seed(3)
    model = resnet_small(3, (2, 8, 8), width=1, dropout=0.2)
    for _ in range(3):
        model(torch.randn(16, 2, 8, 8))
    return model


MODELS = {
    "perceptron": (perceptron, (5,), 4),
    "convolutional": (convolutional, (2, 4, 4), 3),
    "layer-normed": (layer_normed, (2, 4, 4), 3),
    "residual": (residual, (2, 8, 8), 3),
}


def problem(name: str, n: int = 23, seed: int = 2) -> tuple[nn.Module, Data]:
    """The model in float64, and uneven batches."""
    build, shape, classes = MODELS[name]
    model = build().double()
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=rng, dtype=torch.float64)
    y = torch.randint(0, classes, (n,), generator=rng)
    return model, list(zip(x.split(9), y.split(9), strict=True))


def altered(
    data: Data, index: int, *, value: float | None = None, label: int | None = None
) -> Data:
    """The data with another number in the inputs of one sample, or another label."""
    x, y = (t.clone() for t in whole(data))
    if value is not None:
        x[index, 0] = value
    if label is not None:
        y[index] = label
    return list(zip(x.split(9), y.split(9), strict=True))


def whole(data: Data) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])


class Explicit:
    """Gradients, Jacobians and matrices of a model at its parameters, in full."""

    def __init__(self, model: nn.Module, data: Data):
        self.model = model.eval()
        self.x, self.y = whole(data)
        self.named = {k: p.detach() for k, p in model.named_parameters()}
        self.theta = torch.cat([p.flatten() for p in self.named.values()])

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        pieces = theta.split([p.numel() for p in self.named.values()])
        state = {k: t.view_as(p) for (k, p), t in zip(self.named.items(), pieces, strict=True)}
        return functional_call(self.model, state, (x,))

    def label(self, theta: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(theta, self.x), self.y, reduction="none")

    def entropy(self, theta: Tensor) -> Tensor:
        log_p = self.logits(theta, self.x).log_softmax(1)
        return -(log_p.exp() * log_p).sum(1)

    def gradients(self, loss: str = "label") -> Tensor:
        return jacobian(getattr(self, loss), self.theta)  # (n, p)

    def hessian(self, loss: str = "label") -> Tensor:
        return hessian(lambda t: getattr(self, loss)(t).mean(), self.theta)

    def fisher(self) -> Tensor:
        """By its definition: the outer products for every label, weighted by the posterior."""
        total = torch.zeros(len(self.theta), len(self.theta), dtype=torch.float64)
        log_p = jacobian(lambda t: self.logits(t, self.x).log_softmax(1), self.theta)  # (n, c, p)
        p = self.logits(self.theta, self.x).softmax(1).detach()
        for g, weights in zip(log_p, p, strict=True):
            total += g.T @ (weights[:, None] * g)
        return total / len(self.x)

    def empirical_fisher(self) -> Tensor:
        g = self.gradients()
        return g.T @ g / len(g)

    def gauss_newton(self, loss: str = "label") -> Tensor:
        def of_logits(y: Tensor) -> Callable[[Tensor], Tensor]:
            def value(z: Tensor) -> Tensor:
                log_p = z.log_softmax(0)
                return -(log_p.exp() * log_p).sum() if loss == "entropy" else -log_p[y]

            return value

        z = self.logits(self.theta, self.x).detach()
        slopes = jacobian(lambda t: self.logits(t, self.x), self.theta)  # (n, c, p)
        curved = [hessian(of_logits(yi), zi) for zi, yi in zip(z, self.y, strict=True)]
        parts = [j.T @ h @ j for j, h in zip(slopes, curved, strict=True)]
        return torch.stack(parts).mean(0)


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())
