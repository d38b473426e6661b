import dataclasses

import pytest

from latteclip.captions import requests
from latteclip.captions.pictures import Layout
from latteclip.captions.requests import (
    Choices,
    Identity,
    digest,
    digest_of_images,
    fingerprint,
    prompt_of,
)

IDENTITY = Identity("m", None, "auto", None, 77, Layout())


def test_a_digest_is_a_function_of_what_is_asked():
    images = digest_of_images([b"picture"])
    first = digest(images, 1, "What?", IDENTITY)
    assert len(first) == requests.DIGEST_LENGTH
    assert digest(images, 1, "What?", dataclasses.replace(IDENTITY)) == first


def test_choices_and_their_kind_count():
    images = digest_of_images([b"picture"])
    choices = [
        *(None, Choices("multiple_choice", ("A", "B")), Choices("likelihood", ("A", "B"))),
        *(Choices("multiple_choice", ("A", "B", "C")), Choices("multiple_choice", ("B", "A"))),
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
    monkeypatch.setattr(requests, "HASHED_WHOLE", 1000)
    monkeypatch.setattr(requests, "SAMPLE", 10)
    weights = tmp_path / "model.safetensors"
    seen = set()
    for content in (bytes(5000), bytes(5001), b"x" * 5000, bytes(4999) + b"x"):
        weights.write_bytes(content)
        seen.add(fingerprint(str(tmp_path)))
    assert len(seen) == 4
