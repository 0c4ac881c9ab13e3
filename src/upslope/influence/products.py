"""Products of a curvature matrix over a data set with a vector; the matrix is never formed.

    hessian            (1/n) sum_i  grad^2 L_i                 H of Eq. 1
    gauss-newton       (1/n) sum_i  J_i^T (d^2 L_i / dz^2) J_i     z = f(x_i), J_i = dz / dtheta
    fisher             (1/n) sum_i  E_y[g_i(y) g_i(y)^T]       y drawn from the model's posterior
    empirical-fisher   (1/n) sum_i  g_i g_i^T                  at the given targets

over the samples i of the data. For cross-entropy on logits, `fisher` and `gauss-newton` are one
matrix. The last two, and `gauss-newton` where the loss is convex in z, are positive semi-definite;
the Hessian of a network is not, in general. Each product costs one pass over the data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from upslope.autodiff import differentiating_twice, hessian_product
from upslope.errors import InfluenceError
from upslope.gradnorm.parameters import Parameters
from upslope.influence.losses import LossFunction
from upslope.influence.network import (
    Batches,
    Network,
    pull_back,
    sample_count,
)

LARGEST_MATRIX = 5000
"""Parameters up to which the matrix itself may be asked for."""


class Curvature:
    """A curvature matrix C over the training data, (p, p), known by its products.

    model: any module that treats each sample by itself. It is read once, now; it is run in eval
        mode and left as it was found.
    data: batches (inputs, targets) of the n training samples, the same at every pass: without
        random augmentation.
    loss: "label", "entropy", "expected", or a function of outputs and targets to (n,).
    kind: each the mean over the samples: "hessian", of the loss; "gauss-newton", J^T (d^2 L / dz^2)
        J of the outputs z with the Jacobian J; "fisher", E_y[g g^T] for labels y drawn from the
        posterior; or "empirical-fisher", g g^T of the gradients at the given targets.
    parameters: which parameters, as `upslope.gradient_norms` takes them; p is their number.
    dtype: torch.float64 to compute so; by default the type of the model's parameters.

    Raises:
        InfluenceError: unknown `kind` or `loss`, data that cannot be gone through twice.
        GradientNormError: no parameter is asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Batches,
        loss: str | LossFunction = "label",
        *,
        kind: str = "hessian",
        parameters: Parameters = None,
        dtype: torch.dtype | None = None,
    ):
        if kind not in _KINDS:
            raise InfluenceError(f"Expected `kind` to be one of {sorted(_KINDS)} but got {kind!r}.")
        self.kind, self.data = kind, data
        self.network = Network(model, loss, parameters, dtype)
        self.gradient, self.samples = self._mean_gradient()
        """The mean gradient over the data, (p,), and n."""

    @property
    def size(self) -> int:
        """Return p, the number of parameters."""
        return self.network.size

    def product(self, vector: Tensor) -> Tensor:
        """Return C v, (p,), for v of shape (p,), in the order of `model.named_parameters()`.

        vector: (p,).

        Raises:
            InfluenceError: a vector of another shape, or a product that is not finite.
        """
        vector = self.network.check_vector(vector, "vector")
        total = torch.zeros_like(vector)
        with differentiating_twice(self.network.model):
            for batch in self.network.batches(self.data, "data"):
                total += _KINDS[self.kind](self.network, batch, vector)
        if not bool(torch.isfinite(total).all()):
            raise InfluenceError(
                f"Expected a finite {self.kind} product but got NaN or infinity. Look at the "
                "model's outputs and the loss on the data, or compute in torch.float64."
            )
        return total / self.samples

    def batch_product(self, batch: tuple[Any, Any], vector: Tensor) -> Tensor:
        """Return C v over one batch of the data alone, (p,).

        vector: (p,).
        """
        with differentiating_twice(self.network.model):
            batch = self.network.as_stored(batch)
            return _KINDS[self.kind](self.network, batch, vector) / sample_count(batch)

    def matrix(self) -> Tensor:
        """Return C itself, (p, p), by p products: for small networks.

        Raises:
            InfluenceError: there are more than 5000 parameters.
        """
        if self.size > LARGEST_MATRIX:
            raise InfluenceError(
                f"Expected at most {LARGEST_MATRIX} parameters to form the matrix but the model "
                f"has {self.size}. Use products, or fewer `parameters`."
            )
        unit = torch.eye(self.size, dtype=self.network.dtype, device=self.network.device)
        matrix = torch.stack([self.product(e) for e in unit])
        return (matrix + matrix.T) / 2

    def diagonal(self, probes: int = 16, seed: int = 0) -> Tensor:
        """Return an unbiased estimate of the diagonal of C, (p,), from this many products.

        Source: Bekas, Kokiopoulou and Saad (2007), "An estimator for the diagonal of a matrix".

        probes: products to take. seed: of the signs.

        Raises:
            InfluenceError: fewer than one probe.
        """
        if probes < 1:
            raise InfluenceError(f"Expected `probes` to be at least 1 but got {probes}.")
        rng = torch.Generator().manual_seed(seed)
        total = torch.zeros_like(self.gradient)
        for _ in range(probes):
            signs = (torch.randint(0, 2, (self.size,), generator=rng) * 2 - 1).to(total)
            total += signs * self.product(signs)
        return total / probes

    def _mean_gradient(self) -> tuple[Tensor, int]:
        total, n = self.network.gradient_sum(self.data, self.network.loss, "data")
        return total / n, n


