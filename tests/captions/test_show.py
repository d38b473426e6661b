from latteclip.captions.engine import Response
from latteclip.cli import main


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
