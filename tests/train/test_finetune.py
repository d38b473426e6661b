import contextlib
import json
import math
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from support.backbones import CPU, pictures
from support.checkout import hear_interrupts
from support.tiny import (
    DEMO_CLIP,
    FINETUNE,
    write_captions,
    write_index,
    write_pictures,
    write_pseudo_labels,
)

from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.clip.classifier import load_classifier
from latteclip.clip.encode import class_embeddings, encode_files
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.labels.fusion import fuse
from latteclip.labels.label_sources import CalibratedFeatures, label_votes
from latteclip.train import finetune as finetuning
from latteclip.train import training as trainings
from latteclip.train.data import TrainingFiles
from latteclip.train.finetune import CheckpointManager, finetune
from latteclip.train.images import Augmentation, ImageCache, TrainingImages, open_cache
from latteclip.train.settings import Compute, Finetune, FinetuneSettings, Recipe
from latteclip.train.training import Training

CLASSNAMES = ["striped", "dotted", "woven"]
LABELS = [2, 0, 2, 1, 0, 2, 1]
WEIGHTS = "open_clip_model.safetensors"


class Inputs:
    """Seven training pictures with pseudo-labels and captions; test pictures are not on disk."""

    def __init__(self, folder):
        self.folder = folder
        train = write_pictures(folder / "pictures", 7)
        files = [str(folder / "test0.png"), *train, str(folder / "test1.png")]
        splits = ["test", *["train"] * 6, "val", "test"]
        self.files, self.names = train, [Path(file).name for file in train]
        self.index = str(folder / "i.parquet")
        self.write_index = partial(write_index, self.index, files, splits, [0] * 9, CLASSNAMES)
        self.write_index()
        self.labels = write_pseudo_labels(folder / "p.parquet", self.names, LABELS)
        self.images = write_captions(
            folder / "c.parquet", self.names, [f"a red {CLASSNAMES[label]}" for label in LABELS]
        )
        self.groups = write_captions(
            folder / "g.parquet",
            [str(i) for i in range(7)],
            [f"mostly {CLASSNAMES[label]} {i}" for i, label in enumerate(LABELS)],
            LABELS,
            [[name] for name in self.names],
        )

    def settings(
        self,
        objective="latteclip",
        switches=None,
        compute=None,
        model=f"local-dir:{DEMO_CLIP}",
        template="a photo of a {} texture.",
        synonyms=None,
        head="tuned",
        **finetune,
    ):
        return FinetuneSettings(
            head=head,
            model=model,
            pretrained=None,
            template=template,
            class_synonyms=synonyms or {},
            objective=objective,
            finetune=Finetune(**FINETUNE | finetune),
            switches=switches or {},
            compute=Compute(**{"checkpoint_minutes": 0, **(compute or {})}),
        )

    def run(self, name, objective="latteclip", seed=3, captions=True, written=None, **settings):
        self.write_index(written)
        paths = (self.images, self.groups) if captions else (None, None)
        return self.finetune(name, self.settings(objective, **settings), seed, *paths)[:2]

    def finetune(self, name, settings, seed, *files, **more):
        outputs = [self.folder / name / part for part in ("model", "history.parquet", "checkpoint")]
        inputs = TrainingFiles(self.index, self.labels, *files, **more)
        finetune(inputs, settings, *map(str, outputs), seed=seed, device="cpu", threads=1)
        return outputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return Inputs(tmp_path_factory.mktemp("finetune"))


@pytest.fixture(scope="module")
def tuned(inputs):
    """LatteCLIP tuned for four steps; it never touches a test image, none of which exists."""
    return inputs.run("tuned")


def state(model):
    return load_file(model / WEIGHTS)


def history(path):
    """All of a history that equal runs have in common."""
    return pq.read_table(path).drop_columns(["images_per_second", "data_wait"])


def test_classifier_is_the_prototypes_of_length_one(tuned, demo_clip):
    head, described = load_classifier(Path(tuned[0]) / clips.CLASSIFIER)
    classifier = head.weights
    assert described["classnames"] == CLASSNAMES
    torch.testing.assert_close(classifier.norm(dim=1), torch.ones(3))
    start = class_embeddings(demo_clip, "a photo of a {} texture.", CLASSNAMES)
    cosines = (classifier * start).sum(dim=1)
    assert (cosines > 0.9).all()  # momentum: 4 steps of alpha 0.01
    assert (cosines < 1).all()


