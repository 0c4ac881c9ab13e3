"""The model of a project: it learns, it is measured on what it never saw, it ranks."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from short_forms import mark_rest_long
from upslope import strategies
from upslope.errors import UpslopeError
from upslope.labelling.events import fold
from upslope.labelling.features import SIDE, image_statistics, row_features, standardise
from upslope.labelling.learner import STRENGTH, Learner, check_strategy
from upslope.labelling.queue import Queue
from upslope.labelling.ranking import Ranking
from upslope.labelling.settings import ProjectSettings
from upslope.labelling.state import CONTROL, LabelState
from upslope.ledger import Event

IDS = [f"s{i:03d}" for i in range(300)]
CENTRES = np.array([[4.0, 0, 0], [0, 4, 0], [0, 0, 4]])
CLASSES = np.arange(300) % 3
FEATURES = standardise(
    (CENTRES[CLASSES] + np.random.default_rng(0).normal(size=(300, 3))).astype(np.float32)
)


def learner(settings: ProjectSettings, features: np.ndarray = FEATURES) -> Learner:
    return Learner(settings, IDS, Queue(IDS, settings), features, "centres")


def project(**options: object) -> ProjectSettings:
    return ProjectSettings("x", ("a", "b", "c"), **options)  # type: ignore[arg-type]


def label(state: LabelState, ids: list[str], slice_: str, labels: object = None) -> LabelState:
    given = {i: int(CLASSES[IDS.index(i)]) for i in ids} if labels is None else labels
    return fold([Event("labelled", 0, {"labels": given, "author": "me", "slice": slice_})], state)


def test_the_cold_start_covers_the_clusters_and_is_kept() -> None:
    one = learner(project())
    first = one.rank(LabelState())
    assert first.labels == 0
    assert "typiclust" in first.method
    assert {int(CLASSES[IDS.index(i)]) for i in first.ids[:6]} == {0, 1, 2}
    assert not set(first.ids) & set(one.queue.control)
    second = one.rank(label(LabelState(), list(first.ids[:2]), "strategy"))
    assert list(second.ids) == list(first.ids[2:])


def test_the_model_learns_and_is_measured_on_control_answers_alone() -> None:
    settings = project()
    one = learner(settings)
    others, control = one.queue.others[:40], one.queue.control[:25]
    state = label(LabelState(), others, "strategy")
    # Wrong labels on the control slice: a model that was trained on them would agree with some.
    wrong = {i: (int(CLASSES[IDS.index(i)]) + 1) % 3 for i in control}
    ranking = one.rank(label(state, control, CONTROL, wrong))
    assert (ranking.labels, ranking.of) == (40, 25)
    assert ranking.correct <= 2
    ranking = one.rank(label(state, control, CONTROL))
    assert ranking.correct >= 23
    closed = fold([Event("closed", 0, {})], label(state, control, CONTROL))
    ranking = one.rank(closed)
    assert (ranking.labels, ranking.of) == (65, 0)


@pytest.mark.parametrize("kind", mark_rest_long(["class", "labels"], 2))
@pytest.mark.parametrize(
    "strategy",
    [  # refine lets eight others choose from fifty batches
        pytest.param(name, marks=pytest.mark.long) if name == "refine" else name
        for name in strategies.REGISTRY
    ],
)
def test_every_strategy_ranks_what_is_open_or_is_refused_at_the_start(
    strategy: str, kind: str
) -> None:
    settings = project(strategy=strategy, kind=kind)
    try:
        check_strategy(settings)
    except UpslopeError:
        assert (strategy, kind) not in {("margin", "class"), ("margin", "labels")}
        return
    one = learner(settings)
    ids = one.queue.others[:40]
    classes = {i: int(CLASSES[IDS.index(i)]) for i in ids}
    sets = {i: [int(k == c) for k in range(3)] for i, c in classes.items()}
    given = classes if kind == "class" else sets
    ranking = one.rank(label(LabelState(), [], "strategy", given))
    assert ranking.method == f"{strategy} chose it"
    assert len(ranking.ids) >= 50
    assert len(set(ranking.ids)) == len(ranking.ids)
    assert set(ranking.ids) <= set(one.queue.others[40:])
    assert Ranking.from_record(ranking.record()) == ranking


def test_margin_ranks_as_the_posterior_of_logistic_regression_does() -> None:
    noisy = FEATURES + np.random.default_rng(1).normal(0, 1, FEATURES.shape).astype(np.float32)
    one = learner(project(), noisy)
    labelled, candidates = one.queue.others[:40], one.queue.others[40:]
    rows = [IDS.index(i) for i in labelled]
    fitted = LogisticRegression(C=STRENGTH, max_iter=1000).fit(noisy[rows], CLASSES[rows])
    p = np.sort(fitted.predict_proba(noisy[[IDS.index(i) for i in candidates]]), axis=1)
    expected = dict(zip(candidates, 1 - (p[:, -1] - p[:, -2]), strict=True))
    ranking = one.rank(label(LabelState(), labelled, "strategy"))
    scores = [ranking.scores[i] for i in ranking.ids]
    assert scores == sorted(scores, reverse=True)
    np.testing.assert_allclose(scores, [expected[i] for i in ranking.ids], atol=2e-3)
    best = sorted(expected, key=expected.__getitem__)[-20:]
    assert set(best) <= set(ranking.ids[:25])


def test_guesses_name_classes_and_the_nearest_labelled_sample() -> None:
    one = learner(project())
    state = label(LabelState(), one.queue.others[:30], "strategy")
    ranking = one.rank(state)
    id_ = ranking.ids[-1]
    guess = ranking.guesses[id_]
    assert sum(p for _, p in guess.classes) == pytest.approx(1)
    assert guess.classes[0][1] >= guess.classes[1][1]
    labelled = [IDS.index(i) for i in one.queue.others[:30]]
    x = FEATURES[IDS.index(id_)]
    cosine = FEATURES[labelled] @ x / np.linalg.norm(FEATURES[labelled], axis=1)
    assert guess.nearest == IDS[labelled[int(cosine.argmax())]]
    assert set(one.queue.control[:30]) <= ranking.guesses.keys()


def test_label_sets_are_learnt_label_by_label() -> None:
    settings = project(kind="labels")
    one = learner(settings)

    def sets(ids: list[str]) -> dict[str, list[int]]:
        kinds = [int(CLASSES[IDS.index(i)]) for i in ids]  # "c" holds of all
        return {i: [int(k == 0), int(k != 2), 1] for i, k in zip(ids, kinds, strict=True)}

    state = label(LabelState(), [], "strategy", sets(one.queue.others[:45]))
    state = label(state, [], CONTROL, sets(one.queue.control[:20]))
    ranking = one.rank(state)
    assert (ranking.labels, ranking.of) == (45, 20)
    assert ranking.correct >= 18
    assert ranking.ids


def test_unreadable_samples_are_named_and_left_out() -> None:
    broken = FEATURES.copy()
    broken[[3, 7]] = np.nan
    one = learner(project(), broken)
    ranking = one.rank(label(LabelState(), list(one.queue.others[:40]), "strategy"))
    assert list(ranking.unreadable) == ["s003", "s007"]
    assert not {"s003", "s007"} & set(ranking.ids)


def test_a_strategy_that_cannot_serve_is_told_before_anybody_labels() -> None:
    check_strategy(project(strategy="margin"))
    with pytest.raises(UpslopeError, match="network of its own"):
        check_strategy(project(strategy="ll4al"))
    with pytest.raises(UpslopeError, match="dropout"):
        check_strategy(project(strategy="bald"))
    with pytest.raises(UpslopeError, match="margine"):
        check_strategy(project(strategy="margine"))


def test_image_statistics_tell_directions_and_colours_apart() -> None:
    stripes = np.zeros((4, 3, SIDE, SIDE), dtype=np.uint8)
    stripes[0, :, ::4] = 255  # lying
    stripes[1, :, :, ::4] = 255  # standing
    stripes[2, :, :, 2::4] = 255  # standing, elsewhere
    stripes[3, 0] = 255  # red
    a, b, c, d = image_statistics(stripes)
    assert np.isfinite([a, b, c, d]).all()
    assert np.linalg.norm(b - c) < 0.35 * np.linalg.norm(a - b)
    assert np.linalg.norm(d - a) > 1


def test_columns_of_rows_are_numbers_categories_or_texts() -> None:
    words = ("wet", "dry")
    rows = [
        {
            "size": str(i) if i else "",
            "kind": words[i % 2],
            "text": f"a {words[i % 2]} stone of the number {i} from place {i // 3}",
            "same": "x",
        }
        for i in range(60)
    ]
    values, method = row_features(rows)
    assert method == "columns: 1 of numbers, 1 of categories, 1 of texts"
    assert values.shape[0] == 60
    assert np.isfinite(values).all()
    numbers = np.arange(60.0)
    numbers[0] = numbers[1:].mean()  # an empty cell is the mean
    expected = (numbers - numbers.mean()) / numbers.std()
    np.testing.assert_allclose(values[:, 0], expected, rtol=1e-5)
    np.testing.assert_array_equal(values[:, 1:3].sum(axis=1), 1)


def test_numbers_may_have_decimal_commas_and_thousands_stay_as_they_are() -> None:
    rows = [{"mass": cell} for cell in ("1,5", "-0,25", "3", "", "2,125")]
    points = [{"mass": row["mass"].replace(",", ".")} for row in rows]
    values, method = row_features(rows)
    assert method == "columns: 1 of numbers with decimal commas"
    np.testing.assert_array_equal(values, row_features(points)[0])
    assert "numbers" not in row_features([{"n": cell} for cell in ("1,500", "999", "2,125")])[1]
