from PIL import Image
from support.captioning import provenance, read

from latteclip.captions.pictures import grid
from latteclip.captions.requests import Response
from latteclip.captions.show import captions, save_pictures
from latteclip.cli import main


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