def test_history_has_a_row_a_step(tuned):
    metadata = tables.read_metadata(tuned[1], "step")
    assert (metadata["seed"], metadata["settings"]["finetune"]) == (3, FINETUNE)
    table = pq.read_table(tuned[1]).to_pydict()
    assert table["step"] == [0, 1, 2, 3]
    assert table["epoch"] == [0, 0, 1, 1]
    assert table["lr"] == pytest.approx([Recipe(**FINETUNE).rate(s, 4) for s in range(4)])
    for a, b, loss in zip(
        table["loss_zero_shot"], table["loss_finetuned"], table["loss"], strict=True
    ):
        assert a + b == pytest.approx(loss, rel=1e-5)
    shares = zip(*(table[f"weight_{kind}"] for kind in ("class", "image", "group")), strict=True)
    assert [sum(share) for share in shares] == pytest.approx([1] * 4)
    assert table["prototype_drift"][0] == pytest.approx(0, abs=1e-6)
    assert table["prototype_drift"][3] > 0
    assert all(speed > 0 for speed in table["images_per_second"])
    assert all(0 < share < 1 for share in table["data_wait"])
    assert all(0 <= balance <= 1.0001 for balance in table["class_balance"])
    assert all(0 <= entropy <= math.log(3) + 1e-4 for entropy in table["entropy"])


def test_the_same_seed_gives_the_same_bytes_and_another_another_model(inputs, tuned):
    assert_same_run(inputs.run("again"), tuned)
    other = inputs.run("other", seed=4)
    assert not torch.equal(state(other[0])["visual.proj"], state(tuned[0])["visual.proj"])


def test_training_has_the_first_template_and_the_classes_own_names(inputs):
    words = {"template": ["a photo of a {} texture.", "a {}"], "synonyms": {"dotted": ["spotted"]}}
    written = {CLASSNAMES[0]: CLASSNAMES[0].upper()}
    plain, more = (
        inputs.run(f"words {len(options)}", "flyp", epochs=1, **options)
        for options in ({}, words | {"written": written})
    )
    assert (plain[0] / WEIGHTS).read_bytes() == (more[0] / WEIGHTS).read_bytes()
    (wanted, said), (found, said_more) = (
        load_classifier(run[0] / clips.CLASSIFIER) for run in (plain, more)
    )
    assert torch.equal(found.weights, wanted.weights)
    assert said == {"classnames": CLASSNAMES, "template": "a photo of a {} texture."}
    assert said_more == {
        **said,
        "templates": words["template"],
        "class_synonyms": words["synonyms"],
        "written_names": written,
    }


def test_scale_is_clamped(inputs):
    _, history = inputs.run("scale", lr=5.0, epochs=1, warmup_steps=0, batch_size=7)
    scale = pq.read_table(history)["logit_scale"][0].as_py()
    assert scale == pytest.approx(0) or scale == pytest.approx(math.log(100))


