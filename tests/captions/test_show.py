import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from support.captioning import CLASSNAMES, provenance, read
from support.shards import tar_shard

from latteclip.captions.answers import Answer
from latteclip.captions.pictures import grid
from latteclip.captions.show import command, save_pictures, show
from latteclip.captions.summarize_captions import summarize_captions
from latteclip.cli import main
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.data.tar_shards import samples


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


def test_captions_of_ones_own_are_nobody_elses(captioned):
    """Whatever model the configuration names beside the file."""
    path = captioned.folder / "captions/images.parquet"
    table, metadata = tables.read(path, tables.CAPTIONS)
    metadata["captioner"] |= {"engine": "file", "images_file": "mine.csv"}
    own, summary = (captioned.folder / "captions" / name for name in ("own.parquet", "own.json"))
    columns = {name: table[name] for name in table.column_names}
    tables.write(own, columns, tables.CAPTIONS, metadata)
    assert "7 captions of your own, from mine.csv" in show(str(own), 1)
    summarize_captions([str(own)], captioned.images, str(summary))
    found = json.loads(summary.read_text())["own"]
    assert (found["model"], found["file"]) == (None, "mine.csv")


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


def test_pictures_of_images_in_shards_are_made_again_as_well(captioned, tmp_path):
    path = captioned.folder / "captions/groups.parquet"
    contents = [Path(file).read_bytes() for file in captioned.files]
    shard = tar_shard(tmp_path / "a.tar", [(f"{n}", {"png": c}) for n, c in enumerate(contents)])
    inside = [f"{shard}#{sample.place}" for sample in samples(shard, None, None, Counter())]
    row = {"id": "x", "members": read(path)["members"][0]}
    made = []
    for folder, files in (("files", captioned.files), ("shard", inside)):
        paths = dict(zip(captioned.names, files, strict=True))
        [file] = save_pictures(row, provenance(path), paths, str(tmp_path / folder))
        made.append(file.read_bytes())
    assert made[0] == made[1]


def test_other_words_and_places_are_one_sentence(captioned, tmp_path):
    for words in (["show"], ["list", "x"], []):
        with pytest.raises(UserError, match="captions show FILE"):
            command(words, 5, None)
    elsewhere = tmp_path / "images.parquet"
    elsewhere.write_bytes((captioned.folder / "captions/images.parquet").read_bytes())
    with pytest.raises(UserError, match="does not lie in a folder"):
        show(str(elsewhere), 5)


def test_what_a_terminal_would_obey_is_spelt_out(captioned, recorder, capsys):
    recorder.reply = lambda request: Answer("A dot\x1b]0;title\x07 \u202eon it", "stop", 5)
    output = captioned.folder / "captions/other.parquet"
    captioned.caption_images("Where\x1b[2J?", output=output)
    assert main.main(["captions", "show", str(output)]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert r"Where\x1b[2J?" in said
    assert r"A dot ]0;title \u202eon it" in said
