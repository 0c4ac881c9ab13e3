"""Which path every use of a parameter takes, and what it costs.

With inputs, one forward and a few backward passes are recorded and every use of a parameter is
listed in order. Without, the modules alone are read: what functional code does with parameters is
then not known, and neither are the shapes that decide about methods.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from upslope.errors import GradientNormError
from upslope.gradnorm.arguments import Call
from upslope.gradnorm.core.layouts.layout import Layout, Samples
from upslope.gradnorm.core.model_io import Inputs, tensors_in
from upslope.gradnorm.core.state.restoring import in_turn, restoring_state
from upslope.gradnorm.core.uses.reductions import SquaredNorms
from upslope.gradnorm.losses import label_free
from upslope.gradnorm.parameters import Parameters, select
from upslope.gradnorm.trace.recording import Recording

KERNEL, REPLAY, ONE_BY_ONE, UNKNOWN = "kernel", "replayed", "one by one", "seen when it runs"

_MODULES_WITH_KERNELS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
    nn.ConvTranspose3d, nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.RMSNorm, nn.PReLU, nn.Embedding,
    nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention,
)  # fmt: skip
"""Modules whose own forward meets kernels only."""


@dataclass(frozen=True)
class Use:
    """One use of parameters by one operator."""

    parameters: tuple[str, ...]
    operator: str
    path: str
    """"kernel"; "replayed": the operator is run again for every sample's share of the gradient;
    "one by one": one backward pass of the whole network for every sample."""
    method: str = ""
    """How the norm of a matrix or convolution is found: "direct", "ghost", "shifted_ghost" ..."""
    work: float = math.nan
    """Estimated multiply-adds per sample: forward, gradient of the input, and norm."""
    share: float = math.nan
    """`work` as a share of that of all uses; not a number where it is not known."""


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; `print` it.

    uses: one entry per use of a parameter, in order.
    """

    uses: tuple[Use, ...]
    note: str
    """How the table was made, and why the network is slow, if it is."""

    @property
    def path(self) -> str:
        """The slowest path that some use takes."""
        return max((use.path for use in self.uses), key=_SLOWNESS.index, default=KERNEL)

    def __str__(self) -> str:
        heads = ("parameters", "operator", "path", "method", "work", "share")
        rows = [heads, *(_cells(use) for use in self.uses)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
        lines = [
            "  ".join(
                cell.rjust(width) if i > 3 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([self.note, "", *lines])


_SLOWNESS = (KERNEL, UNKNOWN, REPLAY, ONE_BY_ONE)


@in_turn
def explain(
    model: nn.Module, inputs: Inputs | None = None, *, parameters: Parameters = None
) -> Explanation:
    """Return, for every use of a parameter in order, its path, its method and its cost.

    model: the network. parameters: as of `gradient_norms`.
    inputs: as of `gradient_norms`; of a single sample no layout is probed, so that two or more show
        more. None reads the modules alone.

    Raises:
        GradientNormError: as `gradient_norms`; or there is no sample among the inputs.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
        >>> [use.path for use in explain(model, torch.randn(8, 3)).uses]
        ['kernel', 'kernel']
    """
    if inputs is None:
        return _from_modules(model, select(model, parameters))
    call = Call.of(model, inputs, parameters)
    n = call.batch.n
    if n == 0:
        raise GradientNormError(
            "Expected `inputs` to hold a sample or more but got none: nothing would run. "
            "`explain(model)` reads the modules alone."
        )
    with restoring_state(model, call.walk) as state:
        record = Recording(model, call.batch, call.weights, call.options, state)
        # The whole way that `gradient_norms` takes, with its proof: it may end in another path.
        record.reduce_per_sample(SquaredNorms(), label_free(lambda outputs: _any_loss(outputs, n)))
        table = record.run_or_fall_back(lambda: _from_recording(record))
        names = call.weights.parameters
        return _slow(names, record.fallback_reason) if table is None else table


def _slow(names: Iterable[str], why: str | None) -> Explanation:
    note = f"The whole network goes one backward pass per sample: {why}."
    return Explanation(tuple(Use((name,), "", ONE_BY_ONE) for name in names), note)


def _from_modules(model: nn.Module, parameters: dict[str, nn.Parameter]) -> Explanation:
    uses = []
    for name, parameter in parameters.items():
        owner = model.get_submodule(name.rpartition(".")[0])
        has_kernel = isinstance(owner, _MODULES_WITH_KERNELS) and any(
            p is parameter for p in owner.parameters(False)
        )
        uses.append(Use((name,), type(owner).__name__, KERNEL if has_kernel else UNKNOWN))
    return Explanation(
        tuple(uses),
        "Read from the modules alone. Pass `inputs` to see every use of every parameter, with the "
        "method and its cost.",
    )


@dataclass
class _CostListener:
    """Describes the per-sample gradients of every use, and counts what their norms would cost."""

    record: Recording
    layouts: Mapping[int, Layout]
    methods_of: dict[int, tuple[list[str], float]]

    def on_gradient(self, index: int, g: Tensor, inputs: tuple[Tensor, ...]) -> None:
        """Take in the gradient that reached one use; see `Listener`."""
        samples = Samples(self.record.n, self.layouts.get(index, Layout()))
        # Entry by entry, a layer moves its output three times: forward, backward, norm.
        methods, work = self.methods_of.setdefault(index, ([], 3.0 * g.numel() / self.record.n))
        for _, part in self.record.forward.tape.kernels[index].weight_gradients(
            g, *inputs, samples=samples
        ):
            method, cost = part.cost()
            methods += [method] if method else []
            work += cost
        self.methods_of[index] = methods, work


def _from_recording(record: Recording) -> Explanation:
    forward = record.forward
    losses = forward.losses(lambda outputs: _any_loss(outputs, record.n))
    layouts = {} if record.n == 1 else forward.probe(losses).layouts()
    listener = _CostListener(record, forward.layouts_with_routes(layouts), {})
    forward.backward(losses, torch.ones_like(losses), listener)
    uses, weights = [], forward.tape.weights
    total = sum(work for _, work in listener.methods_of.values())
    for index, kernel in enumerate(forward.tape.kernels):
        names = tuple(dict.fromkeys(n for w in kernel.weights for n in weights.sources(w)))
        methods, work = listener.methods_of.get(index, (["no gradient"], 0.0))
        path = REPLAY if kernel.is_replayed else KERNEL
        share = work / total if total else 0.0
        uses.append(Use(names, kernel.name, path, ", ".join(methods), work, share))
    names_met = {name for use in uses for name in use.parameters}
    names_unused = [name for name in weights.parameters if name not in names_met]
    note = f"One batch of {record.n}: {len(uses)} uses of {len(weights.parameters)} parameters."
    if names_unused:
        note += f" Not used, and so zero: {', '.join(names_unused)}."
    return Explanation(tuple(uses), note)


def _any_loss(outputs: object, n: int) -> Tensor:
    """Return a loss that depends on all numbers that the model puts out, (n,)."""
    outputs_with_rows = [t for t in tensors_in(outputs) if t.dim() > 0 and len(t) == n]
    if not outputs_with_rows:
        raise GradientNormError(
            f"Expected outputs with the {n} samples in dimension 0 but the model puts out shapes "
            f"{[tuple(t.shape) for t in tensors_in(outputs)]}: `explain` knows no loss for them."
        )
    # Classes that a model masks with -inf count nothing in any loss.
    sizes = [t.abs().masked_fill(t.abs() == math.inf, 0) for t in outputs_with_rows]
    return torch.stack([t.square().reshape(n, -1).sum(dim=1) for t in sizes]).sum(dim=0)


def _cells(use: Use) -> tuple[str, ...]:
    names_by_module: dict[str, list[str]] = {}
    for name in use.parameters:
        owner, _, short_name = name.rpartition(".")
        names_by_module.setdefault(owner, []).append(short_name)
    names = "; ".join(
        f"{owner}: {', '.join(short_names)}"
        if owner and len(short_names) > 1
        else ", ".join(f"{owner}.{name}".strip(".") for name in short_names)
        for owner, short_names in names_by_module.items()
    )
    work = "" if math.isnan(use.work) else f"{use.work:.2g}"
    share = "" if math.isnan(use.share) else f"{use.share:.1%}"
    return names, use.operator, use.path, use.method, work, share