def test_flyp_trains_without_captions(inputs):
    model, history = inputs.run("flyp", "flyp", captions=False, epochs=1)
    table = pq.read_table(history).to_pydict()
    assert table["loss"] == table["loss_zero_shot"]
    assert table["loss_finetuned"] == [None, None]
    clip = clips.load(f"local-dir:{model}", None, torch.device("cpu"))
    torch.testing.assert_close(
        load_classifier(Path(model) / clips.CLASSIFIER)[0].weights,
        class_embeddings(clip, "a photo of a {} texture.", CLASSNAMES),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_head_made_anew_is_of_the_tuned_features_and_the_weights_stay(inputs, tuned):
    model, history = inputs.run("refit", head="refit")
    assert state(model).keys() == state(tuned[0]).keys()
    for name, weights in state(tuned[0]).items():
        assert torch.equal(weights, state(model)[name]), name
    assert tables.read_metadata(history, "step")["marks"] == ["ours"]
    clip = clips.load(f"local-dir:{model}", None, torch.device("cpu"))
    features = encode_files(clip, inputs.files, 7, 1)[:]
    scale = clip.model.logit_scale.exp().item()
    texts = class_embeddings(clip, "a photo of a {} texture.", CLASSNAMES)
    images = CalibratedFeatures.of(features.clone(), texts, scale)
    votes = label_votes(torch.tensor(LABELS), 3)
    wanted = images.classifier(fuse(images, votes).weights, scale)
    head, _ = load_classifier(Path(model) / clips.CLASSIFIER)
    torch.testing.assert_close(head.scores(features), wanted.scores(features), rtol=1e-3, atol=1e-4)


def test_a_loss_that_explodes_stops_the_training_and_writes_nothing(inputs):
    with pytest.raises(UserError, match=r"finetune\.lr"):
        inputs.run("explodes", lr=1e30, epochs=3, warmup_steps=0)
    assert list((inputs.folder / "explodes").glob("*")) == []


# --- resuming ------------------------------------------------------------------------------------

EPOCHS = 4  # of two steps


@pytest.fixture(scope="module")
def unbroken(inputs):
    return inputs.run("unbroken", epochs=EPOCHS)


@pytest.fixture
def broken_after(inputs, monkeypatch):
    """Interrupts a run after so many steps and returns the folder of its checkpoint."""

    def broken_after(steps, name, **settings):
        save = CheckpointManager.save

        def save_and_break(self, training):
            save(self, training)
            if len(training.history) == steps:
                raise KeyboardInterrupt

        monkeypatch.setattr(CheckpointManager, "save", save_and_break)
        with pytest.raises(KeyboardInterrupt):
            inputs.run(name, epochs=EPOCHS, **settings)
        monkeypatch.setattr(CheckpointManager, "save", save)
        assert not (inputs.folder / name / "model").exists()
        folder = inputs.folder / name / "checkpoint"
        assert names(folder) == [f"step-{steps:08d}.pt"]
        return folder

    return broken_after


def assert_same_run(first, second):
    for name in (WEIGHTS, clips.CLASSIFIER):
        assert (first[0] / name).read_bytes() == (second[0] / name).read_bytes()
    assert history(first[1]) == history(second[1])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_broken_run_goes_on_to_the_same_bytes(inputs, unbroken, broken_after, caplog):
    folder = broken_after(2, "broken")
    torch.rand(3)
    with caplog.at_level("INFO"):
        resumed = inputs.run("broken", epochs=EPOCHS)
    assert "Resuming after step 2," in caplog.text
    assert_same_run(resumed, unbroken)
    assert not folder.exists()


def test_a_damaged_checkpoint_is_named_and_the_training_starts_again(
    inputs, unbroken, broken_after, caplog
):
    [file] = broken_after(6, "truncated").iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    resumed = inputs.run("truncated", epochs=EPOCHS)
    assert str(file) in caplog.text
    assert_same_run(resumed, unbroken)


@pytest.mark.parametrize(("minutes", "expected"), [(0, [2, 4, 6]), (2.5, [4])])
def test_checkpoints_come_by_the_clock_and_none_at_the_last_step(
    inputs, monkeypatch, minutes, expected
):
    """A step takes a minute here, an epoch two."""
    passed, saved, step, save = [], [], Training.step, CheckpointManager.save

    def spy(self, training):
        saved.append(len(training.history))
        save(self, training)

    monkeypatch.setattr(Training, "step", lambda *args: passed.append(60) or step(*args))
    monkeypatch.setattr(finetuning, "clock", lambda: sum(passed))
    monkeypatch.setattr(CheckpointManager, "save", spy)
    name = f"every {minutes} minutes"
    inputs.run(name, epochs=EPOCHS, compute={"checkpoint_minutes": minutes})
    assert saved == expected


@pytest.mark.parametrize(
    ("change", "key"), [({"lr": 2e-3}, r"finetune\.lr"), ({"images": "blue"}, "digest of images")]
)
def test_a_checkpoint_of_another_training_is_set_aside(
    inputs, broken_after, monkeypatch, caplog, change, key
):
    folder = broken_after(4, f"other {key}")
    if "images" in change:
        other = write_captions(inputs.folder / "b.parquet", inputs.names, ["blue"] * 7)
        monkeypatch.setattr(inputs, "images", other)
        change = {}
    aside = []
    train = finetuning._train
    monkeypatch.setattr(
        finetuning,
        "_train",
        lambda *args: (
            train(*args) or aside.extend(p.name for p in Path(f"{folder}-before").glob("*"))
        ),
    )
    found = inputs.run(f"other {key}", epochs=EPOCHS, **change)
    assert re.search(key, caplog.text) and "Resuming" not in caplog.text
    assert aside == ["step-00000004.pt"]
    assert not folder.exists() and not Path(f"{folder}-before").exists()
    assert_same_run(found, inputs.run(f"fresh {key}", epochs=EPOCHS, **change))


# --- kills and signals ---------------------------------------------------------------------------


def test_the_first_of_two_processes_that_train_the_same_wins(inputs, tuned, monkeypatch):
    """As where Snakemake was killed, its job went on, and a rerun started it again."""
    end = finetuning._classifier

    def end_second(*args):
        for made in tuned:
            copy = shutil.copytree if made.is_dir() else shutil.copy
            copy(made, inputs.folder / name / made.name)
        return end(*args)

    monkeypatch.setattr(finetuning, "_classifier", end_second)
    for name, lr in (("orphan", {}), ("another", {"lr": 0.5})):
        with pytest.raises(UserError, match="model") if lr else contextlib.nullcontext():
            inputs.run(name, **lr)
        model, steps = (inputs.folder / name / made.name for made in tuned)
        assert (model / WEIGHTS).read_bytes() == (tuned[0] / WEIGHTS).read_bytes()
        assert history(steps).equals(history(tuned[1]))
    assert names(inputs.folder / "another" / "checkpoint")  # nothing of it is lost either


@pytest.fixture(scope="module")
def command(inputs):
    """Starts a training of 40 epochs by the command line, its parts in a folder."""

    def command(folder):
        settings = asdict(inputs.settings(epochs=40))
        files = TrainingFiles(inputs.index, inputs.labels, inputs.images, inputs.groups)
        words = [
            sys.executable,
            "-m",
            "latteclip",
            "finetune",
            "--files",
            json.dumps(asdict(files)),
        ]
        words += ["--settings", json.dumps(settings), "--seed", "3"]
        words += ["--device", "cpu", "--threads", "1"]
        for part in ("model", "history", "checkpoint", "log"):
            words += [f"--{part}", str(folder / part)]
        return subprocess.Popen(words, stderr=subprocess.DEVNULL, preexec_fn=hear_interrupts)

    return command


@pytest.fixture(scope="module")
def by_command(command, tmp_path_factory):
    """The folder of such a training that nothing has ended."""
    folder = tmp_path_factory.mktemp("by_command")
    assert command(folder).wait() == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "numbers", [[signal.SIGKILL] * 2, [signal.SIGTERM, signal.SIGINT]], ids=["killed", "asked"]
)
def test_a_run_that_is_ended_again_and_again_ends_with_the_same_bytes(
    command, by_command, tmp_path, numbers
):
    """At random moments after it has written a checkpoint, through the command line."""
    delays = random.Random(0)
    folder, kept = tmp_path / "checkpoint", None
    ends = 0
    while True:
        before = set(folder.glob("step-*"))
        process = command(tmp_path)
        while process.poll() is None:  # until it has done an epoch more, then a little longer
            if set(folder.glob("step-*")) - before:
                time.sleep(delays.uniform(0, 0.4))
                break
            time.sleep(0.005)
        is_last = ends == len(numbers) or process.poll() is not None
        if not is_last:
            process.send_signal(numbers[ends])
        status = process.wait()
        log = (tmp_path / "log").read_text()
        if kept:  # a signal costs no step
            assert f"Resuming after step {kept}," in log
        if is_last:
            break
        if numbers[ends] != signal.SIGKILL:
            assert status == 128 + numbers[ends]
            kept = int(re.search(r"Step (\d+) is saved", log)[1])
            assert names(folder)[-1] == f"step-{kept:08d}.pt"
        ends += 1
    assert status == 0
    assert ends >= 1
    assert_same_run(*((run / "model", run / "history") for run in (by_command, tmp_path)))
    assert not folder.exists()


