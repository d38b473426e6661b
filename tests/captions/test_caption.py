import numpy as np
import pytest
from PIL import Image
from support.captioning import CANVAS, CLASSNAMES, LABELS, SETTINGS, mean_colour, provenance

from latteclip.captions.caption import SHORTER, clean
from latteclip.captions.engine import Response
from latteclip.captions.questions import draw_groups, grid


def same_picture(a, b):
    return a.size == b.size and np.array_equal(np.asarray(a), np.asarray(b))


def test_every_training_image_is_asked_and_tests_never(dataset, recorder):
    columns = dataset.caption_images()
    assert len(recorder.requests) == 7
    for request, file in zip(recorder.requests, dataset.files, strict=True):
        assert request.prompt == "What?"
        [picture] = request.pictures
        assert same_picture(picture, Image.open(file))
    assert columns["id"] == dataset.names
    assert columns["caption"] == [
        f"What? {mean_colour(Image.open(f))}" for f in dataset.files
    ]


def test_groups_show_the_grid_of_their_members(dataset, recorder):
    columns = dataset.caption_groups()
    metadata = provenance(dataset.output)
    assert (metadata.model, metadata.questions) == (SETTINGS.model, 7)
    drawn = draw_groups(dataset.names, LABELS)
    assert columns["id"] == dataset.names
    assert columns["members"] == [[dataset.names[m] for m in drawn[i]] for i in range(7)]
    assert columns["prompt"] == [f"All {CLASSNAMES[label]}?" for label in LABELS]
    for request in recorder.requests:
        [picture] = request.pictures
        members = [Image.open(dataset.files[i]) for i in drawn[request.key]]
        assert same_picture(picture, grid(members, CANVAS))


@pytest.mark.parametrize(
    ("first", "second", "caption"),
    [
        ("", "A dot.", "A dot."),
        ("A long", "A short.", "A short."),
        ("A long", "Long", "A long"),
        ("A long", "", "A long"),
    ],
)
def test_an_empty_or_cut_answer_is_asked_for_once_more(
    dataset, recorder, first, second, caption
):
    def reply(request):
        text = second if request.prompt.endswith(SHORTER) else first
        return Response(text, "length" if "ong" in text else "stop", 7, 10)

    recorder.reply = reply
    columns = dataset.caption_images(max_failed=1)
    metadata = provenance(dataset.output)
    assert columns["caption"] == [caption] * 7
    assert len(recorder.requests) == 14
    assert (metadata.questions, metadata.tokens_read) == (7, 140)
    recorder.forget()
    assert dataset.caption_images(max_failed=1) == columns
    assert recorder.starts == 0


def test_captions_of_ones_own_take_the_captioner_s_place(dataset, recorder, caplog):
    path = dataset.folder / "mine.csv"
    first, second, *others = dataset.names
    path.write_text(f'image_id,caption\n{second},"a  ""dot"", seen"\n{first},NA\n')
    columns = dataset.caption_images(engine="file", images_file=str(path))
    assert columns["caption"] == ["NA", 'a "dot", seen', *[""] * len(others)]
    assert f"no row for {len(others)} of {len(dataset.names)} images" in caplog.text
    assert provenance(dataset.output).questions == 0
    assert recorder.starts == 0


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        (" A red\n\n  texture. \t", "A red texture."),
        ("\u201cA red texture.\u201d", "A red texture."),
        ("**A red texture.**", "A red texture."),
        ('Sure! Here\'s a concise description:\n\n"A red texture."', "A red texture."),
        ("ASSISTANT: A red texture.", "A red texture."),
        ("<think>\nIs it blue?\n</think>\n\nA red texture.", "A red texture."),
        ("A red textur\ufffd\ufffd", "A red textur"),
        ("A\x00 red\x07 texture\x1b[2J\x9b.", "A red texture [2J ."),
        ('""', ""),
        (
            "The photo shows here: it's the artist's",
            "The photo shows here: it's the artist's",
        ),
        ("Sure", "Sure"),
    ],
)
def test_what_is_no_caption_goes_and_the_rest_stays(text, caption):
    assert clean(text) == caption


# --- groups --------------------------------------------------------------------------------------


def ids(n, folder="class"):
    return [f"{folder}/{number:04d}.png" for number in range(n)]


@pytest.mark.parametrize("folder", [*map(str, range(20))])
def test_every_image_has_a_group_of_four_different_images_of_its_class(folder):
    labels = [0, 1] * 5 + [2] * 30 + [3] * 4 + [4] * 6 + [5, 6, 6]
    groups = draw_groups(ids(53, folder), labels)
    assert groups.shape == (53, 4)
    for index, members in enumerate(groups.tolist()):
        assert {labels[member] for member in members} == {labels[index]}
        assert len(set(members)) == 4 or labels[index] > 4  # of fewer, with replacement
        assert index not in members or labels[index] != 2  # of many, seldom itself


def test_added_images_change_few_groups_of_the_others():
    old, new = np.array(ids(300)), np.array(ids(5, "added"))
    both = np.concatenate([new, old])  # so that every index moves
    before = old[draw_groups(old, [0] * 300)]
    after = both[draw_groups(both, [0] * 305)][5:]
    is_changed = (before != after).any(axis=1)
    assert is_changed.sum() <= 4 * 5 + 4
    assert np.isin(after[is_changed], new).any(axis=1).all()
