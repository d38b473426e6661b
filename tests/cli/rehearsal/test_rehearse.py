import json
import os
import re
import tempfile

import pytest
from support.tiny import DEMO_CLIP, DEMO_LLAVA

from latteclip.cli import doctor, main
from latteclip.cli.rehearsal import bounded, learning, rehearse
from latteclip.cli.rehearsal.job import Job

# Photographs by the demo's CLIP, in a batch that a test can wait for.
PHOTOGRAPHS = {
    "dataset": "dtd",
    "clip": {"model": f"local-dir:{DEMO_CLIP}", "pretrained": None},
    "finetune": {"batch_size": 4},
    "threads": {"finetune": 1},  # two would wait for each other where cores are busy
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder and an empty one for temporary files, which is returned."""
    for name in ("work", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(doctor, "CHECKS", {})
    return tmp_path / "temporary"


@pytest.fixture
def with_gpu(tmp_path, monkeypatch):
    """A driver that lists a GPU, which torch does not see, and an empty cache of models."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text("#!/bin/sh\necho GPU-0\n")
    (tools / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # nothing is to be locked


def doctored(capsys, *config):
    """Exit status, and the lines of `doctor --gpu` by name."""
    status = main.main(["doctor", "--gpu", *(["--config", *config] if config else [])])
    found = {}
    for line in capsys.readouterr().out.splitlines():
        level, name, text = line.split(maxsplit=2)
        found.setdefault(name, []).append((level, text))
    return status, found


@pytest.mark.slow
def test_the_demo_is_rehearsed_and_nothing_stays(place, capsys, monkeypatch):
    # Whatever else keeps this machine busy.
    monkeypatch.setattr(rehearse, "SHARES", dict.fromkeys(rehearse.SHARES, 1_000.0))
    status, found = doctored(capsys, "dataset=demo", "seeds=1")
    assert status == 0, found
    assert list(found) == ["rehearsal", "loader", "training", "captioner", "estimate"]
    assert re.match(r"[1-9]\d* training images per second", found["loader"][0][1])
    assert re.match(
        r"latteclip: [1-9]\d* samples per second in batches of 128", found["training"][0][1]
    )
    assert re.search(r"\d+ questions at once: .* such as '\w+ ", found["captioner"][0][1])
    (hours, disk) = (text for _, text in found["estimate"])
    assert re.match(r"demo on one such .*\(captions .*, fine-tuning .*, evaluation", hours)
    assert "tuned models" in disk
    assert list(place.iterdir()) == []
    assert os.listdir() == []


def test_parts_that_hang_are_ended_and_the_rest_is_told(place, capsys, monkeypatch, tmp_path):
    hanging = tmp_path / "python"
    hanging.write_text("#!/bin/sh\nexec sleep 300\n")
    hanging.chmod(0o755)
    monkeypatch.setattr(rehearse.sys, "executable", str(hanging))
    monkeypatch.setattr(rehearse, "SHARES", dict.fromkeys(rehearse.SHARES, 1.0))
    status, found = doctored(capsys, "dataset=demo")
    assert status == 1
    for part in rehearse.SHARES:
        [(level, text)] = found[part]
        assert level == "warning"
        assert text.startswith("did not finish in 1 s")
    assert (
        "note",
        "not measured, so without hours: captions, fine-tuning, evaluation and pseudo-labels",
    ) in found["estimate"]
    assert list(place.iterdir()) == []


def only(part, **given):
    """What one part finds, of the demo with what is given."""
    job = Job("demo", "cpu", {"dataset": "demo", **given})
    with tempfile.TemporaryDirectory() as folder:
        rehearsal = rehearse.Rehearsal(job.configuration(), job, folder, tell_all=False)
        return [(one.level, one.text) for one in getattr(rehearsal, part)()]


def test_a_captioner_that_does_not_start(place, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "nobody_knows"}))
    given = {"engine": "transformers", "model": str(model)}
    [(level, text)] = only("captioner", captioner=given)
    assert level == "warning"
    assert text.startswith(f"Captioner model '{model}' cannot be loaded")


def test_a_captioner_by_transformers(place):
    given = {"engine": "transformers", "model": str(DEMO_LLAVA)}
    [(level, text)] = only("captioner", captioner=given)
    assert level == "ok", text
    assert re.match(r"transformers \S+ starts in \d+ s; [1-9]\d* questions at once: ", text)


@pytest.mark.parametrize("method", ["zero_shot", "flyp"])
def test_a_captioner_that_nobody_asks_is_not_rehearsed(place, method):
    said = [("note", "no method that is asked for has captions")]
    assert only("captioner", method=method) == said


def test_captions_of_ones_own_are_not_rehearsed(place):
    file = place / "captions.csv"
    file.touch()
    given = {"engine": "file", "images_file": str(file)}
    assert only("captioner", captioner=given) == [("note", "captions are your own")]