# --- how it is computed --------------------------------------------------------------------------


def test_where_pictures_are_kept_changes_no_byte(inputs, tuned, monkeypatch):
    assert_same_run(inputs.run("on disk too", compute={"cache_gib": 5e-5}), tuned)
    monkeypatch.setattr(ImageCache, "get", lambda *_: None)
    assert_same_run(inputs.run("nothing is kept"), tuned)


def test_a_training_that_runs_out_of_memory_says_what_to_set(inputs, monkeypatch):
    def step(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Training, "step", step)
    with pytest.raises(UserError, match=r"compute\.micro_batch"):
        inputs.run("no_memory", compute={"micro_batch": 4}, batch_size=7)
    assert not (inputs.folder / "no_memory" / "model").exists()


# --- BatchNorm -----------------------------------------------------------------------------------


def statistics(model):
    parts = ("running_mean", "running_var", "num_batches_tracked")
    return {name: value for name, value in state(model).items() if name.endswith(parts)}


@pytest.fixture
def with_batch_norm(backbones):
    return backbones["resnet"]


def features(model):
    clip = clips.load(model, None, CPU)
    with torch.no_grad():
        return encode.encode_images(clip, pictures(clip, 5))


def trained_at_no_rate(inputs, model, batch_norm):
    tuned, _ = inputs.run(
        batch_norm, "flyp", model=model, batch_norm=batch_norm, lr=1e-12, batch_size=7
    )
    return tuned, Path(model.removeprefix("local-dir:"))


