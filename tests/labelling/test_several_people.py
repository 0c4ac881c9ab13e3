"""Several people: merged as Dawid and Skene do; what is disputed or doubted is asked again."""

from __future__ import annotations

import csv
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from pictures import make_squares
from test_label_command import run

from upslope.errors import ConfigError, DataError
from upslope.labelling import people
from upslope.labelling.coco import export_coco
from upslope.labelling.doubt import doubt_classes, doubt_sets, doubtful_labels
from upslope.labelling.events import fold
from upslope.labelling.exports import export_folders, export_table
from upslope.labelling.imports import import_labels
from upslope.labelling.learner import Learner
from upslope.labelling.people import disagreements, merge_answers
from upslope.labelling.project import Project, read_project
from upslope.labelling.queue import Queue
from upslope.labelling.ranking import Guess, Ranking
from upslope.labelling.samples import open_samples
from upslope.labelling.session import Session, sample_key
from upslope.labelling.settings import ProjectSettings
from upslope.labelling.state import CANNOT_TELL, CONTROL, LabelState
from upslope.labelling.status import agreement
from upslope.ledger import Event

CLASSES = ("a", "b", "c")


def state_of(rows: list[tuple[str, str, object]]) -> LabelState:
    return fold(
        Event("labelled", 0, {"labels": {id_: label}, "author": author})
        for id_, author, label in rows
    )


def dawid_skene_by_hand(table: np.ndarray, classes: int, rounds: int) -> np.ndarray:
    """(n, classes) posteriors by the loops of the paper. table: (n, people), -1 for no answer."""
    n, people = table.shape
    p = np.array([[np.mean(row[row >= 0] == k) for k in range(classes)] for row in table])
    for _ in range(rounds):
        prior = [sum(p[i][k] for i in range(n)) / n for k in range(classes)]
        errors = np.zeros((people, classes, classes))
        for w, k, given in itertools.product(range(people), range(classes), range(classes)):
            errors[w, k, given] = sum(p[i][k] for i in range(n) if table[i, w] == given)
        for w, k in itertools.product(range(people), range(classes)):
            errors[w, k] /= max(errors[w, k].sum(), 1e-10)
        for i in range(n):
            for k in range(classes):
                p[i, k] = prior[k] * math.prod(
                    errors[w, k, table[i, w]] for w in range(people) if table[i, w] >= 0
                )
            p[i] /= p[i].sum()
    return p


def test_dawid_and_skene_against_the_papers_loops() -> None:
    pytest.importorskip("crowdkit", reason="needs the extra `people`: crowd-kit")
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 3, 60)
    skill = (0.95, 0.9, 0.4, 0.4, 0.4)  # three who guess outvote the two who know
    table = np.array(
        [[t if rng.random() < s else rng.integers(0, 3) for s in skill] for t in truth]
    )
    table[rng.random(table.shape) < 0.1] = -1
    table[(table >= 0).sum(axis=1) == 0, 0] = 0
    rows = [
        (f"s{i:02d}", f"w{w}", int(table[i, w]))
        for i in range(60) for w in range(5) if table[i, w] >= 0
    ]  # fmt: skip
    merged = merge_answers(state_of(rows), CLASSES, "dawid-skene")
    expected = dawid_skene_by_hand(table, 3, 100).argmax(axis=1)
    assert [merged[f"s{i:02d}"] for i in range(60)] == expected.tolist()
    majority = merge_answers(state_of(rows), CLASSES)
    right = [sum(m[f"s{i:02d}"] == truth[i] for i in range(60)) for m in (merged, majority)]
    assert right[0] > right[1]


def test_sets_are_merged_label_by_label() -> None:
    pytest.importorskip("crowdkit", reason="needs the extra `people`: crowd-kit")
    rows = [("x", w, [1, 0, k]) for k, w in enumerate(("ann", "bob"))]
    rows += [(f"s{i}", w, [i % 2, 1 - i % 2, 0]) for i in range(8) for w in ("ann", "bob", "cem")]
    merged = merge_answers(state_of(rows), CLASSES, "dawid-skene")
    assert merged["s1"] == [1, 0, 0]
    assert merged["x"][:2] == [1, 0]  # type: ignore[index]