def test_methods_that_do_not_train_are_not_rehearsed(place):
    assert only("training", method="zero_shot") == [("note", "no method that is asked for trains")]


@pytest.mark.parametrize("part", ["loader", "captioner"])
def test_a_model_that_the_cache_lacks_is_not_fetched(place, with_gpu, capsys, monkeypatch, part):
    monkeypatch.setattr(rehearse.Rehearsal, "checks", lambda self: {part: getattr(self, part)})
    status, found = doctored(capsys, "dataset=dtd", "method=latteclip")
    assert status == 1
    [(_, text)] = found[part]
    model, note = {
        "loader": ("ViT-B-32", "ViT-B-32@laion2b_s34b_b79k"),
        "captioner": ("llava-hf/llava-v1.6-mistral-7b-hf",) * 2,
    }[part]
    assert text == (
        f"The cache lacks {model}, or a part of it, and a rehearsal downloads nothing; fetch it "
        f"with: latteclip workflow -j1 resources/models/{note.replace('/', '--')}.json --config "
        "dataset=dtd method=latteclip"
    )


# --- parts in this process -----------------------------------------------------------------------


def test_a_training_on_made_photographs(place, tmp_path):
    found = learning.training(Job("dtd", "cpu", PHOTOGRAPHS), tmp_path)
    assert re.fullmatch(r"latteclip: \d+ samples per second in batches of 4", found["text"])
    assert found["rate"] > 0
    assert found["steps"] > 0
    assert found["written"] > (DEMO_CLIP / "open_clip_model.safetensors").stat().st_size
    assert found["held"] is None  # it is in a folder


def test_several_processes_share_out_the_batch(place, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        learning, "finetune", lambda files, settings, *_, **__: asked.append(settings)
    )
    monkeypatch.setattr(learning, "_measured", lambda *_: {"rate": 1.0})
    given = {**PHOTOGRAPHS, "finetune": {"batch_size": 12}, "processes": {"finetune": 3}}
    assert learning.training(Job("dtd", "cpu", given), tmp_path)["text"].endswith("batches of 4")
    assert asked[0].finetune.batch_size == 4


def test_the_loader_counts_images(place, tmp_path, monkeypatch):
    monkeypatch.setattr(learning, "LOADER_SECONDS", 0.1)
    found = learning.loader(Job("dtd", "cpu", PHOTOGRAPHS), tmp_path)
    assert found["rate"] > 0
    assert found["text"].endswith("training images per second, decoded anew, with 1 CPU thread")


# --- what is rehearsed, and what is said ---------------------------------------------------------


def scope(*config):
    with rehearse.rehearsal(config, [], tell_all=False) as checks:
        return checks, [(one.level, one.text) for one in checks["rehearsal"]()]


def test_without_a_gpu_the_demo_stands_in(place):
    checks, said = scope("dataset=dtd,eurosat", "method=latteclip")
    assert said[0] == ("ok", "at most 5 minutes, with the models of demo")
    assert "ViT-B-32 and llava-hf/llava-v1.6-mistral-7b-hf, for which demo's" in said[1][1]
    texts = [one.text for one in checks["estimate"]()]
    assert [text.partition(":")[0] for text in texts] == [
        "dtd, eurosat on one A100, on paper",
        "dtd, eurosat on one H100, on paper",
        "disk of dtd, eurosat",
    ]


def test_with_a_gpu_the_configured_models_are_rehearsed(place, with_gpu):
    _, said = scope("dataset=dtd,demo,eurosat")
    assert said == [
        ("ok", "at most 5 minutes, with the models of dtd"),
        ("note", "not rehearsed are the models of demo"),
    ]


def test_the_parts_and_their_ends_take_five_minutes_at_most():
    assert sum(rehearse.SHARES.values()) + 2 * bounded.GRACE * len(rehearse.SHARES) <= 300


def test_a_dataset_of_unknown_size_is_named(place):
    os.mkdir("photographs")
    checks, _ = scope("dataset=mine", "image_dir=photographs")
    found = list(checks["estimate"]())
    assert found[0].text == "nobody knows yet how many images mine have"
    assert found[0].advice.endswith("latteclip workflow -j1 results/mine/images.parquet")


def test_a_mistake_in_the_configuration_is_one_sentence(place, capsys):
    assert main.main(["doctor", "--gpu", "--config", "datset=demo"]) == 2
    assert "did you mean dataset?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "error", "said", "text"),
    [
        (None, None, "Loading.\n\n", "did not finish in 7 s (it last said: Loading.)"),
        (-9, None, "", "was killed by signal 9"),
        (1, None, "a\nKeyError: 'b'\n", "ended with status 1 (it last said: KeyError: 'b')"),
        (1, "Too large; make it smaller.", "noise", "Too large; make it smaller"),
    ],
)
def test_every_end_of_a_part_is_one_sentence(status, error, said, text):
    found = rehearse.problem("training", status, 7.0, error, said)
    assert (found.level, found.text) == ("warning", text)
    assert error or found.advice
