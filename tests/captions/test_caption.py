import dataclasses
import logging
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.captioning import (
    CLASSNAMES,
    GROUPS,
    LABELS,
    SETTINGS,
    describe,
    mean_colour,
    provenance,
    read,
)
from support.tiny import write_pictures, write_pseudo_labels

from latteclip.captions import answers
from latteclip.captions.answers import Answer
from latteclip.captions.groups import draw_groups
from latteclip.captions.pictures import grid
from latteclip.captions.request import AGAIN
from latteclip.captions.shard import Shard, gather_captions, shard_of
from latteclip.core.errors import UserError


def same_picture(a, b):
    return a.size == b.size and np.array_equal(np.asarray(a), np.asarray(b))


# --- what is asked and written -------------------------------------------------------------------


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
    assert columns["caption"] == [f"What? {mean_colour(Image.open(f))}" for f in dataset.files]
    assert columns["finish_reason"] == ["stop"] * 7
    assert columns["n_tokens"] == [7] * 7
    assert columns["attempts"] == [1] * 7
    assert columns["error"] == [None] * 7
    assert len(set(columns["digest"])) == 7


def test_place_in_the_image_prompt_takes_the_pseudo_label(dataset, recorder):
    columns = dataset.caption_images("Is it {}?", labels=dataset.labels)
    wanted = [f"Is it {CLASSNAMES[label]}?" for label in LABELS]
    assert recorder.prompts == wanted
    assert columns["prompt"] == wanted


def test_place_in_the_prompt_without_pseudo_labels_is_refused(dataset, recorder):
    with pytest.raises(UserError, match="--pseudo-labels"):
        dataset.caption_images("Is it {}?")


def test_groups_show_the_grid_of_their_members(dataset, recorder):
    columns = dataset.caption_groups()
    drawn = draw_groups(dataset.names, LABELS, GROUPS.seed)
    assert columns["id"] == dataset.names
    assert columns["members"] == [[dataset.names[m] for m in drawn[i]] for i in range(7)]
    assert columns["pseudo_label"] == LABELS
    assert columns["prompt"] == [f"All {CLASSNAMES[label]}?" for label in LABELS]
    assert recorder.pictures == 1
    for request in recorder.requests:
        pictures = [Image.open(dataset.files[member]) for member in drawn[request.key]]
        [picture] = request.pictures
        assert same_picture(picture, grid(pictures, GROUPS.canvas, GROUPS.gap))


def test_a_group_may_be_four_pictures(dataset, recorder):
    dataset.caption_groups(groups=dataclasses.replace(GROUPS, layout="multi_image"))
    drawn = draw_groups(dataset.names, LABELS, GROUPS.seed)
    assert recorder.pictures == 4
    for request in recorder.requests:
        for picture, member in zip(request.pictures, drawn[request.key], strict=True):
            assert same_picture(picture, Image.open(dataset.files[member]))


def test_groups_per_class_are_fewer_rows_in_the_order_of_the_index(dataset, recorder):
    columns = dataset.caption_groups(groups=dataclasses.replace(GROUPS, groups_per_class=2))
    assert sorted(columns["pseudo_label"]) == [0, 0, 1, 1]
    assert columns["id"] == sorted(columns["id"])
    assert len(recorder.requests) == 4


def test_provenance_is_written(dataset, recorder, monkeypatch):
    monkeypatch.setattr(answers, "today", lambda: "2026-02-03")
    dataset.caption_groups("All?")
    metadata = provenance(dataset.output)
    assert metadata["captioner"] == asdict(SETTINGS)
    assert metadata["engine"] == "recorder 1"
    assert metadata["groups"] == asdict(GROUPS)
    assert metadata["prompt"] == "All?"
    assert metadata["date"] == "2026-02-03"
    assert metadata["code"].startswith("latteclip ")


def test_pseudo_labels_of_other_images_are_refused(dataset, recorder):
    dataset.labels = write_pseudo_labels(
        dataset.folder / "other.parquet", dataset.names[1:], LABELS[1:]
    )
    with pytest.raises(UserError, match=r"lacks 1 of 7 images, the first '000\.png'"):
        dataset.caption_groups()


# --- nothing is asked twice ----------------------------------------------------------------------


def test_a_deleted_table_is_made_again_byte_by_byte_without_an_engine(dataset, recorder):
    dataset.caption_images()
    before = dataset.output.read_bytes()
    dataset.output.unlink()
    recorder.forget()
    dataset.caption_images()
    assert (recorder.starts, recorder.requests) == (0, [])
    assert dataset.output.read_bytes() == before