def test_merging_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="majority, dawid-skene"):
        merge_answers(LabelState(), CLASSES, "mean")  # type: ignore[arg-type]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="crowd-kit"):
        merge_answers(LabelState(), CLASSES, "dawid-skene")


def test_a_disagreement_ends_with_a_majority() -> None:
    rows = [("x", "ann", 0), ("x", "bob", 1), ("y", "ann", 2), ("y", "bob", 2)]
    (one,) = disagreements(state_of(rows), CLASSES)
    assert (one.id, one.answers) == ("x", {"ann": "a", "bob": "b"})
    assert one.words == "people disagree (ann: a, bob: b)"
    assert not disagreements(state_of([*rows, ("x", "cem", 1)]), CLASSES)


def test_a_person_overrules_imports_whenever_they_come(tmp_path: Path) -> None:
    """Every count, list and label goes by the answers of people where there are some."""
    with Project.create(tmp_path / "p", ProjectSettings("x", CLASSES)) as project:
        project.take_in({"x": "a", "y": "a", "z": "a", "w": "a"}, "one.csv")
        project.answer("x", "b", author="ann", slice_=CONTROL)
        project.answer("y", "b", author="ann")
        project.answer("y", "c", author="ann")  # corrected by the same person
        project.take_in({"x": "a", "y": "a", "z": "b", "w": "a"}, "two.csv")
        project.take_in({"x": "a"}, "three.csv")  # three to one, and one of them a person
        state = project.state
        merged = {"x": 1, "y": 2, "z": 0, "w": 0}
        assert state.labels(control=False) == merge_answers(state, CLASSES) == merged
        assert not state.labels(control=True)  # its label was there before it was asked
        assert (state.tally.labelled, state.tally.imported) == (4, 2)
        assert dict(state.tally.labels) == {0: 2, 1: 1, 2: 1}
        (one,) = disagreements(state, CLASSES)
        assert one.words == "imports disagree (import: one.csv: a, import: two.csv: b)"
        assert agreement(state) is None
        project.answer("z", "c", author="bob")
        project.answer("x", "a", author="bob")  # two people, a tie: the first of these
        state = project.state
        assert state.labels(control=False) == {"x": 1, "y": 2, "z": 2, "w": 0}
        (one,) = disagreements(state, CLASSES)
        assert one.words == "people disagree (ann: b, bob: a)"
        assert agreement(state)["samples"] == 1  # type: ignore[index]
        project.undo("bob")
        project.undo("bob")
        project.undo("ann")  # the import counts again, until the sample is answered anew
        assert project.state.labels(control=False) == {"x": 1, "y": 0, "z": 0, "w": 0}


def test_a_person_who_passes_withdraws_the_imports_from_before(tmp_path: Path) -> None:
    with Project.create(tmp_path / "p", ProjectSettings("x", CLASSES)) as project:
        project.take_in({"x": "a", "y": "a"}, "one.csv")
        project.skip("x", CANNOT_TELL, author="ann")
        assert project.state.labels(control=False) == {"y": 0}
        project.take_in({"x": "a"}, "one.csv")  # the same file once more
        assert (project.state.tally.labelled, project.state.tally.passed) == (1, 1)
        project.take_in({"x": "c"}, "two.csv")
        assert project.state.labels(control=False) == {"x": 2, "y": 0}


def test_a_control_answer_stays_one_when_it_is_corrected_after_an_import(tmp_path: Path) -> None:
    with Project.create(tmp_path / "p", ProjectSettings("x", CLASSES)) as project:
        project.answer("x", "a", author="ann", slice_=CONTROL)
        project.take_in({"x": "b"}, "one.csv")
        project.answer("x", "c", author="ann")
        assert project.state.labels(control=True) == {"x": 2}
        assert not project.state.labels(control=False)


