import json

import pytest
from PIL import Image
from support.captioning import CLASSNAMES, provenance, read

from latteclip.captions.answers import Answer
from latteclip.captions.pictures import grid
from latteclip.captions.show import command, save_pictures, show
from latteclip.captions.summarize_captions import summarize_captions
from latteclip.core.errors import UserError

TEXTS = [
    "Red  dots on cloth.",
    "red dots on cloth.",
    "A grid",
    "A grid",
    "Outlines, reddots",
    "",
    "",
]


@pytest.fixture
def captioned(dataset, recorder):
    """images.parquet and groups.parquet where a run leaves them."""

    def reply(request):
        if request.key == 5:
            return Answer("", "error", None, "HTTP 400")
        text = TEXTS[request.key]
        return Answer(text, "length" if text == "A grid" else "stop", len(text.split()))

    recorder.reply = reply
    dataset.caption_images(output=dataset.folder / "captions/images.parquet", max_failed=1.0)
    recorder.reply = lambda request: Answer("lines", "stop", 1)
    dataset.caption_groups(output=dataset.folder / "captions/groups.parquet")
    return dataset


def test_the_summary_counts_lengths_repetitions_failures_and_class_names(captioned):
    paths = [str(captioned.folder / f"captions/{kind}.parquet") for kind in ("images", "groups")]
    output = captioned.folder / "captions/summary.json"
    summarize_captions(paths, captioned.images, str(output))
    summary = json.loads(output.read_text())
    assert list(summary) == ["images", "groups"]
    images = summary["images"]
    counts = {"captions": 7, "failed": 1, "empty": 1, "cut": 2, "asked_twice": 3}
    assert {name: images[name] for name in counts} == counts
    assert images["words"] == {
        **{"min": 2, "p5": 2, "median": 2, "p95": 4, "max": 4},
        "mean": 2.8,
    }
    assert images["tokens"]["min"] == 0
    assert images["distinct"] == 4
    assert images["share_duplicates"] == pytest.approx(1 - 4 / 5)
    assert images["share_naming_a_class"] == pytest.approx(2 / 5)
    assert images["most_repeated"] == [{"caption": "A grid", "times": 2}]
    assert (images["model"], images["prompt"]) == ("some/model", "What?")
    groups = summary["groups"]
    assert groups["share_naming_a_class"] == 1
    assert groups["most_repeated"] == [{"caption": "lines", "times": 7}]


def test_captions_are_shown_with_class_and_prompt(captioned):
    text = show(str(captioned.folder / "captions/images.parquet"), 3)
    assert "7 captions by some/model (recorder 1, revision abc, " in text
    assert text.count("prompt    What?") == 3
    assert f"class     {CLASSNAMES[1]} (pseudo-label)" in text
    assert "caption   Red dots on cloth." in text
    everything = show(str(captioned.folder / "captions/images.parquet"), 99)
    assert everything.count("prompt    What?") == 7
    assert "none: HTTP 400" in everything
    assert "none: empty" in everything
    assert "second attempt" in everything


def test_groups_are_shown_with_their_members_and_their_pictures_can_be_made_again(
    captioned,
    recorder,
    tmp_path,
):
    path = captioned.folder / "captions/groups.parquet"
    folder = tmp_path / "pictures"
    text = command(["show", str(path)], 2, str(folder))
    assert text.count("members   ") == 2
    asked = {request.key: request.pictures for request in recorder.requests[-7:]}
    columns = read(path)
    paths = dict(zip(captioned.names, captioned.files, strict=True))
    for number, (row_id, members) in enumerate(zip(columns["id"], columns["members"], strict=True)):
        row = {"id": row_id, "members": members}
        [file] = save_pictures(row, provenance(path), paths, str(folder))
        assert Image.open(file).tobytes() == asked[number][0].tobytes()
        wanted = grid([Image.open(paths[member]) for member in members], 64, 4)
        assert Image.open(file).tobytes() == wanted.tobytes()


def test_other_words_and_places_are_one_sentence(captioned, tmp_path):
    for words in (["show"], ["list", "x"], []):
        with pytest.raises(UserError, match="captions show FILE"):
            command(words, 5, None)
    elsewhere = tmp_path / "images.parquet"
    elsewhere.write_bytes((captioned.folder / "captions/images.parquet").read_bytes())
    with pytest.raises(UserError, match="does not lie in a folder"):
        show(str(elsewhere), 5)
