"""Questions that teach: their order, what is saved, and the page."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from support.worlds import CLASSNAMES, Taken

from latteclip.audit.session import import_answers
from latteclip.audit.teach import TeachingSession, teach
from latteclip.core import tables
from latteclip.core.answers import CHECK, CLASS, NONE, TEACH, UNSURE, Answer
from latteclip.core.errors import UserError
from latteclip.core.tables import EncoderMetadata
from latteclip.labels.fuse_labels import adapt_zero_shot, fuse_labels
from latteclip.labels.fusion_report import NAME, read_fusion_report
from latteclip.labels.label_inputs import LabelFiles, LabellerTable, read_answers


@pytest.fixture
def taken(tmp_path, monkeypatch):
    """Labels by class scores of no class, so that no CLIP runs."""
    monkeypatch.chdir(tmp_path)
    taken = Taken(tmp_path)
    taken.write_scores([[]] * len(taken.ids), [[]] * len(taken.ids))
    return taken


@pytest.fixture
def label_of(taken):
    return dict(zip(taken.ids, (CLASSNAMES[label] for label in taken.truth), strict=True))


def answer_all(session, answer_to):
    """Answer the open questions one by one until none is left, and save."""
    answers = {}
    while questions := session.open_questions(answers):
        one = questions[0]
        assert session.questions[one.number] is one  # by which the server finds its picture
        name = answer_to(one)
        kind = "class" if name else "none"
        answers[one.image_id] = Answer(one.image_id, kind, name, one.phase, one.content)
    return answers


def write_votes(taken):
    """Scores of classes, of which the likeliest is right for most images."""
    c, n = len(CLASSNAMES), len(taken.ids)
    scores = np.random.default_rng(0).normal(size=(n, c)) + 2 * np.eye(c)[taken.truth]
    scores -= np.logaddexp.reduce(scores, axis=1, keepdims=True)
    taken.write_scores([list(range(c))] * n, scores.tolist())


def fuse(taken, encoders=(), *, examples=False, answers=None):
    """The labels by the class scores, as their stage writes them."""
    files = LabelFiles.of(taken.folder, examples=examples)
    adapt_zero_shot(LabelFiles.of(taken.folder), taken.path("adapted"))
    outputs = ("fused_labels.parquet", NAME, "prototypes", "votes")
    scores = taken.path("class_scores.parquet")
    fuse_labels(
        replace(files, adapted=taken.path("adapted"), answers=answers),
        [LabellerTable("lmm", "decisions", scores)],
        *(taken.path(name) for name in outputs),
        image_encoders_paths=encoders,
    )
    return tables.read(taken.path("fused_labels.parquet"))


def test_questions_follow_the_model_of_the_fused_labels(taken):
    """Class scores, another image encoder beside CLIP and examples have a part in both."""
    write_votes(taken)
    encoder = taken.folder / "image_encoders" / "hf-hub--an--encoder.parquet"
    c, n = len(CLASSNAMES), len(taken.ids)
    noise = np.random.default_rng(1).normal(size=(n + c, 2 * c))
    truth = np.concatenate([taken.truth, np.arange(c)])
    features = (noise / 4 + np.eye(2 * c)[truth]).astype(np.float32)
    columns = {"image_id": taken.ids, "image_features": tables.list_column(features[:n])}
    metadata = EncoderMetadata("hf-hub:an/encoder", 3)
    tables.write(encoder, columns, tables.IMAGE_FEATURES, metadata)
    clip = taken.world.texts.numpy()
    columns = {
        "path": [f"{name}.jpg" for name in CLASSNAMES],
        "classname": CLASSNAMES,
        "image_features": tables.list_column(np.concatenate([clip, features[n:]], axis=1)),
    }
    examples = taken.path("examples.parquet")
    tables.write(examples, columns, tables.EXAMPLES)
    labels = fuse(taken, [str(encoder)], examples=True)
    session = TeachingSession(taken.folder, 10)
    session.open_questions({})
    assert session.posterior.argmax(axis=1).tolist() == labels["fused_label"].to_pylist()


def test_a_folder_without_labels_is_told_from_that_of_the_results(taken):
    with pytest.raises(UserError, match="results/<dataset>"):
        TeachingSession("mine", 10)


def test_chosen_images_come_before_images_drawn_to_check(taken, label_of):
    session = TeachingSession(taken.folder, 40)
    answers = answer_all(session, lambda one: label_of[one.image_id])
    phases = [one.phase for one in answers.values()]
    assert phases == [TEACH] * 20 + [CHECK] * 20
    taught = {one.image_id for one in list(answers.values())[:20]}
    drawn = [session.ids[int(row)] for row in session._order]
    rest = [name for name in drawn if name not in taught]
    assert [one.image_id for one in list(answers.values())[20:]] == rest[:20]
    assert all(one.content for one in answers.values())
    assert "last 20 questions" in session.status


def test_its_last_line_and_the_report_state_one_share_of_right_labels(taken, label_of):
    write_votes(taken)
    fuse(taken)
    session = TeachingSession(taken.folder, 40)
    answers = answer_all(
        session, lambda one: label_of[one.image_id] if one.number % 9 else None
    )
    session.file.update(answers)
    fuse(taken, answers=str(session.file.path))
    checked = read_fusion_report(taken.folder / NAME).labels_right
    assert checked.n == 20 and checked.words() in session.result()["sentence"]
    again = TeachingSession(taken.folder, 40)
    assert again.result()["sentence"] == session.result()["sentence"]


@pytest.mark.parametrize(
    ("n", "phase", "kind"),
    [
        (0, TEACH, CLASS),
        (1, TEACH, CLASS),
        (1, CHECK, NONE),
        (2, TEACH, UNSURE),
        (90, TEACH, NONE),
        (90, CHECK, UNSURE),
    ],
)
def test_after_any_answers_it_goes_on_and_has_a_result(taken, label_of, n, phase, kind):
    answers = {
        name: Answer(name, kind, label_of[name] if kind == CLASS else None, phase)
        for name in list(taken.ids)[:n]
    }
    TeachingSession(taken.folder, 10).file.update(answers)
    session = TeachingSession(taken.folder, 120)
    state = session.state(session.answers())
    assert (state["answered"], bool(state["upcoming"])) == (n, n < 90)
    assert session.result()["steps"]


def test_an_offline_page_asks_all_at_once_and_its_answers_are_taken(
    taken, label_of, caplog
):
    session = TeachingSession(taken.folder, 30)
    text = session.render_offline()
    values = json.loads(text.split('id="values">')[1].split("</script>")[0])
    assert values["classes"] == CLASSNAMES
    entries = [
        {"image": f"old/{one['image']}", "content": one["content"], "phase": one["phase"],
         "answer": "class", "class": label_of[one["image"]]}
        for one in values["questions"]
    ]  # fmt: skip  # as of a page that was written before the images were moved
    assert len(entries) == 30 and len({one["image"] for one in entries}) == 30
    exported = taken.folder / "exported.json"
    document = {**session.file.document().as_json(), "answers": entries}
    exported.write_text(json.dumps(document))
    import_answers(TeachingSession(taken.folder, 30), str(exported))
    assert [one.phase for one in session.answers().values()].count(CHECK) == 15


def test_an_image_that_has_an_answer_keeps_it(taken):
    session = TeachingSession(taken.folder, 30)
    first, second = list(session.ids)[:2]
    dots, lines = CLASSNAMES[:2]
    session.file.update({first: Answer(first, CLASS, dots)})
    others = {name: Answer(name, CLASS, lines) for name in (first, second)}
    exported = taken.folder / "exported.json"
    exported.write_text(json.dumps(session.file.document(others.values()).as_json()))
    import_answers(session, str(exported))
    assert [one.classname for one in session.answers().values()] == [dots, lines]
    assert session.result() == TeachingSession(taken.folder, 30).result()


@pytest.fixture
def imported(taken, label_of):
    """A function that imports labels of 40 images, drawn by the user, and returns the session."""
    write_votes(taken)
    fuse(taken)
    names = np.random.default_rng(3).permutation(taken.ids)[:40]
    table = taken.folder / "labels.csv"
    rows = [f'{name},"{label_of[name].replace(chr(34), chr(34) * 2)}"' for name in names]
    table.write_text("\n".join(["image,class", *rows]) + "\n")

    def take(*, drawn):
        session = TeachingSession(taken.folder, 20, drawn=drawn)
        import_answers(session, str(table))
        return session

    return take


def test_imported_labels_of_a_random_sample_check_the_labels(taken, imported):
    """First they teach, which the last lines say, and then the same file is a random sample."""
    session = imported(drawn=False)
    assert "not known" in session.result()["sentence"]
    assert session.result()["steps"][0][1].endswith("--drawn")
    session = imported(drawn=True)
    assert "by 40 answers" in session.result()["sentence"]
    path = str(session.file.path)
    fuse(taken, answers=path)
    report = read_fusion_report(taken.folder / NAME)
    assert (
        report.labels_right.n == len(report.checks["labels"]) == len(report.checking) == 40
    )
    again = TeachingSession(taken.folder, 20)
    asked = again.open_questions(again.answers(), offline=True)
    assert {one.phase for one in asked} == {CHECK} and len(asked) == 20
    images, _ = tables.read_unlabelled(taken.path("images.parquet"), training=True)
    assert read_answers(path, images, CLASSNAMES).drawn.sum() == 40
    row = images.slice(0, 1).set_column(0, "image_id", [["new.png"]])
    row = row.set_column(row.column_names.index("checksum"), "checksum", [[b"\xff" * 16]])
    added = pa.concat_tables([images, row.cast(images.schema)])
    assert read_answers(path, added, CLASSNAMES).drawn.sum() < 40  # they teach


def test_drawn_is_about_a_table_alone(taken):
    exported = taken.folder / "exported.json"
    session = TeachingSession(taken.folder, 10, drawn=True)
    exported.write_text(json.dumps(session.file.document().as_json()))
    with pytest.raises(UserError, match="--drawn"):
        import_answers(session, str(exported))
    with pytest.raises(UserError, match="--answers"):
        teach(str(taken.folder), drawn=True)
