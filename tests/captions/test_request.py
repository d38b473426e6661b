import dataclasses

import pytest

from latteclip.captions import request
from latteclip.captions.request import (
    Choices,
    Identity,
    Layout,
    digest,
    digest_of_images,
    fingerprint,
    prompt_of,
)

IDENTITY = Identity("m", None, "auto", None, 77, Layout())


def test_a_digest_is_a_function_of_what_is_asked():
    images = digest_of_images([b"picture"])
    first = digest(images, 1, "What?", IDENTITY)
    assert len(first) == request.DIGEST_LENGTH
    assert digest(images, 1, "What?", dataclasses.replace(IDENTITY)) == first


def test_captions_that_were_kept_are_found_by_later_versions():
    images = digest_of_images([b"picture"])
    assert digest(images, 1, "What?", IDENTITY) == "7fa5c9b1927964f733d7455263b2fb84"


def test_choices_and_their_kind_count():
    images = digest_of_images([b"picture"])
    choices = [
        *(None, Choices("letters", ("A", "B")), Choices("likelihood", ("A", "B"))),
        *(Choices("letters", ("A", "B", "C")), Choices("letters", ("B", "A"))),
    ]
    assert len({digest(images, 1, "What?", IDENTITY, each) for each in choices}) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"model": "n"},
        {"revision": "abc"},
        {"dtype": "float32"},
        {"quantization": "awq"},
        {"max_new_tokens": 78},
        {"temperature": 0.5},
        {"special_tokens": "some rule"},
        {"layout": Layout(max_side=100)},
        {"layout": Layout("grid", 672, 20)},
        {"layout": Layout("multi_image")},
        {"layout": Layout(square=336)},
        {"layout": Layout("grid", 672, 20, square=336)},
    ],
    ids=str,
)
def test_whatever_changes_the_answer_changes_the_digest(change):
    images = digest_of_images([b"picture"])
    other = dataclasses.replace(IDENTITY, **change)
    assert digest(images, 1, "What?", other) != digest(images, 1, "What?", IDENTITY)


def test_image_bytes_their_order_and_the_prompt_count():
    a, b = b"a", b"b"
    asked = {
        digest(digest_of_images(contents), len(contents), prompt, IDENTITY)
        for contents in ([a], [b], [a, b], [b, a], [a, a], [a, b, a])
        for prompt in ("What?", "Where?", prompt_of("What?", 2))
    }
    assert len(asked) == 6 * 3


def test_a_model_of_the_hub_goes_by_its_name():
    assert fingerprint("some/model") == "some/model"


def test_a_model_folder_goes_by_its_content_wherever_it_lies(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text("{}")
        (tmp_path / folder / "model.safetensors").write_bytes(bytes(1000))
    first = fingerprint(str(tmp_path / "one"))
    assert fingerprint(str(tmp_path / "two")) == first
    (tmp_path / "two" / "model.safetensors").write_bytes(bytes(999) + b"x")
    assert fingerprint(str(tmp_path / "two")) != first


def test_large_files_count_by_samples_of_their_content(tmp_path, monkeypatch):
    monkeypatch.setattr(request, "HASHED_WHOLE", 1000)
    monkeypatch.setattr(request, "SAMPLE", 10)
    weights = tmp_path / "model.safetensors"
    seen = set()
    for content in (bytes(5000), bytes(5001), b"x" * 5000, bytes(4999) + b"x"):
        weights.write_bytes(content)
        seen.add(fingerprint(str(tmp_path)))
    assert len(seen) == 4


ONE = digest_of_images([b"picture"]), 1
FOUR = digest_of_images([b"a", b"b", b"c", b"d"]), 4
HUB = Identity("some/model", None, "auto", None, 77, Layout())
AWQ = Identity("sha256:00", "abc", "float32", "awq", 40, Layout(max_side=1344))


@pytest.mark.parametrize(
    ("images", "prompt", "identity", "wanted"),
    [
        (ONE, "What?", HUB, "cb33e61333cc4e1be84658d80484d469"),
        (ONE, prompt_of("What?", 2), HUB, "f8f556eb2dd5517d9e40866d6401d11e"),
        (ONE, "Qu\u2019est-ce ?", AWQ, "2e39e1020374b2c44d1910e0ccd02ce5"),
        (
            FOUR,
            "All?",
            dataclasses.replace(HUB, revision="abc", layout=Layout("grid", 672, 20)),
            "5038f3145274f49ad0c8941c63b83b0f",
        ),
        (
            FOUR,
            "All?",
            dataclasses.replace(HUB, revision="abc", layout=Layout("multi_image", max_side=1344)),
            "296ef95990e372a13e93cd9f615ea1d7",
        ),
    ],
)
def test_digests_are_those_under_which_answers_have_been_kept(images, prompt, identity, wanted):
    """A change here would ask again whatever earlier versions asked."""
    assert digest(*images, prompt, identity) == wanted


def test_the_fingerprint_of_a_folder_is_the_one_of_earlier_versions(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    wanted = "sha256:5e2bb5aab2a62a0bbac63be27890f9d245d3b1dd03fdfcb45ceb341eaf092bae"
    assert fingerprint(str(tmp_path)) == wanted