def test_dawid_and_skene_get_the_answers_that_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    rows: list[tuple[str, str, object]] = []
    monkeypatch.setattr(people, "_estimate", lambda answers: rows.extend(answers) or {})
    with Project.create(tmp_path / "p", ProjectSettings("x", CLASSES)) as project:
        project.take_in({"x": "a", "y": "a"}, "one.csv")
        project.answer("x", "b", author="ann")
        merge_answers(project.state, CLASSES, "dawid-skene")
    assert rows == [("x", "ann", 1), ("y", "import: one.csv", 0)]


def test_doubts_are_those_of_confident_learning() -> None:
    given = np.array([0, 0, 0, 1, 1, 1])
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.4, 0.6], [0.45, 0.55], [0.1, 0.9]])
    # Thresholds: 0.6 for class 0, 0.683 for class 1. Sample 2 gets 0.9 for class 1: doubted.
    assert doubt_classes(p, given) == [(2, 1, pytest.approx(0.8))]
    p[3] = [0.65, 0.35]
    assert [(i, k) for i, k, _ in doubt_classes(p, given)] == [(2, 1), (3, 0)]
    sets = np.array([[0, 1], [0, 0], [1, 1], [1, 0]])
    q = np.array([[0.95, 0.9], [0.1, 0.1], [0.8, 0.9], [0.9, 0.2]])
    assert [(i, k) for i, k, _ in doubt_sets(q, sets)] == [(0, 0)]


def test_wrong_labels_are_the_first_to_be_doubted() -> None:
    rng = np.random.default_rng(0)
    ids = [f"s{i:03d}" for i in range(200)]
    truth = np.arange(200) % 3
    features = (9 * np.eye(3)[truth] + rng.normal(size=(200, 3))).astype(np.float32)
    settings = ProjectSettings("x", CLASSES)
    learner = Learner(settings, ids, Queue(ids, settings), features, "given")
    wrong = set(rng.choice(200, 12, replace=False).tolist())
    state = state_of([(id_, "me", int((truth[i] + (i in wrong)) % 3)) for i, id_ in enumerate(ids)])
    doubts = list(doubtful_labels(learner, state))
    assert {ids[i] for i in wrong} == set(doubts[:12])
    assert len(doubts) <= 15
    assert doubtful_labels(learner, state_of([("s000", "me", 0)])) == {}
    asked = Event("asked_again", 0, {"ids": dict.fromkeys(doubts[:2], "why")})
    same = Event("confirmed", 0, {"ids": [doubts[0]], "author": "me"})
    other = {doubts[1]: state.answers[doubts[1]]["me"].label}
    second = Event("labelled", 0, {"labels": other, "author": "bob"})
    state = fold([asked, same, second], state)
    assert state.settled == {*doubts[:2]}
    assert list(doubtful_labels(learner, state)) == doubts[2:]


def test_a_doubt_is_settled_by_people_until_the_label_changes(tmp_path: Path) -> None:
    with Project.create(tmp_path / "p", ProjectSettings("x", CLASSES)) as project:
        project.take_in({"x": "a", "y": "a"}, "one.csv")
        project.ask_again({"x": "why", "y": "why"})
        project.take_in({"x": "a"}, "two.csv")  # no second look of anybody
        assert "x" in project.state.again
        project.answer("x", "a", author="ann")
        project.answer("y", "b", author="ann")
        assert not project.state.again
        assert project.state.settled == {"x"}
        project.answer("x", "c", author="ann")
        assert not project.state.settled


