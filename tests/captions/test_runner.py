import os
from pathlib import Path

import pytest
from PIL import Image
from support.captioning import describe, read
from support.commands import python
from support.tiny import write_pictures

from latteclip.captions.caption import RETRY_PROMPT, gather_captions
from latteclip.captions.engine import Response
from latteclip.captions.questions import shard_of
from latteclip.cli.estimate import WORK
from latteclip.core.errors import UserError


def test_a_deleted_table_is_made_again_byte_by_byte_without_an_engine(dataset, recorder):
    dataset.caption_images()
    before = dataset.output.read_bytes()
    dataset.output.unlink()
    recorder.forget()
    dataset.caption_images()
    assert (recorder.starts, recorder.requests) == (0, [])
    assert dataset.output.read_bytes() == before


def test_the_estimate_finds_how_long_a_run_asked(dataset, recorder, caplog):
    caplog.set_level("INFO")
    dataset.caption_images()
    assert len(WORK.findall("\n".join(caplog.messages))) == 1


def test_added_and_changed_images_alone_are_asked(dataset, recorder):
    dataset.caption_images()
    recorder.forget()
    for file in write_pictures(dataset.folder / "more", 3, seed=9):
        added = Path(file).with_name(f"0010{Path(file).name}")
        os.rename(file, added)
        dataset.files.insert(2, str(added))
    dataset.index(dataset.files)
    Image.new("RGB", (9, 9), (1, 2, 3)).save(dataset.files[8])
    columns = dataset.caption_images()
    assert len(recorder.requests) == 4
    assert len(columns["id"]) == 10
    assert "What? 1 2 3" in columns["caption"]


def test_another_commit_of_a_model_of_the_hub_is_asked_again(
    dataset, recorder, monkeypatch, tmp_path
):
    for commit in ("a", "b", "b"):
        monkeypatch.setattr(
            "huggingface_hub.hf_hub_download",
            lambda model, name, revision, commit=commit: str(tmp_path / commit / name),
        )
        dataset.caption_images()
    assert len(recorder.requests) == 2 * 7


def test_a_renamed_image_and_a_twin_are_not_asked(dataset, recorder):
    twin = Path(dataset.files[5])
    twin.write_bytes(Path(dataset.files[1]).read_bytes())
    columns = dataset.caption_images()
    assert len(recorder.requests) == 6
    assert columns["caption"][5] == columns["caption"][1]
    recorder.forget()
    renamed = twin.with_name("zzz.png")
    twin.rename(renamed)
    dataset.index([*dataset.files[:5], *dataset.files[6:], str(renamed)])
    assert dataset.caption_images()["id"][-1] == "zzz.png"
    assert recorder.requests == []


def test_empty_and_cut_answers_are_asked_once_more(dataset, recorder):
    def reply(request):
        again = request.prompt.endswith(RETRY_PROMPT)
        texts = {
            1: ("", "A dot."),  # empty, then good
            2: ("A long", "A short."),  # cut, then good
            3: ("A long", "Still long"),  # cut twice
            4: ("", ""),  # empty twice
            5: ("", "Long"),  # empty, then cut
            6: ("A long", ""),  # cut, then empty
        }
        text = texts.get(request.key, ("Good.", None))[again]
        return Response(text, "length" if "ong" in text else "stop", 5 if again else 9)

    recorder.reply = reply
    columns = dataset.caption_images(max_failed=0.5)
    assert columns["caption"] == [
        "Good.",
        "A dot.",
        "A short.",
        "A long",
        "",
        "Long",
        "A long",
    ]
    reasons = ["stop", "stop", "stop", "length", "stop", "length", "length"]
    assert columns["finish_reason"] == reasons
    assert columns["attempts"] == [1, 2, 2, 2, 2, 2, 2]
    assert columns["n_tokens"] == [9, 5, 5, 9, 5, 5, 9]
    assert columns["prompt"] == ["What?"] * 7
    assert len(recorder.requests) == 13
    assert recorder.starts == 1
    recorder.forget()
    assert dataset.caption_images(max_failed=0.5) == columns
    assert recorder.requests == []


def test_too_many_empty_captions_are_refused_and_nothing_is_written(dataset, recorder):
    recorder.reply = lambda request: Response(
        "" if request.key in (1, 3) else "a", "stop", 1
    )
    with pytest.raises(UserError, match=r"captioner\.max_failed"):
        dataset.caption_images()
    assert not dataset.output.exists()
    assert dataset.caption_images(max_failed=0.3)["caption"].count("") == 2


def test_an_error_is_recorded_for_its_image_and_asked_again_by_the_next_run(
    dataset, recorder
):
    error = Response("", "error", None, "HTTP 400: bad picture")
    recorder.reply = lambda request: error if request.key == 2 else describe(request)
    columns = dataset.caption_images(max_failed=0.2)
    assert columns["error"] == [None, None, "HTTP 400: bad picture", *[None] * 4]
    found = [columns[name][2] for name in ("finish_reason", "caption", "n_tokens")]
    assert found == ["error", "", None]
    with pytest.raises(UserError, match="HTTP 400"):
        dataset.caption_images()
    recorder.reply = describe
    recorder.forget()
    assert dataset.caption_images()["error"] == [None] * 7
    assert [request.key for request in recorder.requests] == [2]


def test_a_run_of_failures_ends_early(dataset, recorder, monkeypatch):
    monkeypatch.setattr("latteclip.captions.runner.MAX_CONSECUTIVE_FAILURES", 3)
    recorder.reply = lambda request: Response("", "error", None, "no connection.")
    with pytest.raises(UserError, match="no connection"):
        dataset.caption_images()
    assert len(recorder.requests) < 7


# --- shards --------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_images", [None, 4])
@pytest.mark.parametrize(("kind", "n"), [("images", 3), ("groups", 2)])
def test_shards_give_the_same_bytes_however_many_there_are(
    dataset, recorder, kind, n, max_images
):
    def caption(**options):
        if kind == "images":
            return dataset.caption_images(max_images=max_images, **options)
        return dataset.caption_groups(max_images=max_images, **options)

    whole = dataset.folder / "whole.parquet"
    caption(output=whole, store=False)
    asked = len(recorder.requests)
    assert asked == (max_images or 7)
    recorder.forget()
    shards = [dataset.folder / f"shards/{number}.parquet" for number in range(1, n + 1)]
    for number, path in enumerate(shards, start=1):
        rows = caption(output=path, shard=f"{number}/{n}", store=False)
        assert {shard_of(row, n) for row in rows["id"]} <= {number}
    assert len(recorder.requests) == asked
    gathered = dataset.folder / "gathered.parquet"
    gather_captions(dataset.images, [str(path) for path in shards], str(gathered))
    assert read(gathered) == read(whole)
    assert gathered.read_bytes() == whole.read_bytes()


# --- worker processes ----------------------------------------------------------------------------


def test_an_image_that_is_no_image_is_named(dataset, recorder):
    Path(dataset.files[3]).write_bytes(b"no image")
    with pytest.raises(UserError, match=dataset.files[3]):
        dataset.caption_images()


def test_workers_import_nothing_heavy():
    heavy = "{'torch', 'vllm', 'pandas', 'transformers', 'openai'}"
    run = python(
        f"import sys, latteclip.captions.runner; print({heavy} & set(sys.modules))"
    )
    assert run.stdout.strip() == "set()"
