import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.captioning import describe
from support.tiny import ROOT, write_pictures

from latteclip.captions.answer_cache import Answer
from latteclip.captions.engines import processors
from latteclip.captions.pictures import Layout
from latteclip.captions.requests import RETRY_PROMPT, Identity, digest, digest_of_images
from latteclip.captions.runner import PIXELS, Preparer, Task, workers
from latteclip.core.errors import UserError


def test_a_deleted_table_is_made_again_byte_by_byte_without_an_engine(dataset, recorder):
    dataset.caption_images()
    before = dataset.output.read_bytes()
    dataset.output.unlink()
    recorder.forget()
    dataset.caption_images()
    assert (recorder.starts, recorder.requests) == (0, [])
    assert dataset.output.read_bytes() == before


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


def test_a_setting_that_changes_the_speed_alone_asks_nothing(dataset, recorder):
    dataset.caption_images()
    recorder.forget()
    dataset.caption_images(batch_size=9, retries=1)
    assert recorder.requests == []


def test_another_prompt_asks_anew_and_the_first_is_still_held(dataset, recorder):
    dataset.caption_images("What?")
    dataset.caption_images("Where?")
    assert len(recorder.requests) == 14
    recorder.forget()
    assert dataset.caption_images("What?")["prompt"] == ["What?"] * 7
    assert recorder.requests == []


def test_another_rule_for_special_tokens_asks_anew(dataset, recorder, monkeypatch):
    dataset.caption_images()
    monkeypatch.setattr(processors, "special_tokens", lambda model, revision: "another rule")
    dataset.caption_images()
    assert len(recorder.requests) == 14


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
    recorder.reply = describe
    recorder.forget()
    broken = dataset.caption_images()
    assert 0 < len(recorder.requests) < 7
    assert broken == dataset.caption_images(store=False)


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
    with pytest.raises(UserError, match=r"captioner\.max_failed"):
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
    with pytest.raises(UserError, match="HTTP 400"):
        dataset.caption_images()
    recorder.reply = describe
    recorder.forget()
    assert dataset.caption_images()["error"] == [None] * 7
    assert [request.key for request in recorder.requests] == [2]


def test_a_run_of_failures_ends_early(dataset, recorder, monkeypatch):
    monkeypatch.setattr("latteclip.captions.runner.MAX_CONSECUTIVE_FAILURES", 3)
    recorder.reply = lambda request: Answer("", "error", None, "no connection.")
    with pytest.raises(UserError, match="no connection"):
        dataset.caption_images()
    assert len(recorder.requests) < 7


@pytest.mark.parametrize(
    "answer",
    [
        # Ten megabytes for nine tokens.
        *(Answer("x" * 10**7, "stop", 9), Answer("a \ud800", "stop", 1), Answer(3, "stop", 1)),
    ],
    ids=lambda answer: ascii(answer)[:30],
)
def test_an_invalid_answer_is_a_failure_of_its_row(dataset, recorder, answer):
    recorder.reply = lambda request: answer if request.key == 2 else describe(request)
    columns = dataset.caption_images(max_failed=0.2)
    assert columns["finish_reason"][2] == "error"
    assert columns["error"][2]
    assert columns["error"].count(None) == 6
    recorder.reply = describe
    recorder.forget()
    assert dataset.caption_images()["error"] == [None] * 7
    assert [request.key for request in recorder.requests] == [2]


# --- worker processes ----------------------------------------------------------------------------


def preparer(*, as_urls=False, cached=(), **layout):
    return Preparer(identity(**layout), as_urls, cached)


def identity(**layout):
    return Identity("m", None, "auto", None, 77, Layout(**layout))


def prepare(tasks, **options):
    with workers(preparer(**options), 2, PIXELS) as pool:
        return list(pool.in_order(tasks))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), 11)


def test_tasks_come_back_in_order_and_cached_ones_are_not_decoded(files):
    images = [digest_of_images([Path(file).read_bytes()]) for file in files]
    cached = [digest(image, 1, "?", identity()) for image in images[:4]]
    tasks = [Task(10 + number, [file], "?") for number, file in enumerate(files)]
    prepared = prepare(tasks, cached=cached)
    assert [item.task for item in prepared] == tasks
    assert [item.image_digests for item in prepared] == images
    assert [item.pictures is None for item in prepared] == [n < 4 for n in range(11)]
    for item, file in zip(prepared[4:], files[4:], strict=True):
        [picture] = item.pictures
        assert np.array_equal(np.asarray(picture), np.asarray(Image.open(file)))


def test_an_image_that_is_no_image_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a\.png"):
        prepare([Task(0, [str(tmp_path / "a.png")], "?")], as_urls=True)


def test_workers_import_nothing_heavy():
    heavy = "{'torch', 'vllm', 'pandas', 'transformers'}"
    code = f"import sys, latteclip.captions.runner; print({heavy} & set(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.stdout.strip() == "set()", run.stderr


PARENT = """
import sys, time
from latteclip.captions.pictures import Layout
from latteclip.captions.requests import Identity
from latteclip.captions.runner import Preparer, Task, workers
if __name__ == "__main__":
    identity = Identity("m", None, "auto", None, 77, Layout())
    pool = workers(Preparer(identity, False, ()), 2, 64 * 64)
    next(pool.in_order(Task(n, [sys.argv[1]], "?") for n in range(1000)))
    print(*pool._pool._processes, flush=True)
    time.sleep(60)
"""


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_workers_do_not_outlive_a_killed_parent(files, tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), files[0]],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(200):
        if not any(map(is_running, pids)):
            break
        time.sleep(0.05)
    assert not any(map(is_running, pids))
