from PIL import Image
from support.captioning import CLASSNAMES, provenance, read

from latteclip.captions.pictures import grid
from latteclip.captions.requests import Response
from latteclip.captions.show import captions, save_pictures
from latteclip.cli import main


def test_captions_are_shown_with_class_and_prompt(captioned):
    text = captions("show", str(captioned.folder / "captions/images.parquet"), 3)
    assert "7 captions by some/model (recorder 1, revision abc, " in text
    assert text.count("prompt    What?") == 3
    assert f"class     {CLASSNAMES[1]} (pseudo-label)" in text
    assert "caption   Red dots on cloth." in text
    everything = captions("show", str(captioned.folder / "captions/images.parquet"), 99)
    assert everything.count("prompt    What?") == 7
    assert "none: HTTP 400" in everything
    assert "none: empty" in everything
    assert "second attempt" in everything
    path = str(captioned.folder / "captions/images.parquet")
    assert captions("show", path, 0) == text.partition("\n")[0]


def test_groups_are_shown_with_their_members_and_their_pictures_can_be_made_again(
    captioned,
    recorder,
    tmp_path,
):
    path = captioned.folder / "captions/groups.parquet"
    folder = tmp_path / "pictures"
    text = captions("show", str(path), 2, str(folder))
    assert text.count("members   ") == 2
    asked = {request.key: request.pictures for request in recorder.requests[-7:]}
    columns = read(path)
    paths = dict(zip(captioned.names, captioned.files, strict=True))
    for number, (row_id, members) in enumerate(
        zip(columns["id"], columns["members"], strict=True)
    ):
        row = {"id": row_id, "members": members}
        [file] = save_pictures(row, provenance(path), paths, str(folder))
        assert Image.open(file).tobytes() == asked[number][0].tobytes()
        wanted = grid([Image.open(paths[member]) for member in members], 64, 4)
        assert Image.open(file).tobytes() == wanted.tobytes()


def test_what_a_terminal_would_obey_is_spelt_out(captioned, recorder, capsys):
    recorder.reply = lambda request: Response(
        "A dot\x1b]0;title\x07 \u202eon it", "stop", 5
    )
    output = captioned.folder / "captions/other.parquet"
    captioned.caption_images("Where\x1b[2J?", output=output)
    assert main.main(["captions", "show", str(output)]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert r"Where\x1b[2J?" in said
    assert r"A dot ]0;title \u202eon it" in said