def test_added_images_alone_are_asked(dataset, recorder):
    dataset.caption_images()
    recorder.forget()
    added = write_pictures(dataset.folder / "more", 3, seed=9)
    for file in added:
        os.rename(file, Path(file).with_name(f"0010{Path(file).name}"))
    added = [str(Path(file).with_name(f"0010{Path(file).name}")) for file in added]
    dataset.index([*dataset.files[:2], *added, *dataset.files[2:]])
    columns = dataset.caption_images()
    assert len(recorder.requests) == 3
    assert len(columns["id"]) == 10


def test_a_changed_image_alone_is_asked_again(dataset, recorder):
    dataset.caption_images()
    recorder.forget()
    Image.new("RGB", (9, 9), (1, 2, 3)).save(dataset.files[4])
    columns = dataset.caption_images()
    assert len(recorder.requests) == 1
    assert columns["caption"][4] == "What? 1 2 3"


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 9}, {"concurrency": 3}, {"retries": 1}, {"gpu_memory_utilization": 0.3}],
    ids=str,
)
def test_what_changes_the_speed_alone_asks_nothing(dataset, recorder, change):
    dataset.caption_images()
    recorder.forget()
    dataset.caption_images(**change)
    assert recorder.requests == []


def test_another_prompt_asks_anew_and_the_first_is_still_held(dataset, recorder):
    dataset.caption_images("What?")
    dataset.caption_images("Where?")
    assert len(recorder.requests) == 14
    recorder.forget()
    assert dataset.caption_images("What?")["prompt"] == ["What?"] * 7
    assert recorder.requests == []


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


def test_a_broken_run_goes_on_where_it_stopped(dataset, recorder):
    def break_down(request):
        if request.key == 4:
            raise RuntimeError("the machine is gone")
        return describe(request)

    recorder.reply = break_down
    with pytest.raises(RuntimeError):
        dataset.caption_images()
    assert not dataset.output.exists()
    answered = sum(1 for _ in (dataset.folder / "store").glob("*.jsonl"))
    assert answered == 1
    recorder.reply = describe
    recorder.forget()
    broken = dataset.caption_images()
    assert 0 < len(recorder.requests) < 7
    assert broken == dataset.caption_images(store=False)


def test_without_a_store_everything_is_asked(dataset, recorder):
    dataset.caption_images(store=False)
    dataset.caption_images(store=False)
    assert len(recorder.requests) == 14
    assert not (dataset.folder / "store").exists()


# --- answers are looked at -----------------------------------------------------------------------


def test_captions_are_cleaned_and_the_answer_is_kept_as_it_was(dataset, recorder):
    recorder.reply = lambda request: Answer('Sure, here it is:\n"A  dot."', "stop", 9)
    assert dataset.caption_images()["caption"] == ["A dot."] * 7
    [part] = (dataset.folder / "store").iterdir()
    assert part.read_text().count("Sure, here it is:") == 7


def test_empty_and_cut_answers_are_asked_once_more(dataset, recorder):
    def reply(request):
        again = request.prompt.endswith(AGAIN)
        texts = {
            1: ("", "A dot."),  # empty, then good
            2: ("A long", "A short."),  # cut, then good
            3: ("A long", "Still long"),  # cut twice
            4: ("", ""),  # empty twice
            5: ("", "Long"),  # empty, then cut
            6: ("A long", ""),  # cut, then empty
        }
        text = texts.get(request.key, ("Good.", None))[again]
        return Answer(text, "length" if "ong" in text else "stop", 5 if again else 9)

    recorder.reply = reply
    columns = dataset.caption_images(max_failed=0.5)
    assert columns["caption"] == ["Good.", "A dot.", "A short.", "A long", "", "Long", "A long"]
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
    recorder.reply = lambda request: Answer("" if request.key in (1, 3) else "a", "stop", 1)
    with pytest.raises(UserError, match=r"nothing for 2 of 7 .* captioner\.max_failed \(5%\)"):
        dataset.caption_images()
    assert not dataset.output.exists()
    assert dataset.caption_images(max_failed=0.3)["caption"].count("") == 2


