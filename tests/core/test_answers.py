import json
import threading
import unicodedata
from pathlib import Path

import pyarrow as pa
import pytest

from latteclip.core.answers import Answer, AnswerFile
from latteclip.core.errors import UserError
from latteclip.data.images import checksum
from latteclip.labels.label_inputs import answered_rows, drawing_order


def content(text):
    return checksum(text.encode()).hex()


def index(pictures):
    """Names of images with the texts that are their content."""
    checksums = [bytes.fromhex(content(text)) for text in pictures.values()]
    return pa.table(
        {
            "image_id": pa.chunked_array([list(pictures)], pa.string()),
            "checksum": pa.chunked_array([checksums], pa.binary(16)),
        }
    )


def about(image, kind, name=None, **more):
    """An answer about an image whose content is its name."""
    return Answer(image, kind, name, content=content(image), **more)


IDS = [f"images/{i}.png" for i in range(6)]
CLASSNAMES = ("none", "dots", "\u202edots")
IMAGES = index({name: name for name in IDS})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit" / "answers.json"


def planned(path):
    """A file of answers to a plan."""
    return AnswerFile(path, IMAGES, CLASSNAMES, "0123456789abcdef")


def test_changes_at_once_are_all_saved(path):
    def write(one):
        planned(path).update({one: Answer(one, "none")})

    threads = [threading.Thread(target=write, args=(one,)) for one in IDS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(planned(path).read().answers) == set(IDS)


def document(**values):
    return json.dumps({**planned(Path()).document().as_json(), **values}).encode()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"\xff\xfe", b"[" * 100_000),
        *(document(plan="another"), document(plan={"a": 1})),
        *(document(answers=3), document(answers=[3])),
        document(answers=[{"image": IDS[0], "answer": ["none"]}]),
        document(answers=[{"image": IDS[0], "answer": "perhaps"}]),
        document(answers=[{"image": IDS[0], "answer": "none", "content": "../.."}]),
        document(answers=[{"image": IDS[0], "answer": "class", "class": ["dots"]}]),
    ],
    ids=lambda content: str(content)[:60],
)
def test_a_file_that_is_not_valid_is_named(tmp_path, content):
    path = tmp_path / "answers.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"answers\.json"):
        planned(path).read()


def test_answers_become_shares_of_classes():
    answers = [
        about(IDS[3], "class", "dots", phase="check"),
        about(IDS[0], "class", "none", phase="teach"),
        about(IDS[1], "none"),
        about(IDS[2], "unsure"),
        about(IDS[4], "unsure", phase="check"),
    ]
    images = IMAGES.slice(0, 5)
    found = answered_rows(
        {one.image_id: one for one in answers}, images, CLASSNAMES, len(images)
    )
    assert found.rows.tolist() == [0, 1, 3]
    assert found.shares.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert found.drawn.tolist() == [False, False, True]
    assert (found.unsure_chosen, found.unsure_drawn) == (1, 1)


def test_after_images_are_added_checks_are_a_sample_of_all_or_teach():
    old = [f"old {i}" for i in range(100)]
    now = index({name: name for name in [*old, *(f"new {i}" for i in range(100))]})
    order = [now["image_id"][row].as_py() for row in drawing_order(now)]
    asked = [name for name in order if name in old][:40]
    answers = {name: about(name, "class", "dots", phase="check") for name in asked}

    def n_drawn(images):
        return answered_rows(answers, images, CLASSNAMES, len(images)).drawn.sum()

    assert n_drawn(now.slice(0, 100)) == 40
    first = next(place for place, name in enumerate(order) if name not in answers)
    assert n_drawn(now) == first < 20
    before = order[: order.index(asked[-1])]
    answers |= {name: about(name, "none", phase="check") for name in before}
    assert n_drawn(now) == len(before) + 1 > 60


def about_pictures(path, pictures, classnames=CLASSNAMES):
    return AnswerFile(path, index(pictures), classnames)


def said(saved):
    """What the answers say: a class, or the kind."""
    return {key: one.classname or one.kind for key, one in saved.answers.items()}


def test_images_are_known_by_their_content(path):
    """Of two with exchanged names, each has its answer; one that changed or is gone has none."""
    before = about_pictures(path, {"a": "A", "b": "B", "c": "C", "d": "D", "same": "D"})
    names = dict(zip("abcd", ["dots", "none", "dots", "none"], strict=True))
    answers = {image: Answer(image, "class", name) for image, name in names.items()}
    before.update(answers)
    saved = about_pictures(path, {"b": "A", "a": "B", "c": "new", "d2": "D"}).read()
    assert said(saved) == {"a": "none", "b": "dots", "d2": "none"}
    assert [one.image_id for one in saved.entries if one.state == "gone"] == ["c"]


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_of_names_may_be_written_in_two_ways(path, forms):
    """Both files may be there, and each has its answer."""
    here, saved = (unicodedata.normalize(form, "é") for form in forms)
    about_pictures(path, {here: "A"}).update({saved: Answer(saved, "class", "dots")})
    assert said(about_pictures(path, {here: "A"}).read()) == {here: "dots"}
    both = about_pictures(path, {here: "A", saved: "B"})
    both.update({saved: Answer(saved, "class", "none")})
    assert said(both.read()) == {here: "dots", saved: "none"}


def test_what_says_nothing_now_stays_in_the_file_and_counts_again(path, caplog):
    pictures = {"a": "A", "b": "B", "c": "C", "d": "D"}
    answers = {name: Answer(name, "class", "dots") for name in "ab"} | {
        "c": Answer("c", "none")
    }
    about_pictures(path, pictures).update(answers)
    left, classes = {"b": "B", "c": "C", "d": "D"}, ("lines", "none")
    now = about_pictures(path, left, classes)
    saved = now.read()
    saved.warn(path, "results/made")
    assert said(saved) == {} and set(saved.asked) == {"b", "c"}
    for word in ("3 of 3", "dots about a", "rename-class results/made"):
        assert word in caplog.text
    now.update({"d": Answer("d", "none")})
    assert said(now.read()) == {"d": "none"}
    wanted = {"a": "dots", "b": "dots", "c": "none"}
    assert said(about_pictures(path, pictures).read()) == wanted


@pytest.mark.parametrize("second", [("class", "none"), ("none", None)])
def test_two_answers_about_one_image_are_refused_with_both_named(path, second):
    """The later entry of a merged file would replace the other one without a word."""
    both = [about(IDS[0], "class", "dots"), about(IDS[0], *second)]
    path.parent.mkdir()
    path.write_text(json.dumps(planned(path).document(both).as_json()))
    with pytest.raises(UserError, match=f"{IDS[0]}.*dots.*{both[1].meaning}"):
        planned(path).read()
    twice = planned(path).document([both[0], both[0]])
    path.write_text(json.dumps(twice.as_json()))
    assert planned(path).read().answers[IDS[0]].classname == "dots"
