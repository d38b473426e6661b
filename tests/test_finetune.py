import json
import math
import random
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tiny import (
    DEMO_CLIP,
    OPTIMISER,
    write_captions,
    write_index,
    write_pictures,
    write_pseudo_labels,
)

from latteclip import checkpoints, monitor, tables
from latteclip import clip as clips
from latteclip.errors import UserError
from latteclip.finetune import FinetuneSettings, finetune
from latteclip.images import ImageFiles
from latteclip.training import Optimiser
from latteclip.training_data import TrainingFiles

CLASSNAMES = ["striped", "dotted", "woven"]
LABELS = [2, 0, 2, 1, 0, 2, 1]


class Inputs:
    """Seven training pictures with pseudo-labels and captions; test pictures are not on disk."""

    def __init__(self, folder):
        self.folder = folder
        train = write_pictures(folder / "pictures", 7)
        files = [str(folder / "test0.png"), *train, str(folder / "test1.png")]
        splits = ["test", *["train"] * 6, "val", "test"]
        self.names = [Path(file).name for file in train]
        self.index = write_index(folder / "i.parquet", files, splits, [0] * 9, CLASSNAMES)
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

    def settings(self, objective="latteclip", switches=None, compute=None, **optimiser):
        return FinetuneSettings(
            model=f"local-dir:{DEMO_CLIP}",
            pretrained=None,
            template="a photo of a {} texture.",
            objective=objective,
            optimiser=OPTIMISER | optimiser,
            switches=switches or {},
            compute=compute or {},
        )

    def run(self, name, objective="latteclip", seed=3, captions=True, **settings):
        captions = (self.images, self.groups) if captions else ()
        outputs = [self.folder / name / part for part in ("model", "history.parquet", "checkpoint")]
        finetune(
            TrainingFiles(self.index, self.labels, *captions),
            self.settings(objective, **settings),
            *map(str, outputs),
            seed=seed,
            device="cpu",
            threads=1,
        )
        return outputs[:2]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return Inputs(tmp_path_factory.mktemp("finetune"))


@pytest.fixture(scope="module")
def tuned(inputs):
    """LatteCLIP tuned for four steps; it never touches a test image, none of which exists."""
    return inputs.run("tuned")


def state(model):
    return load_file(model / "open_clip_model.safetensors")


def history(path):
    """All of a history that equal runs have in common."""
    return pq.read_table(path).drop_columns(["images_per_second", "data_wait"])


def test_both_towers_and_the_scale_move(tuned):
    start, end = state(DEMO_CLIP), state(tuned[0])
    assert start.keys() == end.keys()
    for name in ("visual.conv1.weight", "visual.proj", "token_embedding.weight", "logit_scale"):
        assert not torch.equal(start[name].float(), end[name].float()), name


def test_classifier_is_the_prototypes_of_length_one(tuned, demo_clip):
    classifier, classnames = clips.load_classifier(tuned[0])
    assert classnames == CLASSNAMES
    torch.testing.assert_close(classifier.norm(dim=1), torch.ones(3))
    start = clips.class_embeddings(demo_clip, "a photo of a {} texture.", CLASSNAMES)
    cosines = (classifier * start).sum(dim=1)
    assert (cosines > 0.9).all()  # momentum: 4 steps of alpha 0.01
    assert (cosines < 1).all()


def test_history_has_a_row_a_step(tuned):
    table = pq.read_table(tuned[1]).to_pydict()
    assert table["step"] == [0, 1, 2, 3]
    assert table["epoch"] == [0, 0, 1, 1]
    assert table["lr"] == pytest.approx([Optimiser(**OPTIMISER).rate(s, 4) for s in range(4)])
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


def test_history_tells_settings_and_seed(tuned):
    metadata = pq.read_schema(tuned[1]).metadata
    assert json.loads(metadata[b"seed"]) == 3
    assert json.loads(metadata[b"settings"])["optimiser"] == OPTIMISER


def test_the_same_seed_gives_the_same_bytes(inputs, tuned):
    again = inputs.run("again")
    for name in ("open_clip_model.safetensors", clips.CLASSIFIER):
        assert (again[0] / name).read_bytes() == (tuned[0] / name).read_bytes()
    assert history(again[1]) == history(tuned[1])


