import numpy as np
import pytest
from PIL import Image
from support.captioning import (
    CLASSNAMES,
    GROUPS,
    LABELS,
    SETTINGS,
    mean_colour,
    provenance,
)

from latteclip.captions.caption import clean
from latteclip.captions.engine import Response
from latteclip.captions.groups import SEED, draw_groups
from latteclip.captions.pictures import grid
from latteclip.cli import main
from latteclip.core.errors import UserError


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
    assert columns["members"] == [[name] for name in dataset.names]
    assert columns["pseudo_label"] == [None] * 7
    assert columns["caption"] == [
        f"What? {mean_colour(Image.open(f))}" for f in dataset.files
    ]
    facts = zip(
        *(columns[k] for k in ("finish_reason", "n_tokens", "attempts", "error")),
        strict=True,
    )
    assert list(facts) == [("stop", 7, 1, None)] * 7
    assert len(set(columns["digest"])) == 7


def test_groups_show_the_grid_of_their_members(dataset, recorder):
    columns = dataset.caption_groups()
    metadata = provenance(dataset.output)
    assert metadata.model == SETTINGS.model
    assert metadata.engine == "recorder 1"
    assert (metadata.prompt, metadata.groups) == ("All {}?", GROUPS)
    drawn = draw_groups(dataset.names, LABELS, SEED)
    assert columns["id"] == dataset.names
    assert columns["members"] == [[dataset.names[m] for m in drawn[i]] for i in range(7)]
    assert columns["pseudo_label"] == LABELS
    assert columns["prompt"] == [f"All {CLASSNAMES[label]}?" for label in LABELS]
    for request in recorder.requests:
        [picture] = request.pictures
        members = [Image.open(dataset.files[i]) for i in drawn[request.key]]
        assert same_picture(picture, grid(members, GROUPS.canvas))


def test_captions_of_ones_own_take_the_captioner_s_place(dataset, recorder):
    path = dataset.folder / "mine.csv"
    lines = [f'{name},"a  {name}, seen"' for name in reversed(dataset.names)]
    path.write_text("\n".join(["image_id,caption", *lines]))
    columns = dataset.caption_images(engine="file", images_file=str(path))
    assert columns["caption"] == [f"a {name}, seen" for name in dataset.names]
    assert provenance(dataset.output).engine == "file"
    assert recorder.starts == 0


def test_a_file_may_lack_captions_but_not_all_of_them(dataset, caplog):
    path = dataset.folder / "mine.csv"
    first, *others = dataset.names
    path.write_text(f"image_id,caption\n{first},a texture\n")
    columns = dataset.caption_images(engine="file", images_file=str(path))
    assert columns["caption"] == ["a texture", *[""] * len(others)]
    assert f"no row for {len(others)} of {len(dataset.names)} images" in caplog.text
    path.write_text("image_id,caption\nother.png,a texture\n")
    with pytest.raises(UserError, match=r"captioner\.images_file") as caught:
        dataset.caption_images(engine="file", images_file=str(path))
    assert "'other.png'" in str(caught.value) and repr(first) in str(caught.value)


WHOLE = (
    'A "red" texture with "holes"',
    "The photo shows here: nothing",
    "Here is a cat.",
    "It's the artist's cloth",
    "Sure",
)


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        (" A red\n\n  texture. \t", "A red texture."),
        ("\u201cA red texture.\u201d", "A red texture."),
        ("**A red texture.**", "A red texture."),
        ('Sure! Here\'s a concise description:\n\n"A red texture."', "A red texture."),
        ("ASSISTANT: A red texture.", "A red texture."),
        ("A red texture.</s>", "A red texture."),
        ("A red textur\ufffd\ufffd", "A red textur"),
        ("A\x00 red\x07 texture\x1b[2J\x9b.", "A red texture [2J ."),
        ('""', ""),
        *((text, text) for text in WHOLE),
    ],
)
def test_what_is_no_caption_goes_and_the_rest_stays(text, caption):
    assert clean(text) == caption


def test_captions_are_shown_and_what_a_terminal_would_obey_is_spelt_out(
    captioned, recorder, capsys
):
    recorder.reply = lambda request: Response(
        "A dot\x1b]0;title\x07 \u202eon it", "stop", 5
    )
    output = captioned.folder / "captions/other.parquet"
    captioned.caption_images("Where\x1b[2J?", output=output)
    assert main.main(["captions", "show", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert r"Where\x1b[2J?" in printed
    assert r"A dot ]0;title \u202eon it" in printed
    groups = captioned.folder / "captions/groups.parquet"
    assert main.main(["captions", "show", str(groups), "-n", "2"]) == 0
    assert capsys.readouterr().out.count("members   ") == 2


# --- groups --------------------------------------------------------------------------------------


def ids(n, start=0):
    return [f"class/{number:04d}.png" for number in range(start, start + n)]


def draw(labels, seed=3):
    return draw_groups(ids(len(labels)), labels, seed)


@pytest.mark.parametrize("seed", range(20))
def test_every_image_has_a_group_of_four_different_images_of_its_class(seed):
    labels = [0, 1] * 5 + [2] * 30 + [3] * 4 + [4] * 6 + [5, 6, 6]
    groups = draw(labels, seed)
    assert list(groups) == list(range(53))
    for index, members in groups.items():
        assert len(members) == 4
        assert {labels[member] for member in members} == {labels[index]}
        assert len(set(members)) == 4 or labels[index] > 4  # of fewer, with replacement
        assert index not in members or labels[index] != 2  # of many, seldom itself


def test_added_images_change_few_groups_of_the_others():
    old, new = ids(300), ids(5, start=1000)
    before = draw_groups(old, [0] * 300, seed=1)
    # They come first, so that every index moves.
    after = draw_groups([*new, *old], [0] * 305, seed=1)
    named_before = {old[i]: [old[m] for m in members] for i, members in before.items()}
    named_after = {[*new, *old][i]: [[*new, *old][m] for m in g] for i, g in after.items()}
    changed = [name for name in old if named_before[name] != named_after[name]]
    assert len(changed) <= 4 * 5 + 4
    assert all(set(named_after[name]) & set(new) for name in changed[:4])
