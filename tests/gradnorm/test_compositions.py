"""Products of every spelling: Einstein sums, vectors, products with a sum, Kronecker products."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_agrees
from test_uses_of_parameters import Functional
from torch.nn import functional as F

EINSUMS = {
    "three operands": ("ni,ir,ro->no", ["w", "v"], {"w": (4, 2), "v": (2, 3)}),
    "weights first": ("ir,ro,ni->no", ["w", "v", "x"], {"w": (4, 2), "v": (2, 3)}),
    "weights around": ("oi,ni,np->nop", ["w", "x", "x"], {"w": (3, 4)}),
    "four operands": ("ni,ij,jk,ko->no", ["w", "u", "v"],
                      {"w": (4, 2), "u": (2, 5), "v": (5, 3)}),
    "two samples and a weight": ("ni,oij,nj->no", ["x", "w", "x"], {"w": (3, 4, 4)}),
    "ellipsis": ("...i,io->...o", ["w"], {"w": (4, 3)}),
    "ellipsis on both sides": ("...i,...io->...o", ["w"], {"w": (1, 4, 3)}),
    "ellipsis summed": ("...i,io->o...", ["w"], {"w": (4, 3)}),
    "ellipsis and three operands": ("...i,ir,ro", ["w", "v"], {"w": (4, 2), "v": (2, 3)}),
    "implicit output": ("ni,io", ["w"], {"w": (4, 3)}),
    "implicit output in another order": ("ni,ia", ["w"], {"w": (4, 3)}),
    "capitals": ("Ni,iO->NO", ["w"], {"w": (4, 3)}),
    "diagonal of the weight": ("ni,ii->ni", ["w"], {"w": (4, 4)}),
    "trace of the weight": ("ni,oo->n", ["w"], {"w": (3, 3)}),
    "entry by entry": ("ni,i->ni", ["w"], {"w": (4,)}),
    "outer product": ("ni,o->nio", ["w"], {"w": (3,)}),
    "dimension of size one": ("ni,io->no", ["w"], {"w": (1, 3)}),
    "with spaces": (" n i , i o -> n o ", ["w"], {"w": (4, 3)}),
}  # fmt: skip


def _einsum(equation, names):
    def function(m, x):
        x = torch.tanh(x * m.s)
        operands = [x if name == "x" else getattr(m, name) for name in names]
        operands = operands if "x" in names else [x, *operands]
        out = torch.einsum(equation, *operands)
        if out.dim() == 1:
            out = torch.stack([out.sin(), out.cos()], dim=1)
        if out.shape[-1] == len(x) and out.shape[0] != len(x):
            out = out.movedim(-1, 0)
        return out.flatten(1).sin()

    return function


@pytest.mark.parametrize("n", [1, 2, 8])  # the function above reads its layout off the shape
@pytest.mark.parametrize("case", EINSUMS)
def test_einstein_sums_have_kernels(case, n):
    equation, names, shapes = EINSUMS[case]
    torch.manual_seed(0)
    model = Functional(_einsum(equation, names), s=(4,), **shapes)
    assert_agrees(model, torch.randn(n, 4))


@pytest.mark.parametrize("with_paths", [True, False])
def test_einstein_sums_of_other_spellings(with_paths, monkeypatch):
    """With and without a library that looks for the best order of the products."""
    monkeypatch.setattr(torch.backends.opt_einsum, "enabled", with_paths)
    torch.manual_seed(0)
    shapes = {"w": (4, 2), "v": (2, 3)}
    x = torch.randn(3, 4)
    forms = (
        lambda m, x: torch.einsum("ni,ir,ro->no", [x, m.w, m.v]),
        lambda m, x: torch.einsum(x, [0, 1], m.w, [1, 2], m.v, [2, 3], [0, 3]),
        lambda m, x: torch.einsum(x, [..., 1], m.w @ m.v, [1, 2], [..., 2]),
    )
    for form in forms:
        assert_agrees(Functional(form, **shapes), x)


PRODUCTS = {
    "dot": (lambda m, x: _rows(x, lambda v: torch.dot(v, m.w)), {"w": (4,)}),
    "vdot": (lambda m, x: _rows(x, lambda v: torch.vdot(m.w, v)), {"w": (4,)}),
    "vecdot": (lambda m, x: torch.linalg.vecdot(x, m.w) [:, None] * m.b, {"w": (4,), "b": (2,)}),
    "inner": (lambda m, x: torch.inner(x, m.w), {"w": (3, 4)}),
    "inner with a vector": (lambda m, x: torch.inner(x, m.w)[:, None] * m.b,
                            {"w": (4,), "b": (2,)}),
    "inner with a number": (lambda m, x: torch.inner(x, m.w), {"w": ()}),
    "outer": (lambda m, x: _rows(x, lambda v: torch.outer(v, m.w).flatten()), {"w": (3,)}),
    "mv": (lambda m, x: torch.mv(x, m.w)[:, None] * m.b, {"w": (4,), "b": (2,)}),
    "mv of the weight": (lambda m, x: _rows(x, lambda v: torch.mv(m.w, v)), {"w": (3, 4)}),
    "vector @ weight": (lambda m, x: _rows(x, lambda v: v @ m.w), {"w": (4, 3)}),
    "weight vector @ sample": (lambda m, x: m.w @ x[:, :, None] * m.b, {"w": (4,), "b": (2,)}),
    "tensordot": (lambda m, x: torch.tensordot(x.unflatten(1, (2, 2)), m.w, dims=2),
                  {"w": (2, 2, 3)}),
    "tensordot of chosen dimensions": (
        lambda m, x: torch.tensordot(m.w, x.unflatten(1, (2, 2)), dims=([0, -1], [2, 1]))
        .movedim(-1, 0).flatten(1), {"w": (2, 3, 2)}),
    "outer tensordot": (lambda m, x: torch.tensordot(x, m.w, dims=0).flatten(1), {"w": (3,)}),
    "kron": (lambda m, x: torch.kron(x, m.w), {"w": (1, 3)}),
    "kron of other ranks": (lambda m, x: torch.kron(m.w, x), {"w": (3,)}),
    "addmm with scales": (lambda m, x: torch.addmm(m.b, x, m.w, beta=0.5, alpha=2),
                          {"b": (3,), "w": (4, 3)}),
    "addmm without its sum": (lambda m, x: torch.addmm(m.b, x, m.w, beta=0),
                              {"b": (3,), "w": (4, 3)}),
    "addmm of the weight": (lambda m, x: torch.addmm(m.b[:, None], m.w, x.T).T,
                            {"b": (3,), "w": (3, 4)}),
    "addmv": (lambda m, x: torch.addmv(m.b, x, m.w, alpha=3)[:, None] * m.c,
              {"b": (1,), "w": (4,), "c": (2,)}),
    "baddbmm": (lambda m, x: torch.baddbmm(m.b, x[:, None], m.w.expand(len(x), 4, 3))[:, 0],
                {"b": (3,), "w": (4, 3)}),
    "baddbmm of the heads": (
        lambda m, x: torch.baddbmm(m.b, x.unflatten(1, (2, 2)).transpose(0, 1), m.w).sum(0),
        {"b": (3,), "w": (2, 2, 3)}),
    "addbmm": (
        lambda m, x: torch.addbmm(m.b, x.unflatten(1, (2, 2)).transpose(0, 1), m.w, beta=2),
        {"b": (3,), "w": (2, 2, 3)}),
    "addr": (lambda m, x: _rows(x, lambda v: torch.addr(m.b, v, m.w).flatten()),
             {"b": (4, 3), "w": (3,)}),
    "multi_dot": (lambda m, x: torch.linalg.multi_dot([x, m.w, m.v]), {"w": (4, 2), "v": (2, 3)}),
    "bilinear": (lambda m, x: F.bilinear(x, x.sin(), m.w, m.b), {"w": (3, 4, 4), "b": (3,)}),
    "bilinear without bias": (lambda m, x: F.bilinear(x, x.sin(), m.w), {"w": (3, 4, 4)}),
    "names of torch's own": (
        lambda m, x: torch.mm(torch.matmul(input=x, other=m.w), mat2=m.v),
        {"w": (4, 2), "v": (2, 3)}),
    "similarity": (lambda m, x: F.cosine_similarity(x[:, None], m.w[None], dim=-1), {"w": (3, 4)}),
    "pairwise distance": (lambda m, x: F.pairwise_distance(x[:, None], m.w, p=3), {"w": (3, 4)}),
    "cross": (lambda m, x: torch.linalg.cross(x[:, :3], m.w), {"w": (1, 3)}),
}  # fmt: skip


def _rows(x, function):
    """One call for each sample, as loops over a batch have it."""
    rows = torch.stack([function(v) for v in x])
    return torch.stack([rows.sin(), rows.cos()], dim=1) if rows.dim() == 1 else rows


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("case", PRODUCTS)
def test_products_of_every_spelling(case, n):
    function, shapes = PRODUCTS[case]
    torch.manual_seed(0)
    # A loop over the samples meets the weight once for each of them: no kernel sees a batch.
    loop = n > 1 and "_rows" in function.__code__.co_names
    agree_by_some_path(Functional(function, **shapes), torch.randn(n, 4),
                       ("kernels", "one by one") if loop else ("kernels",))  # fmt: skip


def agree_by_some_path(model, inputs, paths):
    """Exact, by one of these paths."""
    first, *others = paths
    try:
        assert_agrees(model, inputs, path=first)
    except AssertionError as error:
        taken = error.args[0][0] if isinstance(error.args[0], tuple) else None
        if taken not in others:
            raise
        agree_by_some_path(model, inputs, others)


OTHERS = {
    "distances": (lambda m, x: torch.cdist(x, m.w), {"w": (3, 4)}),
    "sampled at learned places": (
        lambda m, x: F.grid_sample(x.view(-1, 1, 2, 2), m.w.tanh().expand(len(x), 3, 1, 2),
                                   align_corners=False).flatten(1), {"w": (1, 3, 1, 2)}),
    "learned image": (
        lambda m, x: F.grid_sample(m.w.expand(len(x), 2, 3, 3), x.view(-1, 1, 2, 2).tanh(),
                                   align_corners=False).flatten(1), {"w": (1, 2, 3, 3)}),
    "unfolded weight": (lambda m, x: x @ F.unfold(m.w, 2)[0], {"w": (1, 1, 3, 3)}),
    "folded": (
        lambda m, x: F.fold(x[:, :, None] * m.w, (2, 3), 2).flatten(1), {"w": (4, 2)}),
    "chunks, split, unbind": (
        lambda m, x: x @ m.w.chunk(2)[0] + x @ m.w.split([4, 4])[1] * m.v.unbind()[0],
        {"w": (8, 3), "v": (2, 3)}),
    "largest of the weights": (
        lambda m, x: x @ m.w.topk(3, dim=1).values + m.w.max(dim=0).values[:3]
        + m.w.sort(dim=0).values[1, :3], {"w": (4, 5)}),
    "largest of both": (lambda m, x: torch.max(x, m.w) @ m.v, {"w": (4,), "v": (4, 3)}),
    "solve": (lambda m, x: torch.linalg.solve(m.w, x.T).T, {"w": (4, 4)}),
}  # fmt: skip


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("case", OTHERS)
def test_other_operators_are_exact(case, n):
    function, shapes = OTHERS[case]
    torch.manual_seed(0)
    paths = ("kernels", "replayed", "one by one")
    agree_by_some_path(Functional(function, **shapes), torch.randn(n, 4), paths)


def _written(write):
    """Return a function that writes into a copy of the samples."""

    def function(m, x):
        h = torch.tanh(x * m.s).clone()
        write(m, h, x)
        return h * m.s

    return function


WRITTEN = {
    "fill": (_written(lambda m, h, _: h[:, 0].fill_(m.w)), {"w": ()}),
    "copy": (_written(lambda m, h, _: h[:, 1:3].copy_(m.w)), {"w": (2,)}),
    "masked fill": (lambda m, x: torch.tanh(x * m.s).masked_fill(x > 0, m.w), {"w": ()}),
    "masked fill in place": (_written(lambda m, h, x: h.masked_fill_(x > 0, m.w)), {"w": ()}),
    "product added in place": (_written(lambda m, h, x: h.addmm_(x, m.w, beta=2)), {"w": (4, 4)}),
}


@pytest.mark.filterwarnings("ignore:.*may depend on the other samples.*")
@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("case", WRITTEN)
def test_weights_are_written_into_samples(case, n):
    function, shapes = WRITTEN[case]
    torch.manual_seed(0)
    assert_agrees(Functional(function, s=(4,), **shapes), torch.randn(n, 4))


@pytest.mark.parametrize("indexing", ["ij", "xy"])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_samples_and_weights_span_a_grid(n, indexing):
    def function(m, x):
        rows = [torch.meshgrid(row, m.w, indexing=indexing) for row in torch.tanh(x * m.s)]
        return torch.stack([(a * b).sin().flatten() for a, b in rows])

    torch.manual_seed(0)
    assert_agrees(Functional(function, s=(4,), w=(3,)), torch.randn(n, 4))


def test_samples_and_weights_are_broadcast():
    def function(m, x):
        a, b = torch.broadcast_tensors(torch.tanh(x * m.s)[:, :, None], m.w)
        return (a * b.exp()).flatten(1)

    torch.manual_seed(0)
    assert_agrees(Functional(function, s=(4,), w=(4, 3)), torch.randn(5, 4))