def test_another_seed_gives_another_model(inputs, tuned):
    other = inputs.run("other", seed=4)
    assert not torch.equal(state(other[0])["visual.proj"], state(tuned[0])["visual.proj"])


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
        clips.load_classifier(model)[0],
        clips.class_embeddings(clip, "a photo of a {} texture.", CLASSNAMES),
        rtol=1e-4,
        atol=1e-5,
    )


def test_latteclip_without_descriptions_trains_without_captions(inputs):
    switches = {"image_description": False, "group_description": False}
    _, history = inputs.run("bare", switches=switches, captions=False, epochs=1)
    table = pq.read_table(history).to_pydict()
    assert table["weight_class"] == [1, 1]


def test_a_loss_that_explodes_stops_the_training_and_writes_nothing(inputs):
    with pytest.raises(UserError, match="The loss became nan at step"):
        inputs.run("explodes", lr=1e30, epochs=3, warmup_steps=0)
    assert list((inputs.folder / "explodes").glob("*")) == []


def test_an_unknown_objective_is_named(inputs):
    with pytest.raises(UserError, match="'flip' is none of"):
        inputs.run("unknown", "flip")


def test_captions_of_other_images_are_refused(inputs, tmp_path):
    other = Inputs(tmp_path)
    other.images = write_captions(tmp_path / "c.parquet", other.names[1:], ["x"] * 6)
    with pytest.raises(UserError, match="lacks 1 of 7"):
        other.run("out")


# --- resuming ------------------------------------------------------------------------------------

EPOCHS = 4


@pytest.fixture(scope="module")
def unbroken(inputs):
    return inputs.run("unbroken", epochs=EPOCHS)


@pytest.fixture
def broken_after(inputs, monkeypatch):
    """Breaks a run off after so many epochs; its checkpoints' folder."""

    def broken_after(epochs, name, **settings):
        save = checkpoints.save

        def save_and_break(folder, checkpoint):
            save(folder, checkpoint)
            if checkpoint.epochs == epochs:
                raise KeyboardInterrupt

        monkeypatch.setattr(checkpoints, "save", save_and_break)
        with pytest.raises(KeyboardInterrupt):
            inputs.run(name, epochs=EPOCHS, **settings)
        monkeypatch.setattr(checkpoints, "save", save)
        assert not (inputs.folder / name / "model").exists()
        return inputs.folder / name / "checkpoint"

    return broken_after


def assert_same_run(first, second):
    for name in ("open_clip_model.safetensors", clips.CLASSIFIER):
        assert (first[0] / name).read_bytes() == (second[0] / name).read_bytes()
    assert history(first[1]) == history(second[1])


@pytest.mark.parametrize("epochs", [1, 3, EPOCHS])
def test_a_broken_run_goes_on_to_the_same_bytes(inputs, unbroken, broken_after, epochs, caplog):
    folder = broken_after(epochs, f"broken{epochs}")
    torch.rand(3)
    with caplog.at_level("INFO"):
        resumed = inputs.run(f"broken{epochs}", epochs=EPOCHS)
    assert f"Going on after epoch {epochs}" in caplog.text
    assert_same_run(resumed, unbroken)
    assert not folder.exists()


def test_a_truncated_checkpoint_costs_an_epoch_and_changes_nothing(
    inputs, unbroken, broken_after, caplog
):
    folder = broken_after(3, "truncated")
    file = folder / "epoch-00003" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with caplog.at_level("INFO"):
        resumed = inputs.run("truncated", epochs=EPOCHS)
    assert "epoch-00003 cannot be read" in caplog.text
    assert "Going on after epoch 2" in caplog.text
    assert_same_run(resumed, unbroken)


def test_checkpoints_come_as_often_as_is_asked(inputs, broken_after):
    folder = broken_after(4, "seldom", compute={"checkpoint_every": 2})
    assert sorted(path.name for path in folder.iterdir()) == ["epoch-00002", "epoch-00004"]


def test_a_checkpoint_of_another_learning_rate_is_refused_and_kept(inputs, broken_after):
    folder = broken_after(2, "other_rate")
    with pytest.raises(UserError, match=r"optimiser\.lr is 0\.001, not 0\.002"):
        inputs.run("other_rate", epochs=EPOCHS, lr=2e-3)
    assert (folder / "epoch-00002").is_dir()