def test_what_is_asked_again_comes_first_blind_and_once(tmp_path: Path) -> None:
    make_squares(tmp_path / "squares", 12)
    settings = ProjectSettings(str(tmp_path / "squares"), ("red", "blue"))
    with Project.create(tmp_path / "p", settings) as project:
        session = Session(project, open_samples(settings.data, settings.classes))

        def answer(label: str) -> str:
            question = session.status("me")["questions"][0]
            session.answer("me", {"sample": question["sample"], "label": label})
            return str(question["id"])

        one, two = answer("red"), answer("red")
        session.status("me")
        session.take_ranking(Ranking([], "margin", doubtful={one: "why one", two: "why two"}))
        assert session.status("me")["model"]["doubtful"] == 2
        assert session.ask_doubtful() == 2
        assert session.ask_doubtful() == 0
        answer("red")  # what was shown before stays
        question = session.status("me")["questions"][0]
        assert (question["id"], question["why"], question["answer"]) == (one, "why one", None)
        answer("red")  # the same again: confirmed
        assert session.status("me")["questions"][0]["id"] == two
        answer("blue")  # corrected
        assert project.state.settled == {one}
        assert session.status("me")["model"]["doubtful"] == 1  # of the corrected one, as before
        assert session.ask_doubtful() == 1
        session.answer("me", {"sample": sample_key(two), "label": "blue"})
        assert session.status("me")["model"]["doubtful"] == session.ask_doubtful() == 0
        later = [q["id"] for q in session.status("me")["questions"]]
        assert one not in later
        assert two not in later
        with pytest.raises(DataError, match="with an answer"):
            project.ask_again({later[0]: "why"})
    _, state = read_project(tmp_path / "p")
    assert not state.again
    assert state.answers[one]["me"].label == 0
    assert state.answers[two]["me"].label == 1


def test_the_correction_of_an_imported_label_is_what_every_export_holds(tmp_path: Path) -> None:
    """Imported, doubted, answered otherwise on the page."""
    colours = make_squares(tmp_path / "squares", 12)
    settings = ProjectSettings(str(tmp_path / "squares"), ("red", "blue"))
    id_ = "square-003.png"
    other = {"red": "blue", "blue": "red"}[colours[id_]]
    (tmp_path / "old.csv").write_text(
        "id,label\n" + "".join(f"{i},{c}\n" for i, c in (colours | {id_: other}).items())
    )
    with Project.create(tmp_path / "p", settings) as project:
        import_labels(project, tmp_path / "old.csv")
        project.ask_again({id_: "why"})
        session = Session(project, open_samples(settings.data, settings.classes))
        (question,) = session.status("me")["questions"]
        session.answer("me", {"sample": question["sample"], "label": colours[id_]})
        nearest = Guess([("red", 1.0)], id_)
        session.take_ranking(Ranking([], "margin", guesses={id_: nearest}))
        shown = session.guess(question["sample"])
        assert shown is not None
        assert shown["nearest"]["label"] == colours[id_]
        assert session.status("me")["progress"]["imported"] == 11
        assert import_labels(project, tmp_path / "old.csv").differing == (id_,)
    export_table(tmp_path / "p", tmp_path / "labels.csv")
    with (tmp_path / "labels.csv").open() as file:
        assert {row["id"]: row["label"] for row in csv.DictReader(file)} == colours
    export_folders(tmp_path / "p", tmp_path / "sorted")
    assert {p.name: p.parent.name for p in (tmp_path / "sorted").rglob("*.png")} == colours
    export_coco(tmp_path / "p", tmp_path / "coco.json")
    coco = json.loads((tmp_path / "coco.json").read_text())
    files = {image["id"]: image["file_name"] for image in coco["images"]}
    names = {category["id"]: category["name"] for category in coco["categories"]}
    assert {files[o["image_id"]]: names[o["category_id"]] for o in coco["annotations"]} == colours


def test_disagreements_and_doubts_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    colours = make_squares(tmp_path / "squares", 60)
    run("init", "p", "--data", "squares", "--classes", "red,blue", "--twice", "0.5")
    with Project(tmp_path / "p") as project:
        for i, (id_, colour) in enumerate(colours.items()):
            other = {"red": "blue", "blue": "red"}[colour]
            project.answer(id_, other if i == 7 else colour, author="ann")
        project.answer("square-000.png", "blue", author="bob")
    assert "people disagree (ann: red, bob: blue)" in run("disagreements", "p", "--ask")
    assert "1 sample whose answers disagree" in run("status", "p")
    assert "square-007.png: to look at its answer again" in run("relabel", "p", "--count", "3")
    _, state = read_project(tmp_path / "p")
    assert {"square-000.png", "square-007.png"} <= state.again.keys()
