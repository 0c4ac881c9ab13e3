"""Functions of arrays choose what the strategies of the registry choose."""

from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from upslope import functional, query, strategies
from upslope.errors import ConfigError, DataError, SelectionError
from upslope.functional.arrays import SIGNALS
from upslope.pool import Need, PoolView
from upslope.seeds import generator
from upslope.signals import mc_dropout, probabilities

OPTIONS = {
    "batch-bald": {"answers": 60},
    "uncertain-gcn": {"steps": 10},
    "core-gcn": {"steps": 10},
}
OF_THE_NETWORK = {
    "entropy-gradnorm", "expected-gradnorm", "egl", "egl-rms",
    "ll4al", "vaal", "sraal", "emcm", "isal",
    "foreground-random", "power", "dropquery", "refine", "dcom", "oracle",
}  # fmt: skip


def test_every_strategy_is_a_function_or_refused_by_name() -> None:
    functions = {name.replace("_", "-") for name in functional.FUNCTIONS}
    assert functions == set(strategies.REGISTRY) - OF_THE_NETWORK
    for name in OF_THE_NETWORK:
        with pytest.raises(ConfigError, match=f"{name} asks the network .* upslope.query"):
            getattr(functional, name.replace("-", "_"))
    with pytest.raises(AttributeError, match="no attribute 'badges'"):
        functional.badges  # noqa: B018


def arrays_of(strategy, n, labelled):
    """Made-up arrays for the arguments of a function: (candidates, labelled samples)."""
    rng = np.random.default_rng(1)
    made = {
        "probabilities": lambda k: rng.dirichlet(np.ones(4), size=k),
        "features": lambda k: rng.normal(size=(k, 6)),
        "gradients": lambda k: rng.normal(size=(k, 6)),
        "posteriors": lambda k: rng.dirichlet(np.ones(4), size=(k, 5)),
    }
    names = [functional.SIGNALS[need.name][0].name for need in strategy.needs]
    beside = [functional.SIGNALS[n.name][0].name for n in strategy.needs if n.labelled]
    return {k: made[k](n) for k in made if k in names}, {
        k: made[k](labelled) for k in made if k in beside
    }


def signal_of(need, arrays):
    """The signal of a need, by its definition."""
    measure = dict(need.options).get("measure")
    if need.name == "uncertainty":
        return probabilities.MEASURES[measure](torch.tensor(arrays["probabilities"]))
    if need.name == "mc-dropout":
        return mc_dropout.MEASURES[measure](torch.tensor(arrays["posteriors"]))
    if need.name == "committee":  # Jensen-Shannon divergence
        p = torch.tensor(arrays["posteriors"])
        mean = p.mean(1)
        return (p * (p / mean[:, None]).log()).sum(2).mean(1)
    kinds = {"mc-posteriors": "posteriors", "gradient-sketch": "gradients"}
    return torch.tensor(arrays[kinds.get(need.name, need.name)])


@pytest.mark.parametrize("labelled", [0, 9])
@pytest.mark.parametrize("name", [n for n in strategies.REGISTRY if n not in OF_THE_NETWORK])
def test_the_positions_are_those_of_the_strategy(name: str, labelled: int) -> None:
    options = OPTIONS.get(name, {})
    strategy = strategies.build(name, **options)
    function = functional.FUNCTIONS[name.replace("-", "_")]
    arrays, beside = arrays_of(strategy, 40, labelled)
    view = PoolView(
        [f"{i:04d}" for i in range(40)],
        {need: signal_of(need, arrays) for need in strategy.needs},
        [f"l{i}" for i in range(labelled)] if beside else [],
        {n: signal_of(n, beside) for n in strategy.needs if n.labelled and labelled},
    )
    expected = [int(i) for i in strategy.select(view, 6, generator(3, "select", 0)).ids]
    own = torch.Generator().manual_seed(3)
    with_generator = [int(i) for i in strategy.select(view, 6, own).ids]
    sizes = {} if arrays else {"size": 40}
    known = {f"labelled_{k}": v for k, v in beside.items()} if labelled else {}
    assert function(**arrays, **sizes, **known, **options, budget=6, seed=3) == expected
    own = torch.Generator().manual_seed(3)
    assert function(**arrays, **sizes, **known, **options, budget=6, seed=own) == with_generator
    tensors = {k: torch.tensor(v, requires_grad=True) for k, v in {**arrays, **known}.items()}
    assert function(**tensors, **sizes, **options, budget=6, seed=3) == expected


@pytest.mark.parametrize("name", [n for n in strategies.REGISTRY if n not in OF_THE_NETWORK])
def test_no_rows_are_nothing_labelled(name: str) -> None:
    """As `features[labelled]` is before the first label."""
    strategy = strategies.build(name, **OPTIONS.get(name, {}))
    function = functional.FUNCTIONS[name.replace("-", "_")]
    arrays, beside = arrays_of(strategy, 40, 0)
    given = {**arrays, **({} if arrays else {"size": 40}), **OPTIONS.get(name, {}), "budget": 6}
    empty = {f"labelled_{k}": v for k, v in beside.items()}
    assert function(**given, **empty) == function(**given)


def test_every_docstring_has_an_example_that_runs() -> None:
    tests = doctest.DocTestFinder(exclude_empty=True).find(functional, "functional")
    with_examples = {test.name.partition(".")[2] for test in tests if test.examples}
    assert with_examples == set(functional.FUNCTIONS)
    runner = doctest.DocTestRunner()
    for test in tests:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_signatures_say_what_a_function_takes() -> None:
    badge = inspect.signature(functional.badge)
    assert list(badge.parameters) == [
        "probabilities", "features", "budget", "seed", "temperature"
    ]  # fmt: skip
    herding = inspect.signature(functional.u_herding)
    assert list(herding.parameters) == [
        "probabilities", "features", "budget", "seed", "labelled_features", "temperature"
    ]  # fmt: skip
    assert herding.parameters["temperature"].default == 1.0
    assert list(inspect.signature(functional.random).parameters) == ["size", "budget", "seed"]