BatchProduct = Callable[[Network, tuple[Any, Any], Tensor], Tensor]
"""The product summed over the samples of a batch, (p,)."""


def _hessian(network: Network, batch: tuple[Any, Any], vector: Tensor) -> Tensor:
    theta = network.leaves()
    total = network.losses(theta, batch, network.loss).sum()
    direction = list(network.split(vector).values())
    product = hessian_product(total, list(theta.values()), direction)
    return network.flatten_theta(dict(zip(theta, product, strict=True)))


def _gauss_newton(network: Network, batch: tuple[Any, Any], vector: Tensor) -> Tensor:
    def curve(outputs: Tensor, tangent: Tensor) -> Tensor:
        z = outputs.detach().requires_grad_()
        return hessian_product(network.loss(z, batch[1]).sum(), [z], [tangent])[0]

    return _through_outputs(network, batch, vector, curve)


def _fisher(network: Network, batch: tuple[Any, Any], vector: Tensor) -> Tensor:
    def curve(outputs: Tensor, tangent: Tensor) -> Tensor:
        if outputs.dim() != 2:
            raise InfluenceError(
                "Expected logits of shape (n, classes) for the Fisher matrix, whose labels are "
                f"drawn from their softmax, but got {tuple(outputs.shape)}. Use "
                'kind="gauss-newton".'
            )
        p = outputs.detach().softmax(dim=1)
        # A shift of t changes nothing, and where that of a sure class is 0 no digit is lost.
        tangent = tangent - tangent.gather(1, p.argmax(dim=1, keepdim=True))
        # (diag(p) - p p^T) t: the covariance of the one-hot label.
        return p * (tangent - (p * tangent).sum(dim=1, keepdim=True))

    return _through_outputs(network, batch, vector, curve)


def _through_outputs(
    network: Network,
    batch: tuple[Any, Any],
    vector: Tensor,
    curve: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Return J^T (curve(J v)): forward mode in, backward out."""
    inputs = batch[0]
    tangent = network.along(lambda theta: _tensor(network.outputs(theta, inputs)), vector)
    theta = network.leaves()
    outputs = network.outputs(theta, inputs)
    return network.flatten_theta(pull_back(outputs, theta, curve(outputs, tangent)))


def _empirical_fisher(network: Network, batch: tuple[Any, Any], vector: Tensor) -> Tensor:
    inner = network.slopes(batch, network.loss, vector)  # (n,)
    theta = network.leaves()
    return network.flatten_theta(
        pull_back(network.losses(theta, batch, network.loss), theta, inner)
    )


_KINDS: dict[str, BatchProduct] = {
    "hessian": _hessian,
    "gauss-newton": _gauss_newton,
    "fisher": _fisher,
    "empirical-fisher": _empirical_fisher,
}


def _tensor(outputs: Any) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise InfluenceError(
            "Expected the model to return a tensor for this kind of curvature but got "
            f"{type(outputs).__name__}. Wrap the model so that it returns its logits."
        )
    return outputs