def test_an_error_is_recorded_for_its_image_and_asked_again_by_the_next_run(dataset, recorder):
    def reply(request):
        if request.key == 2:
            return Answer("", "error", None, "HTTP 400: bad picture")
        return describe(request)

    recorder.reply = reply
    columns = dataset.caption_images(max_failed=0.2)
    assert columns["error"] == [None, None, "HTTP 400: bad picture", *[None] * 4]
    assert columns["finish_reason"][2] == "error"
    assert (columns["caption"][2], columns["n_tokens"][2]) == ("", None)
    with pytest.raises(UserError, match=r"did not answer for 1 \(the first error: HTTP 400"):
        dataset.caption_images()
    recorder.reply = describe
    recorder.forget()
    assert dataset.caption_images()["error"] == [None] * 7
    assert [request.key for request in recorder.requests] == [2]


def test_a_run_of_failures_ends_early(dataset, recorder, monkeypatch):
    monkeypatch.setattr("latteclip.captions.ask.HOPELESS", 3)
    recorder.reply = lambda request: Answer("", "error", None, "no connection.")
    with pytest.raises(UserError, match=r"3 requests failed one after another.*no connection"):
        dataset.caption_images()
    assert len(recorder.requests) < 7


def test_the_log_counts(dataset, recorder, caplog):
    caplog.set_level(logging.INFO)
    dataset.caption_images()
    assert "recorder 1 started" in caplog.text
    assert "Asked 7 requests about 7 rows" in caplog.text
    assert "tokens/s" in caplog.text
    assert "Wrote 7 captions, 0 empty, 0 without an answer, 0 cut" in caplog.text


# --- shards --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["images", "groups"])
def test_shards_give_the_same_bytes_however_many_there_are(dataset, recorder, kind, n):
    groups = dataclasses.replace(GROUPS, groups_per_class=3)
    caption = {
        "images": dataset.caption_images,
        "groups": lambda **options: dataset.caption_groups(groups=groups, **options),
    }[kind]
    whole = dataset.folder / "whole.parquet"
    caption(output=whole, store=False)
    asked = len(recorder.requests)
    recorder.forget()
    shards = [dataset.folder / f"shards/{number}.parquet" for number in range(1, n + 1)]
    for number, path in enumerate(shards, start=1):
        rows = caption(output=path, shard=Shard(number, n), store=False)
        assert {shard_of(row, n) for row in rows["id"]} <= {number}
    assert len(recorder.requests) == asked
    gathered = dataset.folder / "gathered.parquet"
    gather_captions(dataset.images, [str(path) for path in shards], str(gathered))
    assert read(gathered) == read(whole)
    assert gathered.read_bytes() == whole.read_bytes()


def test_the_shard_of_an_image_does_not_depend_on_other_images():
    names = [f"{number}.png" for number in range(1000)]
    counts = [sum(shard_of(name, 4) == shard for name in names) for shard in range(1, 5)]
    assert all(abs(count - 250) < 60 for count in counts)
    assert shard_of("7.png", 4) == shard_of("7.png", 4)


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2"])
def test_a_shard_that_cannot_be_is_refused(text):
    with pytest.raises(UserError, match="not of the form 2/4"):
        Shard.parse(text)


def test_shards_of_other_images_or_prompts_are_refused(dataset, recorder):
    paths = [str(dataset.folder / f"{number}.parquet") for number in (1, 2)]
    dataset.caption_images(output=paths[0], shard=Shard(1, 2))
    dataset.caption_images("Where?", output=paths[1], shard=Shard(2, 2))
    with pytest.raises(UserError, match="differ in their prompt"):
        gather_captions(dataset.images, paths, str(dataset.output))
    dataset.caption_images(output=paths[1], shard=Shard(2, 2))
    dataset.index(dataset.files[:3])
    with pytest.raises(UserError, match="does not call for"):
        gather_captions(dataset.images, paths, str(dataset.output))
    assert not dataset.output.exists()


# --- captions of one's own -----------------------------------------------------------------------


def test_captions_of_ones_own_take_the_captioner_s_place(dataset, recorder):
    path = dataset.folder / "mine.csv"
    lines = [f'{name},"a  {name}, seen"' for name in reversed(dataset.names)]
    path.write_text("\n".join(["image_id,caption", *lines]))
    columns = dataset.caption_images(engine="file", images_file=str(path))
    assert columns["caption"] == [f"a {name}, seen" for name in dataset.names]
    assert provenance(dataset.output)["engine"] == "file"
    assert recorder.starts == 0


def test_captions_of_ones_own_must_cover_the_images(dataset, recorder):
    path = dataset.folder / "mine.csv"
    path.write_text(f"image_id,caption\n{dataset.names[0]},x\n")
    with pytest.raises(
        UserError, match=r"lacks the captions of 6 of 7 .*\(the first: the file has no"
    ):
        dataset.caption_images(engine="file", images_file=str(path))