def test_query_with_the_same_posteriors_and_features_chooses_the_same() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    x = torch.randn(50, 3)
    features = network[:2](x)
    posterior = network[2](features).softmax(1)
    chosen = query(network, x, 7, "badge", seed=5)
    assert functional.badge(posterior, features, budget=7, seed=5) == list(chosen.positions)


P, H = np.full((10, 4), 0.25), np.zeros((10, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f.badge(P * 4, H, 2), DataError, "Logits become posteriors"),
        (lambda f: f.badge(P, H[:9], 2), DataError, "probabilities 10, features 9"),
        (lambda f: f.badge(P, H[0], 2), DataError, r"`features` .* got shape \(3,\)"),
        (lambda f: f.margin(P.astype(object), 2), DataError, "of numbers, .* object.*dtype=float"),
        (lambda f: f.margin(torch.tensor(P + 0j), 2), DataError, "of numbers, .*complex128"),
        (lambda f: f.margin([[0.5, 0.5], [1.0]], 2), DataError, "rows that make no array"),
        (lambda f: f.badge(P, H * np.nan, 2), SelectionError, "finite"),
        (lambda f: f.badge(P * np.nan, H, 2), DataError, "NaN"),
        (lambda f: f.badge(P, H), SelectionError, "between 1 and the 10 candidates .* got 50"),
        (lambda f: f.bait(P, H, 2, labelled_features=H), DataError, "together"),
        (lambda f: f.core_set(H, 2, labelled_features=P), DataError, r"\(3,\), but got \(4,\)"),
        (lambda f: f.u_herding(P, H, 2, temperature=0), ConfigError, "`temperature`"),
        (lambda f: f.random(0), DataError, "`size`"),
        (lambda f: f.random(9.0, 2), ConfigError, "`size` to be a whole number but got 9.0"),
        (lambda f: f.core_set(H, 2.0), ConfigError, "`budget` to be a whole number but got 2.0"),
        (lambda f: f.core_set(H, "2"), ConfigError, "`budget` to be a whole number but got '2'"),
        (lambda f: f.random(9, 2, seed=None), ConfigError, "`seed` .* torch.Gen.* got None"),
        (lambda f: f.random(9, 2, np.random.default_rng(0)), ConfigError, "`seed` .*PCG64"),
        (lambda f: f.badge(P), TypeError, "missing a required argument: 'features'"),
        (lambda f: f.badge(P, H, width=3), TypeError, "unexpected keyword argument 'width'"),
    ],
)
def test_what_cannot_be_is_refused(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call(functional)


def test_a_temperature_divides_the_logits() -> None:
    logits = 4 * torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    features = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    p, flat = logits.softmax(1), (logits / 3).softmax(1)
    assert functional.margin(p, 9, temperature=3) == functional.margin(flat, 9)
    assert functional.badge(p, features, 9, temperature=3) == functional.badge(flat, features, 9)
    assert functional.margin(p, 9) != functional.margin(flat, 9)
    with pytest.raises(ConfigError, match="Expected a number for `temperature`"):
        functional.margin(p, 9, temperature="fitted")


def test_classes_of_probability_zero_have_none_at_any_temperature() -> None:
    """As trees and neighbours give them: many small shares would make up a large one."""
    p = torch.zeros(1, 200)
    p[0, :2] = torch.tensor([0.6, 0.4])
    _, read = SIGNALS["probabilities"]
    expected = p.double().pow(1 / 20)
    expected /= expected.sum()
    scaled = read(Need.of("probabilities", temperature=20.0), p)
    torch.testing.assert_close(scaled, expected.float())


def test_what_reads_labels_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="dcom asks the network for labels"):
        functional.dcom  # noqa: B018


def test_the_blocks_of_the_page_run() -> None:
    page = Path(__file__).parent.parent / "docs" / "choosing.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for code in blocks:
        exec(compile(code, "choosing.md", "exec"), names)
    assert len(set(names["chosen"].positions) - {0, 17}) == 50
    assert len(set(names["positions"])) == 5


def test_entries_under_a_mask_are_refused() -> None:
    features = np.ma.masked_less(np.random.default_rng(0).normal(size=(20, 3)), 0)
    with pytest.raises(DataError, match="under a mask"):
        functional.core_set(features, 3)
    assert len(functional.core_set(np.ma.masked_array(features.data), 3)) == 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "form",
    [
        lambda x: x[::-1].copy()[::-1],
        lambda x: x[:, ::-1].copy()[:, ::-1],
        lambda x: x.astype(">f8"),
        lambda x: x.astype(np.longdouble),
        lambda x: np.broadcast_to(x, x.shape),
        lambda x: np.asfortranarray(x),
        lambda x: torch.tensor(x).to_sparse(),
        lambda x: torch.tensor(x, requires_grad=True),
    ],
)
def test_arrays_however_they_lie_in_memory(form) -> None:
    x = np.random.default_rng(0).normal(size=(20, 3))
    positions = functional.core_set(x, 4, labelled_features=x[:2])
    assert functional.core_set(form(x), 4, labelled_features=form(x[:2])) == positions


def test_whole_numbers_of_numpy_and_torch() -> None:
    assert functional.random(np.int64(20), np.int32(3), torch.tensor(1)) == functional.random(
        20, 3, 1
    )