def test_a_checkpoint_of_other_captions_is_refused(inputs, broken_after, tmp_path, monkeypatch):
    broken_after(1, "other_captions")
    other = write_captions(tmp_path / "c.parquet", inputs.names, ["blue"] * 7)
    monkeypatch.setattr(inputs, "images", other)
    with pytest.raises(UserError, match="digest of images, labels and captions is"):
        inputs.run("other_captions", epochs=EPOCHS)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(inputs, tmp_path):
    """kill -9 at random moments after the first checkpoint, through the command line."""
    epochs, delays = 40, random.Random(0)
    settings = asdict(inputs.settings(epochs=epochs))

    def start(name):
        command = [sys.executable, "-m", "latteclip", "finetune", "--images", inputs.index]
        command += ["--pseudo-labels", inputs.labels, "--image-captions", inputs.images]
        command += ["--group-captions", inputs.groups, "--settings", json.dumps(settings)]
        command += ["--seed", "3", "--device", "cpu", "--threads", "1"]
        for part in ("model", "history", "checkpoint"):
            command += [f"--{part}", str(tmp_path / name / part)]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    whole = start("whole")
    kills = 0
    while True:
        process = start("killed")
        before = set((tmp_path / "killed" / "checkpoint").glob("epoch-*"))
        while process.poll() is None:  # until it has done an epoch more, then a little longer
            if set((tmp_path / "killed" / "checkpoint").glob("epoch-*")) - before:
                time.sleep(delays.uniform(0, 0.4))
                break
            time.sleep(0.005)
        if kills == 3 or process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
    assert process.wait() == whole.wait() == 0
    assert kills >= 1
    runs = [
        (tmp_path / name / "model", tmp_path / name / "history") for name in ("whole", "killed")
    ]
    assert_same_run(*runs)
    assert not (tmp_path / "killed" / "checkpoint").exists()


# --- how it is computed --------------------------------------------------------------------------


def test_pictures_kept_in_memory_change_no_byte(inputs, tuned):
    assert_same_run(inputs.run("cached", compute={"cache_gib": 1}), tuned)


def test_micro_batches_change_nothing_but_rounding(inputs, tuned):
    micro = inputs.run("micro", compute={"micro_batch": 2})
    wanted = state(tuned[0])
    for name, tensor in state(micro[0]).items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-3, atol=1e-4, msg=name)


# --- marks ---------------------------------------------------------------------------------------


def marks(path):
    return tables.read(path, pq.read_schema(path))[1]["marks"]


@pytest.fixture
def own_predictions(inputs, demo_clip):
    """The class that CLIP sees in each training picture as `inputs.run` shows it first."""
    paths = [str(inputs.folder / "pictures" / name) for name in inputs.names]
    files = ImageFiles(paths, demo_clip.augment, seed=3)
    classes = clips.class_embeddings(demo_clip, "a photo of a {} texture.", CLASSNAMES)
    with torch.no_grad():
        features = clips.encode_images(demo_clip, torch.stack([files[0, i][1] for i in range(7)]))
    return (features @ classes.T).argmax(dim=1).tolist()


def test_agreement_is_the_share_of_predictions_that_are_the_pseudo_label(inputs, own_predictions):
    _, path = inputs.run("agreement", "flyp", epochs=1, batch_size=7)
    same = [a == b for a, b in zip(own_predictions, LABELS, strict=True)]
    assert pq.read_table(path)["agreement"].to_pylist() == pytest.approx([sum(same) / 7])


def test_predictions_that_hardly_agree_warn_and_are_marked(
    inputs, own_predictions, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(monitor, "MIN_CLASSES", 0)
    settings = {"captions": False, "epochs": 1, "batch_size": 7}
    for name, shift in (("agreeing", 0), ("disagreeing", 1)):
        labels = [(label + shift) % 3 for label in own_predictions]
        path = write_pseudo_labels(tmp_path / f"{name}.parquet", inputs.names, labels)
        monkeypatch.setattr(inputs, "labels", path)
        found = marks(inputs.run(name, "flyp", **settings)[1])
        assert found == (["collapsed"] if shift else [])
        assert ("only 0% of the predictions agree" in caplog.text) == bool(shift)


def test_supervision_trains_on_true_labels_and_is_marked(inputs):
    supervised = inputs.run("supervised", "flyp_supervised", epochs=1)
    assert "supervised" in marks(supervised[1])
    plain = inputs.run("plain", "flyp", epochs=1)
    assert "supervised" not in marks(plain[1])
    assert history(supervised[1])["loss"] != history(plain[1])["loss"]