def test_frozen_statistics_stay_to_the_byte_and_with_them_the_features(inputs, with_batch_norm):
    tuned, start = trained_at_no_rate(inputs, with_batch_norm, "frozen")
    before, after = statistics(start), statistics(tuned)
    assert before
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    torch.testing.assert_close(
        features(f"local-dir:{tuned}"), features(with_batch_norm), rtol=1e-5, atol=1e-6
    )


def test_trained_statistics_move_and_with_them_the_features(inputs, with_batch_norm):
    tuned, start = trained_at_no_rate(inputs, with_batch_norm, "train")
    before, after = statistics(start), statistics(tuned)
    assert not any(torch.equal(after[name], tensor) for name, tensor in before.items())
    cosines = (features(f"local-dir:{tuned}") * features(with_batch_norm)).sum(dim=1)
    assert (cosines < 0.999).all()


# --- marks ---------------------------------------------------------------------------------------


def marks(path):
    return tables.read(path, pq.read_schema(path))[1]["marks"]


@pytest.fixture
def own_predictions(inputs, demo_clip):
    """The class that CLIP sees in each training picture as `inputs.run` shows it first."""
    paths = [str(inputs.folder / "pictures" / name) for name in inputs.names]
    transform = Augmentation.of(demo_clip)
    room = open_cache(np.array([(70, 64)] * 7), transform.cached_side, 0, inputs.folder)
    files = TrainingImages(paths, transform, 3, room)
    batch = next(files.batches([[(0, i) for i in range(7)]], CPU, 1))
    classes = class_embeddings(demo_clip, "a photo of a {} texture.", CLASSNAMES)
    with torch.no_grad():
        features = encode.encode_images(demo_clip, batch)
    return (features @ classes.T).argmax(dim=1).tolist()


def test_predictions_that_hardly_agree_are_marked(inputs, own_predictions, tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, "MIN_CLASSES", 0)
    settings = {"captions": False, "epochs": 1, "batch_size": 7}
    for name, shift in (("agreeing", 0), ("disagreeing", 1)):
        labels = [(label + shift) % 3 for label in own_predictions]
        path = write_pseudo_labels(tmp_path / f"{name}.parquet", inputs.names, labels)
        monkeypatch.setattr(inputs, "labels", path)
        _, history = inputs.run(name, "flyp", **settings)
        [agreement] = pq.read_table(history)["agreement"].to_pylist()
        assert (agreement > 0.8) != bool(shift)
        assert marks(history) == (["collapsed"] if shift else [])


def test_supervision_trains_on_true_labels_and_is_marked(inputs):
    supervised = inputs.run("supervised", "flyp_supervised", epochs=1)
    assert "supervised" in marks(supervised[1])
    plain = inputs.run("plain", "flyp", epochs=1)
    assert "supervised" not in marks(plain[1])
    assert history(supervised[1])["loss"] != history(plain[1])["loss"]


def run_at_found_rate(inputs, name, lr, **settings):
    """Train at a rate as `find_learning_rate` writes it."""
    found = inputs.folder / "learning_rate.json"
    found.write_text(json.dumps({"lr": lr}))
    settings = inputs.settings("flyp", lr="auto", **settings)
    return inputs.finetune(name, settings, 3, learning_rate=str(found))


def test_a_history_names_the_settings_that_were_found(inputs):
    _, path, _ = run_at_found_rate(inputs, "auto", 2e-4, epochs=1, batch_size="auto")
    described = tables.read_metadata(path, "step")
    assert sorted(described["found"]) == ["batch_size", "lr"]
    assert described["settings"]["finetune"]["lr"] == 2e-4
    assert described["settings"]["finetune"]["batch_size"] == 64


@pytest.mark.parametrize("epochs", [3, 1], ids=["loss", "weights of the last step"])
def test_a_training_that_diverges_at_a_found_rate_leaves_the_pretrained_model(
    inputs, demo_clip, epochs
):
    sizes = {"batch_size": 7} if epochs == 1 else {}
    model, path, folder = run_at_found_rate(
        inputs, f"diverges {epochs}", 1e300, epochs=epochs, warmup_steps=0, **sizes
    )
    assert marks(path) == ["diverged"]
    start, end = state(DEMO_CLIP), state(model)
    assert all(torch.equal(tensor.float(), end[name].float()) for name, tensor in start.items())
    classifier, _ = load_classifier(model / clips.CLASSIFIER)
    texts = class_embeddings(demo_clip, "a photo of a {} texture.", CLASSNAMES)
    torch.testing.assert_close(classifier.weights, texts)
    losses = pq.read_table(path)["loss"].to_pylist()
    assert losses and all(map(math.isfinite, losses))
    assert not folder.exists()
